"""Modules: a choice together with its parameters, matrix products, lookup tables; filled with arrays by ``nnx.merge``.

A kind of layer is a frozen dataclass in a file of its own: its fields are what a user chooses, ``declare`` names its
parameters, ``apply`` computes with them. Such files import JAX inside functions only, because run files load them.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_like.arrays.spec import Initializer
from t5x_like.layers.param import ZEROS, normal, param
from t5x_like.ops.lookup import lookup

if TYPE_CHECKING:
    from t5x_like.layers.init import Init
    from t5x_like.layers.positions import Positions


class Module(nnx.Module):
    """Named parameters and modules (None where a choice has none of them); calling it calls ``choice.apply``."""

    def __init__(self, choice: Any, **parts: Any):
        self.choice = choice
        for name, part in parts.items():
            setattr(self, name, part)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self.choice.apply(self, *arguments, **named)


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


class Table(nnx.Module):
    """A lookup table [rows, D]."""

    def __init__(self, rows: int, width: int, axis: str, init_std: float):
        self.axis = axis
        self.table = param((rows, width), (axis, "embed"), normal(init_std))

    def __call__(self, ids: jax.Array, dtype) -> jax.Array:
        """[..., D] for ids [...]."""
        return lookup(self.table[...].astype(dtype), ids, self.axis)


@dataclasses.dataclass(frozen=True)
class Site:
    """Where a layer is declared: all that its parameters depend on besides its own choice.

    Attributes:
      width: width of the residual stream, D.
      depth: number of layers of the stack.
      init: initial values of parameters.
      positions: positions of the stack.
    """

    width: int
    depth: int
    init: Init
    positions: Positions | None = None
