"""Matrix products with a kernel and perhaps a bias."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_like.arrays.spec import Initializer
from t5x_like.layers.param import ZEROS, param


class Linear(nnx.Module):
    """x W + b over the last dimension: [..., in] to [..., out], in the dtype of x."""

    def __init__(
        self, size_in: int, size_out: int, axes: tuple[str | None, str | None], init: Initializer, bias: bool = False
    ):
        self.kernel = param((size_in, size_out), axes, init, fan=1)
        # A bias as wide as the model is replicated; one over heads or mlp is split as the kernel's columns.
        self.bias = param((size_out,), ("norm" if axes[1] == "embed" else axes[1],), ZEROS) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        # Rows as one dimension: on a CPU a product of two matrices runs faster than the same product with batches.
        rows = jnp.matmul(x.reshape(-1, x.shape[-1]), self.kernel[...].astype(x.dtype))
        if self.bias is not None:
            rows = rows + self.bias[...].astype(x.dtype)
        return rows.reshape(*x.shape[:-1], -1)
