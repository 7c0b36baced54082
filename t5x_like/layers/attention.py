"""Multi-head attention with its projections: self or cross; many, grouped or one key head; with or without a cache.

Letters: B batch, L queries, S keys, D model width, H heads, K key heads, N size of a head.
"""

from __future__ import annotations

import dataclasses
import math

import jax
from flax import nnx

from t5x_like.layers.config import BlockConfig
from t5x_like.layers.linear import Linear
from t5x_like.layers.norms import RMSNorm
from t5x_like.layers.param import fan_in, normal
from t5x_like.layers.positions import rotate
from t5x_like.ops.attention import Bias, Mask, attention, attention_scale
from t5x_like.sharding.mesh import constrain

Cache = dict[str, jax.Array]  # key, value: [B, S, K, N]


@dataclasses.dataclass(frozen=True)
class Visible:
    """What an attention layer may see, the same for all layers of a stack."""

    mask: Mask
    bias: Bias | None = None
    rotation: tuple[jax.Array, jax.Array] | None = None
    offset: jax.Array | int = 0  # column of the first query: the position reached while decoding


class Attention(nnx.Module):
    """softmax(q k^T) v with projections; without biases unless the config has them."""

    def __init__(self, config: BlockConfig, output_scale: float = 1.0):
        D, inner, key_inner = config.d_model, config.heads * config.head_dim, config.key_heads * config.head_dim
        fans = config.init == "fan_in"
        # T5 leaves the scores undivided and starts its queries smaller by the same factor.
        query_fan = D if config.scale_attention else D * config.head_dim
        plain = normal(config.init_std)
        key_init = fan_in(D) if fans else plain
        output = normal((1 / math.sqrt(inner) if fans else config.init_std) * output_scale)
        self.config = config
        self.query = Linear(D, inner, ("embed", "heads"), fan_in(query_fan) if fans else plain, config.bias)
        self.key = Linear(D, key_inner, ("embed", "kv_heads"), key_init, config.bias)
        self.value = Linear(D, key_inner, ("embed", "kv_heads"), key_init, config.bias)
        self.out = Linear(inner, D, ("heads", "embed"), output, config.bias)
        self.query_norm = RMSNorm(config.head_dim, config.norm_eps, "head_dim") if config.qk_norm else None
        self.key_norm = RMSNorm(config.head_dim, config.norm_eps, "head_dim") if config.qk_norm else None

    def keys_values(self, source_BSD: jax.Array, rotation=None) -> Cache:
        """Keys and values of what is attended to, each [B, S, K, N]."""
        B, S, _ = source_BSD.shape
        shape = (B, S, self.config.key_heads, self.config.head_dim)
        key, value = self.key(source_BSD).reshape(shape), self.value(source_BSD).reshape(shape)
        if self.key_norm is not None:
            key = self.key_norm(key)
        if rotation is not None:
            key = rotate(key, rotation)
        axes = ("batch", None, "kv_heads", None)
        return {"key": constrain(key, *axes), "value": constrain(value, *axes)}

    def __call__(
        self,
        x_BLD: jax.Array,
        visible: Visible,
        dropout_key: jax.Array | None,
        *,
        memory: Cache | None = None,
        cache: Cache | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """([B, L, D], the cache with this call's keys and values written into it).

        Args:
          x_BLD: the queries' source, and for self-attention the keys' too.
          visible: mask, bias, rotation, offset.
          dropout_key: for the attention probabilities.
          memory: keys and values of the encoder: cross-attention.
          cache: keys and values of all columns, of which those from ``visible.offset`` on are replaced.
        """
        config = self.config
        B, L, _ = x_BLD.shape
        query = self.query(x_BLD).reshape(B, L, config.heads, config.head_dim)
        if self.query_norm is not None:
            query = self.query_norm(query)
        if visible.rotation is not None:
            query = rotate(query, visible.rotation)
        query = constrain(query, "batch", None, "heads", None)
        seen = memory if memory is not None else self.keys_values(x_BLD, visible.rotation)
        if cache is not None:
            seen = {
                name: jax.lax.dynamic_update_slice_in_dim(cache[name], seen[name], visible.offset, axis=1)
                for name in cache
            }
        out = attention(
            query,
            seen["key"],
            seen["value"],
            mask=visible.mask,
            bias=visible.bias,
            scale=attention_scale(config.head_dim, config.scale_attention),
            soft_cap=config.attention_soft_cap,
            dropout_rate=config.dropout.attention,
            dropout_key=dropout_key,
            query_offset=visible.offset,
            backend=config.attention_backend,
        )
        out = constrain(out, "batch", None, "heads", None)
        return self.out(out.reshape(B, L, -1)), None if cache is None else seen
