"""RMSNorm and LayerNorm."""

from __future__ import annotations

import abc
import dataclasses
from typing import TYPE_CHECKING, ClassVar

from t5x_like.core.ranges import NonNegativeFloat
from t5x_like.core.structure import Config

if TYPE_CHECKING:
    import jax

    from t5x_like.layers.module import Module


@dataclasses.dataclass(frozen=True)
class Norm(Config, abc.ABC, where="model.norm"):
    """(x - mean) / sqrt(mean square + eps) * scale + bias, with statistics in float32; the normalized value is cast to
    the dtype of x and then scaled, as in T5. The choices below decide on mean and bias.

    Attributes:
      eps: constant added to the mean square.
    """

    eps: NonNegativeFloat = 1e-6

    centred: ClassVar[bool] = False
    bias: ClassVar[bool] = False

    def declare(self, size: int, axis: str = "norm") -> Module:
        """The parameters of a norm over ``size`` features of the logical axis ``axis``."""
        from t5x_like.layers.module import Module
        from t5x_like.layers.param import ONES, ZEROS, param

        bias = param((size,), (axis,), ZEROS) if self.bias else None
        return Module(self, scale=param((size,), (axis,), ONES), bias=bias)

    def apply(self, parts: Module, x: jax.Array) -> jax.Array:
        """The normalized array, in the shape and dtype of ``x``."""
        import jax
        import jax.numpy as jnp

        x32 = x.astype(jnp.float32)
        x32 = x32 - jnp.mean(x32, axis=-1, keepdims=True) if self.centred else x32
        inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        out = (x32 * inverse).astype(x.dtype) * parts.scale[...].astype(x.dtype)
        return out if parts.bias is None else out + parts.bias[...].astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class RMSNorm(Norm):
    """Without mean and bias (Zhang & Sennrich 2019)."""


@dataclasses.dataclass(frozen=True)
class LayerNorm(Norm):
    """With mean (Ba et al. 2016).

    Attributes:
      bias: whether there is one.
    """

    bias: bool = True  # pyright: ignore[reportIncompatibleVariableOverride]: a choice here

    centred: ClassVar[bool] = True
