"""Biases of attention scores: T5's learned relative bias, ALiBi, or a dense array. Must not know kernels.

The first two depend on the distance key - query only and are never stored densely by a kernel. Bucketing is T5's.

Letters: B batch, H heads, L queries, S keys, K buckets.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp


def relative_buckets(distance: jax.Array, bidirectional: bool, buckets: int = 32, max_distance: int = 128) -> jax.Array:
    """T5's bucket of a distance (Raffel et al. 2020, section 2.1; the exact rule of the published models).

    Args:
      distance: key position minus query position, int32 of any shape.
      bidirectional: half of the buckets for each direction; otherwise keys after the query share bucket 0.
      buckets: number of buckets.
      max_distance: distance from which on all share the last bucket.

    Returns:
      int32 of the same shape, in [0, buckets).

    Raises:
      ValueError: too few buckets, or too small a distance, for a logarithmic half.
    """
    nearest = buckets // (4 if bidirectional else 2)
    if nearest < 1 or max_distance <= nearest:
        raise ValueError(
            f"T5Relative: got {buckets} buckets, max_distance={max_distance}; allowed: {4 if bidirectional else 2} "
            f"buckets or more, and a distance above {nearest}, which has buckets of its own up to there"
        )
    if bidirectional:
        buckets //= 2
        offset, n = jnp.where(distance > 0, buckets, 0), jnp.abs(distance)
    else:
        offset, n = 0, jnp.maximum(-distance, 0)
    exact = buckets // 2
    # The float32 epsilon decides distances such as 16, 32 and 64, which lie on a boundary.
    ratio = jnp.maximum(n, 1).astype(jnp.float32) / exact + jnp.finfo(jnp.float32).eps
    large = exact + (jnp.log(ratio) / math.log(max_distance / exact) * (buckets - exact)).astype(jnp.int32)
    return offset + jnp.where(n < exact, n, jnp.minimum(large, buckets - 1)).astype(jnp.int32)


def alibi_slopes(heads: int) -> list[float]:
    """One slope per head, a geometric sequence (Press et al. 2022, section 3 and its code for other than powers of
    2)."""
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    return slopes + [2 ** (-4 * (2 * i + 1) / power) for i in range(heads - power)]


@dataclasses.dataclass(frozen=True, eq=False)
class T5Relative:
    """table_KH[bucket(key - query), head], trained."""

    table_KH: jax.Array
    bidirectional: bool
    max_distance: int = 128

    def axes(self) -> Any:
        """As ``Mask.axes``."""
        return jax.tree.map(lambda _: ("buckets", "heads"), self)

    @property
    def heads(self) -> int:
        return self.table_KH.shape[1]

    @property
    def reach(self) -> int:
        """Distance from which on all distances of one side have the same bias."""
        return self.max_distance

    def of_distance(self, distance: jax.Array) -> jax.Array:
        """[H, ...] in the table's dtype, for int32 distances key - query of any shape."""
        buckets = relative_buckets(distance, self.bidirectional, self.table_KH.shape[0], self.max_distance)
        return self.table_KH.T[:, buckets]

    def expand(self, query_offset: jax.Array | int, queries: int, keys: int) -> jax.Array:
        """[1, H, L, S] in the table's dtype, for queries from column ``query_offset`` and keys from column 0."""
        # There are only L + S - 1 distances: look those up, then shift a copy per query by laying rows of one more
        # element than their period side by side. Its transpose is sums, where a gather of L x S pairs scatters.
        period = queries + keys
        column = jnp.arange(period, dtype=jnp.int32)
        row_HP = self.of_distance(jnp.where(column < keys, column, column - period) - query_offset)
        rows = jnp.broadcast_to(row_HP[:, None], (row_HP.shape[0], queries, period)).reshape(row_HP.shape[0], -1)
        return rows[:, : queries * (period - 1)].reshape(-1, queries, period - 1)[None, :, :, :keys]


@dataclasses.dataclass(frozen=True, eq=False)
class Alibi:
    """-slope * |key - query|: linear in the distance, on both sides of the query."""

    slopes_H: jax.Array

    def axes(self) -> Any:
        """As ``Mask.axes``."""
        return jax.tree.map(lambda _: ("heads",), self)

    @property
    def heads(self) -> int:
        return self.slopes_H.shape[0]

    def expand(self, query_offset: jax.Array | int, queries: int, keys: int) -> jax.Array:
        """[1, H, L, S] float32: distances above 256 are none in bfloat16."""
        query_L, key_S = jnp.arange(queries) + query_offset, jnp.arange(keys)
        distance_LS = jnp.abs(key_S[None, :] - query_L[:, None]).astype(jnp.float32)
        return (-self.slopes_H.astype(jnp.float32)[:, None, None] * distance_LS[None])[None]


@dataclasses.dataclass(frozen=True, eq=False)
class Dense:
    """An array of scores to add, [1 or B, 1 or H, L, S]; the row is the query's place in this call."""

    array: jax.Array

    def axes(self) -> Any:
        """As ``Mask.axes``."""
        return jax.tree.map(lambda _: ("batch", "heads", "length", "length"), self)

    @property
    def heads(self) -> int:
        return self.array.shape[1]

    def expand(self, query_offset: jax.Array | int, queries: int, keys: int) -> jax.Array:
        """The array."""
        return self.array


Bias = T5Relative | Alibi | Dense
jax.tree_util.register_dataclass(T5Relative, data_fields=["table_KH"], meta_fields=["bidirectional", "max_distance"])
jax.tree_util.register_dataclass(Alibi, data_fields=["slopes_H"], meta_fields=[])
jax.tree_util.register_dataclass(Dense, data_fields=["array"], meta_fields=[])
