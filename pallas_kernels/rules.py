"""What a mask says, as a ``Rule``: of single pairs, whether the query may see the key, and of whole blocks of pairs,
whether some or all of them may.

Kernels skip blocks where no pair may, and test no pair where all may. Must not know the kinds of masks, nor kernels.

Letters: B batch, L queries, S keys.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from pallas_kernels.masks import Blocks


class Pairs(NamedTuple):
    """Queries and keys that a rule is evaluated on; all arrays broadcast against each other, in any layout.

    Attributes:
      query, key: int32 columns.
      query_data, key_data: int32 numbers of these queries and keys that the mask's ``Slots`` collected.
      table: function from a slot to the entry of its static table of blocks at each pair.
    """

    query: jax.Array
    key: jax.Array
    query_data: Sequence[jax.Array] = ()
    key_data: Sequence[jax.Array] = ()
    table: Callable[[int], jax.Array] | None = None


class Span(NamedTuple):
    """Least and greatest number in each block, and the least that is not 0; numpy, or jax where they are traced."""

    low: Any
    high: Any
    low_positive: Any


class Ranges(NamedTuple):
    """Blocks of pairs that a rule is evaluated on; broadcast as ``Pairs``.

    Attributes:
      query, key: columns of each block.
      query_data, key_data: spans of the numbers that the mask's ``Slots`` collected; None where not known yet.
    """

    query: Span
    key: Span
    query_data: Sequence[Span] | None = None
    key_data: Sequence[Span] | None = None


class Rule(NamedTuple):
    """The pairs that a mask allows.

    Attributes:
      pairs: whether each query may see each key.
      blocks: (whether some pair of the block may be allowed, whether all pairs are); the first may be True and the
        second False without need.
      parts: rules whose conjunction this is, if several: a kernel evaluates only those that matter in a block.
    """

    pairs: Callable[[Pairs], Any]
    blocks: Callable[[Ranges], tuple[Any, Any]]
    parts: tuple[Rule, ...] = ()


def both(one: Rule, other: Rule) -> Rule:
    """The conjunction of two rules."""

    def blocks(r: Ranges):
        (some, all_), (other_some, other_all) = one.blocks(r), other.blocks(r)
        return some & other_some, all_ & other_all

    parts = (*(one.parts or (one,)), *(other.parts or (other,)))
    return Rule(lambda pairs: one.pairs(pairs) & other.pairs(pairs), blocks, parts)


@dataclasses.dataclass
class Slots:
    """Collects the numbers of each query and key that the rules of a mask read.

    Attributes:
      queries, keys: lengths.
      offset: column of the first query.
      query_data: [1 or B, L] int32 arrays.
      key_data: [1 or B, S] int32 arrays.
      tables: static tables of blocks, each with its mask.
    """

    queries: int
    keys: int
    offset: Any = 0
    query_data: list[jax.Array] = dataclasses.field(default_factory=list)
    key_data: list[jax.Array] = dataclasses.field(default_factory=list)
    tables: list[Blocks] = dataclasses.field(default_factory=list)

    def of_queries(self, array: jax.Array) -> int:
        return self._add(self.query_data, array, self.queries, "query")

    def of_keys(self, array: jax.Array) -> int:
        return self._add(self.key_data, array, self.keys, "key")

    def of_blocks(self, mask: Blocks) -> int:
        self.tables.append(mask)
        return len(self.tables) - 1

    def _add(self, into: list[jax.Array], array: jax.Array, length: int, side: str) -> int:
        if array.ndim != 2 or array.shape[1] != length:
            got = f"mask: a {side} array of shape {array.shape} for {length} positions"
            raise ValueError(f"{got}; allowed: [B, {length}]")
        if not jnp.issubdtype(array.dtype, jnp.integer):
            raise ValueError(f"mask: a {side} array of {array.dtype}; allowed: whole numbers")
        into.append(array.astype(jnp.int32))
        return len(into) - 1


def dense(rule: Rule, slots: Slots, query_L: jax.Array, key_S: jax.Array, rows: slice = slice(None)) -> jax.Array:
    """[1 or B, L, S] booleans for some rows of the queries.

    Args:
      rule, slots: rule and slots of a mask.
      query_L, key_S: columns.
      rows: indices of these queries in the collected numbers.
    """

    def table(slot: int) -> jax.Array:
        mask = slots.tables[slot]
        row, column = _unit(query_L, mask.size, mask.shape[0]), _unit(key_S, mask.size, mask.shape[1])
        return jnp.asarray(mask.table)[row, :][:, column][None]

    pairs = Pairs(
        query_L[None, :, None], key_S[None, None, :], [a[:, rows, None] for a in slots.query_data],
        [a[:, None, :] for a in slots.key_data], table,
    )  # fmt: skip
    return jnp.broadcast_to(rule.pairs(pairs), np.broadcast_shapes(
        (1, query_L.shape[0], key_S.shape[0]), *(a.shape for a in pairs.query_data), *(a.shape for a in pairs.key_data)
    ))  # fmt: skip


def _unit(column: jax.Array, size: int, count: int) -> jax.Array:
    return jnp.clip(column // size, 0, count - 1)
