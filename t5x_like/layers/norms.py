"""RMSNorm and LayerNorm."""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import TYPE_CHECKING

from t5x_like.core.config import Config
from t5x_like.core.errors import require

if TYPE_CHECKING:
    import jax

    from t5x_like.layers.module import Module


@dataclasses.dataclass(frozen=True)
class Norm(Config, abc.ABC, where="model.norm"):
    """Base of the norms below.

    Attributes:
      eps: added to the variance or the mean square.
    """

    eps: float = 1e-6

    def __post_init__(self):
        require(0 <= self.eps < math.inf, "model.norm.eps", self.eps, "a number, 0 or more")

    def declare(self, size: int, axis: str = "norm") -> Module:
        """The parameters of a norm over ``size`` features of the logical axis ``axis``."""
        from t5x_like.layers.module import Module
        from t5x_like.layers.param import ONES, param

        return Module(self, scale=param((size,), (axis,), ONES))

    def apply(self, parts: Module, x: jax.Array) -> jax.Array:
        """The normalized array, in the shape and dtype of ``x``."""
        raise TypeError(f"{type(self).__name__} does not say how it normalizes")


@dataclasses.dataclass(frozen=True)
class RMSNorm(Norm):
    """x / sqrt(mean(x^2) + eps) * scale (Zhang & Sennrich 2019). The statistics are float32; the normalised value is
    cast to the dtype of x and then scaled, as in T5."""

    def apply(self, parts: Module, x: jax.Array) -> jax.Array:
        import jax
        import jax.numpy as jnp

        x32 = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        return (x32 * inverse).astype(x.dtype) * parts.scale[...].astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class LayerNorm(Norm):
    """(x - mean) / sqrt(variance + eps) * scale + bias (Ba et al. 2016), statistics in float32.

    Attributes:
      bias: whether there is one.
    """

    bias: bool = True

    def declare(self, size: int, axis: str = "norm") -> Module:
        from t5x_like.layers.module import Module
        from t5x_like.layers.param import ONES, ZEROS, param

        bias = param((size,), (axis,), ZEROS) if self.bias else None
        return Module(self, scale=param((size,), (axis,), ONES), bias=bias)

    def apply(self, parts: Module, x: jax.Array) -> jax.Array:
        import jax
        import jax.numpy as jnp

        x32 = x.astype(jnp.float32)
        centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        inverse = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + self.eps)
        out = (centred * inverse).astype(x.dtype) * parts.scale[...].astype(x.dtype)
        return out if parts.bias is None else out + parts.bias[...].astype(x.dtype)
