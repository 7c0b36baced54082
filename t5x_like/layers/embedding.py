"""From token ids to activations, and from activations to logits.

Letters: B batch, L positions, D model width, V vocabulary.
"""

from __future__ import annotations

import jax
from flax import nnx

from t5x_like.layers.activations import ACTIVATIONS
from t5x_like.layers.init import Init
from t5x_like.layers.linear import Linear
from t5x_like.layers.norms import Norm
from t5x_like.layers.param import ZEROS, normal, param
from t5x_like.ops.lookup import lookup


class Table(nnx.Module):
    """A lookup table [rows, D]."""

    def __init__(self, rows: int, width: int, axis: str, init_std: float):
        self.axis = axis
        self.table = param((rows, width), (axis, "embed"), normal(init_std))

    def __call__(self, ids: jax.Array, dtype) -> jax.Array:
        """[..., D] for ids [...]."""
        return lookup(self.table[...].astype(dtype), ids, self.axis)


class OutputTransform(nnx.Module):
    """Transform before the logits, as in BERT: linear, activation, norm."""

    def __init__(self, width: int, activation: str, norm: Norm, bias: bool, init: Init):
        self.activation = activation
        self.linear = Linear(width, width, ("embed", None), init.kernel(width), bias)
        self.norm = norm.declare(width)

    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        return self.norm(ACTIVATIONS[self.activation](self.linear(x_BLD)))


class OutputHead(nnx.Module):
    """The parameters of the logits: a kernel [V, D] unless the token table serves, a bias [V] if wanted."""

    def __init__(self, vocab_size: int, width: int, tied: bool, bias: bool, init: Init):
        self.kernel = None if tied else param((vocab_size, width), ("vocab", "embed"), init.kernel(width), fan=1)
        self.bias = param((vocab_size,), ("vocab",), ZEROS) if bias else None
