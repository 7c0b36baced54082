"""One layer of a stack: self-attention, cross-attention in a decoder that has an encoder, MLP, each with its norms.

Letters: B batch, L positions, D model width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from t5x_like.arrays.keys import maybe_named
from t5x_like.layers.attention import Attention, Cache, Visible
from t5x_like.layers.config import BlockConfig
from t5x_like.layers.dropout import dropout
from t5x_like.layers.feed_forward import FeedForward
from t5x_like.layers.norms import make_norm
from t5x_like.layers.param import fan_in, normal, param
from t5x_like.ops.attention import T5Relative
from t5x_like.sharding.mesh import constrain


class Sublayer(nnx.Module):
    """``inner``, a function, with the norms and the residual sum around it; the one place that knows norm placement."""

    def __init__(self, config: BlockConfig, inner: Any):
        self.config = config
        self.inner = inner
        self.norm = make_norm(config.norm, config.d_model, config.norm_eps, config.bias)
        self.norm_after = (
            make_norm(config.norm, config.d_model, config.norm_eps, config.bias)
            if config.norm_placement == "sandwich"
            else None
        )

    def __call__(self, x_BLD: jax.Array, function: Callable[[jax.Array], jax.Array], key: jax.Array | None):
        """pre: x + f(norm(x)); post: norm(x + f(x)); sandwich: x + norm(f(norm(x)))."""
        post = self.config.norm_placement == "post"
        out = function(x_BLD if post else self.norm(x_BLD))
        if self.norm_after is not None:
            out = self.norm_after(out)
        out = x_BLD + dropout(out, self.config.dropout.residual, maybe_named(key, "residual"))
        return constrain(self.norm(out) if post else out, "batch", None, None)


def bias_table(config: BlockConfig) -> nnx.Param:
    """T5's table [buckets, heads] of one layer or one stack."""
    init = fan_in(config.d_model) if config.init == "fan_in" else normal(config.init_std)
    return param((config.buckets, config.heads), ("buckets", "heads"), init)


class Block(nnx.Module):
    """One layer. ``bidirectional`` decides the sides of a T5 bias of its own."""

    def __init__(self, config: BlockConfig, layers: int, cross: bool, bidirectional: bool):
        scale = (2 * layers) ** -0.5 if config.depth_scaled_init else 1.0
        self.config, self.bidirectional = config, bidirectional
        self.attention = Sublayer(config, Attention(config, scale))
        self.cross_attention: Any = Sublayer(config, Attention(config, scale)) if cross else None
        self.feed_forward = Sublayer(config, FeedForward(config, scale))
        self.position_bias = bias_table(config) if config.positions == "t5" and config.bias_per_layer else None

    def __call__(
        self,
        x_BLD: jax.Array,
        visible: Visible,
        cross: Visible | None,
        memory_BSD: jax.Array | None,
        key: jax.Array | None,
        cache: dict[str, Cache] | None,
    ) -> tuple[jax.Array, Cache | None]:
        """([B, L, D], the updated cache of the self-attention).

        Args:
          x_BLD: the residual stream.
          visible, cross: what self- and cross-attention may see.
          memory_BSD: the encoder's output, where ``cache`` does not hold its keys and values.
          key: for dropout.
          cache: ``self``, and ``cross`` where there is an encoder; see ``Stack.start_cache``.
        """
        written: Cache | None = None
        if self.position_bias is not None:
            own = T5Relative(self.position_bias[...], self.bidirectional, self.config.max_distance)
            visible = Visible(visible.mask, own, visible.rotation, visible.offset)

        def attend(x):
            nonlocal written
            mine = None if cache is None else cache["self"]
            out, written = self.attention.inner(x, visible, maybe_named(key, "attention"), cache=mine)
            return out

        def attend_across(x):
            inner = self.cross_attention.inner
            seen = cache["cross"] if cache is not None else inner.keys_values(memory_BSD)
            return inner(x, cross, maybe_named(key, "cross_attention"), memory=seen)[0]

        x_BLD = self.attention(x_BLD, attend, maybe_named(key, "after_attention"))
        if self.cross_attention is not None:
            x_BLD = self.cross_attention(x_BLD, attend_across, maybe_named(key, "after_cross_attention"))
        x_BLD = self.feed_forward(
            x_BLD,
            lambda x: self.feed_forward.inner(x, maybe_named(key, "hidden")),
            maybe_named(key, "after_feed_forward"),
        )
        return x_BLD, written
