"""Multi-head attention with its projections: self or cross; many, grouped or one key head; with or without a cache.

Letters: B batch, L queries, S keys, D model width, H heads, K key heads, N size of a head.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

from t5x_like.core.errors import UserError
from t5x_like.core.ranges import BelowOne, NonNegativeInt, OffOrPositive, PositiveInt
from t5x_like.layers.context import Cache, Context, Out
from t5x_like.layers.mixer import Mixer
from t5x_like.layers.norms import Norm
from t5x_like.layers.positions import Positions, rotate

if TYPE_CHECKING:
    import jax

    from t5x_like.layers.module import Module, Site
    from t5x_like.ops.attention import Bias, Mask


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attention(Mixer):
    """softmax(q k^T) v with projections, without biases unless asked for.

    Attributes:
      heads: number of query heads.
      head_dim: features of a head.
      kv_heads: number of key and value heads; 0: as many as ``heads``; fewer is grouped-query attention, 1 multi-query.
      bias: whether the projections have biases.
      scaled: whether scores are divided by sqrt(head_dim); T5 scales the initialization of its queries instead.
      qk_norm: norm of queries and keys over head_dim, or none.
      soft_cap: scores become cap * tanh(scores / cap); 0 is off.
      window: columns seen to each side (causal: before); 0 is all.
      positions: positions of this layer; none: those of its stack.
      dropout: rate of dropout of attention probabilities.
    """

    heads: PositiveInt  # pyright: ignore[reportIncompatibleVariableOverride]: a choice here
    head_dim: PositiveInt  # pyright: ignore[reportIncompatibleVariableOverride]: a choice here
    kv_heads: NonNegativeInt = 0
    bias: bool = False
    scaled: bool = True
    qk_norm: Norm | None = None
    soft_cap: OffOrPositive = 0.0
    window: NonNegativeInt = 0
    positions: Positions | None = None
    dropout: BelowOne = 0.0

    name: ClassVar[str] = "attention"

    def __post_init__(self):
        if self.heads % self.key_heads:
            divisors = ", ".join(str(n) for n in range(1, self.heads + 1) if self.heads % n == 0)
            got = f"{self.kv_heads} does not divide model.heads = {self.heads}"
            raise UserError("model.kv_heads", got, f"0 (as many as heads) or one of {divisors}")

    @property
    def key_heads(self) -> int:
        return self.kv_heads or self.heads

    @property
    def split_sizes(self) -> dict[str, int]:
        return {"heads": self.heads, "kv_heads": self.key_heads}

    @property
    def by_column(self) -> bool:
        return self.window > 0

    def pair_flops(self, queries: int, keys: int, causal: bool) -> float:
        """FLOPs: 4 for each query, visible key and feature (scores and values)."""
        seen = (keys + 1) / 2 if causal else float(keys)
        if self.window:
            seen = min(seen, self.window * (1 if causal else 2) + 1)
        return 4.0 * self.heads * self.head_dim * queries * seen

    def declare(self, site: Site) -> Module:
        from t5x_like.layers.module import Linear, Module

        D, inner, key_inner = site.width, self.heads * self.head_dim, self.key_heads * self.head_dim
        query = site.init.kernel(D if self.scaled else D * self.head_dim)
        key, output = site.init.kernel(D), site.init.kernel(inner, site.depth)
        own = self.positions or (site.positions if site.positions and site.positions.per_layer else None)
        return Module(
            self,
            query=Linear(D, inner, ("embed", "heads"), query, self.bias),
            key=Linear(D, key_inner, ("embed", "kv_heads"), key, self.bias),
            value=Linear(D, key_inner, ("embed", "kv_heads"), key, self.bias),
            out=Linear(inner, D, ("heads", "embed"), output, self.bias),
            query_norm=self.qk_norm and self.qk_norm.declare(self.head_dim, "head_dim"),
            key_norm=self.qk_norm and self.qk_norm.declare(self.head_dim, "head_dim"),
            position_bias=own and own.declare_bias(self.heads, D, site.init),
        )

    def prepare(self, context: Context) -> Any:
        """The rotation of queries and keys, made once for all layers of this choice."""
        positions = self.positions or context.positions
        return None if positions is None else positions.rotation(context.positions_BL, self.head_dim)

    def apply(
        self, parts: Module, x_BLD: jax.Array, context: Context, prepared: Any = None, key: jax.Array | None = None,
        cache: Cache | None = None,
    ) -> tuple[jax.Array, Out]:
        import jax
        import jax.numpy as jnp

        seen = self.keys_values(parts, x_BLD, prepared)
        if cache is not None:
            write = jax.lax.dynamic_update_slice_in_dim
            seen = {name: write(cache[name], seen[name], context.offset, axis=1) for name in cache}
        positions = self.positions or context.positions
        table = context.position_table if parts.position_bias is None else parts.position_bias
        columns = (context.offset + jnp.arange(x_BLD.shape[1]), jnp.arange(seen["key"].shape[1]))
        bias = None if positions is None else positions.bias(table, self.heads, not context.causal, columns)
        out = self.attend(parts, x_BLD, seen, context, context.mask(self.window), key, bias, prepared)
        return out, Out(None if cache is None else seen)

    def keys_values(self, parts: Module, source_BSD: jax.Array, rotation: Any = None) -> Cache:
        """Keys and values of ``source_BSD``, each [B, S, K, N]."""
        from t5x_like.sharding.mesh import constrain

        B, S, _ = source_BSD.shape
        shape = (B, S, self.key_heads, self.head_dim)
        key, value = parts.key(source_BSD).reshape(shape), parts.value(source_BSD).reshape(shape)
        if parts.key_norm is not None:
            key = parts.key_norm(key)
        axes = ("batch", "length", "kv_heads", "head_dim")
        return {"key": constrain(rotate(key, rotation), *axes), "value": constrain(value, *axes)}

    def start_cache(self, batch: int, columns: int, dtype: Any) -> Cache:
        import jax.numpy as jnp

        shape = (batch, columns, self.key_heads, self.head_dim)
        return {name: jnp.zeros(shape, dtype) for name in ("key", "value")}

    def attend(
        self, parts: Module, x_BLD: jax.Array, seen: Cache, context: Context, mask: Mask, key: jax.Array | None,
        bias: Bias | None = None, rotation: Any = None,
    ) -> jax.Array:
        """[B, L, D] of attention to what ``keys_values`` gives; of the encoder's output it is cross-attention."""
        from t5x_like.ops.attention import attention, attention_scale
        from t5x_like.sharding.mesh import constrain

        B, L, _ = x_BLD.shape
        axes = ("batch", "length", "heads", "head_dim")
        query = parts.query(x_BLD).reshape(B, L, self.heads, self.head_dim)
        if parts.query_norm is not None:
            query = parts.query_norm(query)
        out = attention(
            constrain(rotate(query, rotation), *axes), seen["key"], seen["value"], mask=mask, bias=bias,
            scale=attention_scale(self.head_dim, self.scaled), soft_cap=self.soft_cap, dropout_rate=self.dropout,
            dropout_key=key, query_offset=context.offset, backend=context.backend,
        )  # fmt: skip
        return parts.out(constrain(out, *axes).reshape(B, L, -1))
