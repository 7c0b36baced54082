"""From token ids to activations, and from activations to logits.

Letters: B batch, L positions, D model width, V vocabulary.
"""

from __future__ import annotations

import jax
from flax import nnx

from t5x_like.layers.activations import ACTIVATIONS
from t5x_like.layers.linear import Linear
from t5x_like.layers.norms import make_norm
from t5x_like.layers.param import ZEROS, fan_in, normal, param
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
    """What BERT puts before its logits: linear, activation, norm."""

    def __init__(self, width: int, activation: str, norm: str, eps: float, bias: bool, init_std: float | None):
        init = fan_in(width) if init_std is None else normal(init_std)
        self.activation = activation
        self.linear = Linear(width, width, ("embed", None), init, bias)
        self.norm = make_norm(norm, width, eps, bias)

    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        return self.norm(ACTIVATIONS[self.activation](self.linear(x_BLD)))


class OutputHead(nnx.Module):
    """The parameters of the logits: a kernel [V, D] unless the token table serves, a bias [V] if wanted."""

    def __init__(self, vocab_size: int, width: int, tied: bool, bias: bool, init_std: float | None):
        init = fan_in(width) if init_std is None else normal(init_std)
        self.kernel = None if tied else param((vocab_size, width), ("vocab", "embed"), init, fan=1)
        self.bias = param((vocab_size,), ("vocab",), ZEROS) if bias else None
