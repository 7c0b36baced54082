"""Dropout of attention probabilities: a hash of their place, not a stream of random numbers.

The bits depend on (seed, batch row, head, query, key) alone: they are the same for any block sizes, on any backend, and
on any shard that says which rows and heads are its own.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Dropout:
    """Drops attention probabilities with ``rate`` and divides the rest by 1 - rate.

    Attributes:
      rate: share of dropped probabilities, in [0, 1).
      seed: int32 scalar.
      first_row, first_head: the global numbers of this shard's first batch row and query head.
    """

    rate: float
    seed: jax.Array | int
    first_row: jax.Array | int = 0
    first_head: jax.Array | int = 0

    def __post_init__(self):
        if not isinstance(self.rate, (int, float)) or not 0.0 <= self.rate < 1.0:
            raise ValueError(f"dropout: got rate={self.rate}; allowed: a number from 0 up to but not 1")

    @classmethod
    def from_key(cls, rate: float, key: jax.Array) -> Dropout:
        """With the seed drawn from a random key."""
        return cls(rate, jax.random.bits(key, dtype=jnp.uint32).astype(jnp.int32))


def mix(x: jax.Array) -> jax.Array:
    """A bijection of int32 in which every input bit reaches every output bit (two rounds of multiply and xor-shift)."""
    x = x ^ jax.lax.shift_right_logical(x, jnp.int32(16))
    x = x * jnp.int32(0x7FEB352D)
    x = x ^ jax.lax.shift_right_logical(x, jnp.int32(15))
    x = x * jnp.int32(np.int32(np.uint32(0x846CA68B)))
    return x ^ jax.lax.shift_right_logical(x, jnp.int32(16))


def stream(seed: jax.Array | int, row: jax.Array | int, head: jax.Array | int) -> jax.Array:
    """int32 that tells one (seed, batch row, head) from another."""
    golden = jnp.int32(np.int32(np.uint32(0x9E3779B9)))
    return mix(mix(jnp.asarray(seed, jnp.int32) + golden * jnp.asarray(row, jnp.int32)) ^ jnp.asarray(head, jnp.int32))


def kept(rate: float, stream: jax.Array, query: jax.Array, key: jax.Array) -> jax.Array:
    """Whether a probability is kept.

    Args:
      rate: share of dropped probabilities.
      stream: result of ``stream`` for the batch row and head.
      query, key: int32 columns that broadcast against each other. Each is hashed before they meet, so that the work for
        a pair is one more hash.
    """
    bits = mix(mix(query ^ stream) + mix(key + jnp.int32(0x3C6EF372)))
    return jax.lax.shift_right_logical(bits, jnp.int32(8)) >= jnp.int32(round(rate * 2**24))


jax.tree_util.register_dataclass(Dropout, data_fields=["seed", "first_row", "first_head"], meta_fields=["rate"])
