"""A positional encoding of one's own: scores fall with the root of the distance, by one learned number a head."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from t5x_like.config import Positions
from t5x_like.layers.param import param
from t5x_like.ops.attention import Dense


@dataclasses.dataclass(frozen=True)
class RootDistance(Positions):
    length: int = 64  # columns for which the bias is made

    def declare_bias(self, heads, width, init):
        return param((heads,), ("heads",), init.kernel(1))

    def bias(self, table, heads, bidirectional):
        place = jnp.arange(self.length, dtype=jnp.float32)
        distance = jnp.sqrt(jnp.abs(place[:, None] - place[None]))
        return Dense(-jax.nn.softplus(table[...])[None, :, None, None] * distance[None, None])
