"""A positional encoding of one's own: scores fall with the root of the distance, by one learned number a head."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from t5x_like.config import Positions
from t5x_like.layers.param import param
from t5x_like.ops.attention import biases


@dataclasses.dataclass(frozen=True)
class RootDistance(Positions):
    def declare_bias(self, heads, width, init):
        return param((heads,), ("heads",), init.kernel(1))

    def bias(self, table, heads, bidirectional, columns):
        queries_L, keys_S = columns
        distance = jnp.sqrt(jnp.abs(queries_L[:, None] - keys_S).astype(jnp.float32))
        return biases.Dense(-jax.nn.softplus(table[...])[None, :, None, None] * distance[None, None])
