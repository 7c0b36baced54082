"""RMSNorm and LayerNorm."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_like.layers.param import ONES, ZEROS, param


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x^2) + eps) * scale (Zhang & Sennrich 2019). The statistics are float32; the normalised value is
    cast to the dtype of x and then scaled, as in T5."""

    def __init__(self, size: int, eps: float, axis: str = "norm"):
        self.eps = eps
        self.scale = param((size,), (axis,), ONES)

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        return (x32 * inverse).astype(x.dtype) * self.scale[...].astype(x.dtype)


class LayerNorm(nnx.Module):
    """(x - mean) / sqrt(variance + eps) * scale + bias (Ba et al. 2016), statistics in float32."""

    def __init__(self, size: int, eps: float, bias: bool):
        self.eps = eps
        self.scale = param((size,), ("norm",), ONES)
        self.bias = param((size,), ("norm",), ZEROS) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        inverse = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + self.eps)
        out = (centred * inverse).astype(x.dtype) * self.scale[...].astype(x.dtype)
        return out if self.bias is None else out + self.bias[...].astype(x.dtype)


def make_norm(kind: str, size: int, eps: float, bias: bool) -> nnx.Module:
    """The norm a config names: ``rms`` or ``layer``."""
    return RMSNorm(size, eps) if kind == "rms" else LayerNorm(size, eps, bias)
