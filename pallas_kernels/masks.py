"""Masks: the pairs that may attend, as objects and never as a dense array; join them with ``&`` and ``|``.

A mask gives a ``Rule`` (``rules``), which kernels evaluate. Queries and keys are counted along the sequence as stored;
a query's column is its row plus the call's ``q_offset``. Must not know kernels.

Letters: B batch, L queries, S keys.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.rules import Pairs, Ranges, Rule, Slots, both


@dataclasses.dataclass(frozen=True, eq=False)
class Mask:
    """Base of all masks."""

    def axes(self) -> Any:
        """Names of the dimensions of each of its arrays, in its own structure: what a mesh may split them by."""
        return jax.tree.map(lambda _: ("batch", "length"), self)

    def rule(self, slots: Slots) -> Rule:
        """The mask's rule; adds the numbers of queries and keys that it reads to ``slots``."""
        raise TypeError(f"{type(self).__name__} does not say who may attend to whom")

    def __and__(self, other: Mask) -> Mask:
        return other if isinstance(self, Full) else self if isinstance(other, Full) else And(self, other)

    def __or__(self, other: Mask) -> Mask:
        return self if isinstance(self, Full) else other if isinstance(other, Full) else Or(self, other)


@dataclasses.dataclass(frozen=True, eq=False)
class Full(Mask):
    """Every query sees every key."""

    def rule(self, slots):
        return Rule(lambda pairs: pairs.key == pairs.key, lambda ranges: (True, True))


@dataclasses.dataclass(frozen=True, eq=False)
class Causal(Mask):
    """A query sees its own column and those before it."""

    def rule(self, slots):
        return Rule(
            lambda pairs: pairs.key <= pairs.query,
            lambda ranges: (ranges.key.low <= ranges.query.high, ranges.key.high <= ranges.query.low),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class SlidingWindow(Mask):
    """A query sees at most ``left`` columns before its own and ``right`` after it."""

    left: int
    right: int

    def __post_init__(self):
        if min(self.left, self.right) < 0:
            raise ValueError(f"SlidingWindow: got left={self.left}, right={self.right}; allowed: 0 or more")

    def rule(self, slots):
        def pairs(p: Pairs):
            distance = p.key - p.query
            return (distance >= -self.left) & (distance <= self.right)

        def blocks(r: Ranges):
            least, greatest = r.key.low - r.query.high, r.key.high - r.query.low
            return (greatest >= -self.left) & (least <= self.right), (least >= -self.left) & (greatest <= self.right)

        return Rule(pairs, blocks)


@dataclasses.dataclass(frozen=True, eq=False)
class Chunked(Mask):
    """The sequence is cut every ``size`` columns; a query sees the keys of its own chunk."""

    size: int

    def __post_init__(self):
        if self.size < 1:
            raise ValueError(f"Chunked: got size={self.size}; allowed: 1 or more")

    def rule(self, slots):
        query = slots.of_queries((jnp.arange(slots.queries, dtype=jnp.int32) + slots.offset)[None] // self.size)
        key = slots.of_keys(jnp.arange(slots.keys, dtype=jnp.int32)[None] // self.size)

        def blocks(r: Ranges):
            first, last = r.query.low // self.size, r.query.high // self.size
            key_first, key_last = r.key.low // self.size, r.key.high // self.size
            some = (first <= key_last) & (key_first <= last)
            return some, (first == last) & (key_first == key_last) & some

        return Rule(lambda pairs: pairs.query_data[query] == pairs.key_data[key], blocks)


@dataclasses.dataclass(frozen=True, eq=False)
class Prefix(Mask):
    """Every query sees the keys of a prefix: prefix LM is ``Causal() | Prefix(...)``, if packed ``& Segments(...)``.

    Attributes:
      key_prefix: [B] length of each example's prefix; or [B, S], non-zero where a key belongs to a prefix, for rows of
        several examples.
    """

    key_prefix: jax.Array

    def rule(self, slots):
        marks = self.key_prefix
        if marks.ndim == 1:
            marks = (jnp.arange(slots.keys, dtype=jnp.int32)[None, :] < marks[:, None]).astype(jnp.int32)
        key = slots.of_keys((marks != 0).astype(jnp.int32))

        def blocks(r: Ranges):
            return (True, False) if r.key_data is None else (r.key_data[key].high > 0, r.key_data[key].low > 0)

        return Rule(lambda pairs: pairs.key_data[key] != 0, blocks)


@dataclasses.dataclass(frozen=True, eq=False)
class Segments(Mask):
    """A query sees the keys of its own segment, numbered from 1. Segment 0 is padding: it sees nothing and nothing sees
    it."""

    query_BL: jax.Array
    key_BS: jax.Array

    def rule(self, slots):
        # keys of segment 0 get a number that no query has, so that one comparison suffices
        query = slots.of_queries(jnp.maximum(self.query_BL, 0))
        key = slots.of_keys(jnp.where(self.key_BS <= 0, -1, self.key_BS))

        def blocks(r: Ranges):
            if r.query_data is None or r.key_data is None:
                return True, False
            q, k = r.query_data[query], r.key_data[key]
            some = (q.low_positive <= k.high) & (k.low_positive <= q.high)
            return some, (q.low == q.high) & (k.low == k.high) & (q.low == k.low)

        return Rule(lambda pairs: pairs.query_data[query] == pairs.key_data[key], blocks)


@dataclasses.dataclass(frozen=True, eq=False)
class Ordered(Mask):
    """Permutation language modelling (Yang et al. 2019, section 2.3) as numbers: a query with number a sees the keys
    whose number b is 0 < b <= |a|.

    A token that is r-th in the order has 2r + 1, a slot that predicts it -2r, padding 0. So a token sees itself and
    those before it in the order, a slot only those before its token, and nobody sees a slot.
    """

    query_order_BL: jax.Array
    key_order_BS: jax.Array

    def rule(self, slots):
        nobody = jnp.iinfo(jnp.int32).max
        query = slots.of_queries(jnp.abs(self.query_order_BL))
        key = slots.of_keys(jnp.where(self.key_order_BS > 0, self.key_order_BS, nobody))

        def blocks(r: Ranges):
            if r.query_data is None or r.key_data is None:
                return True, False
            q, k = r.query_data[query], r.key_data[key]
            return k.low <= q.high, k.high <= q.low

        return Rule(lambda pairs: pairs.key_data[key] <= pairs.query_data[query], blocks)


@dataclasses.dataclass(frozen=True, eq=False)
class Blocks(Mask):
    """A static choice of blocks of ``size`` x ``size`` pairs: query block i sees key block j where ``blocks[i][j]``."""

    blocks: tuple[tuple[bool, ...], ...]
    size: int

    def __post_init__(self):
        table = np.asarray(self.blocks, bool)
        if table.ndim != 2 or not table.size or self.size < 1:
            got = f"Blocks: got a table of shape {table.shape}, size={self.size}"
            raise ValueError(f"{got}; allowed: [rows, columns], 1 or more")
        object.__setattr__(self, "blocks", tuple(map(tuple, table.tolist())))  # hashable, to be part of a compiled call

    @property
    def table(self) -> np.ndarray:
        return np.asarray(self.blocks, bool)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.blocks), len(self.blocks[0])

    def rule(self, slots):
        need = (-(-slots.queries // self.size), -(-slots.keys // self.size))
        if isinstance(slots.offset, int):
            need = (-(-(slots.queries + slots.offset) // self.size), need[1])
        if self.shape[0] < need[0] or self.shape[1] < need[1]:
            raise ValueError(f"mask: Blocks has {self.shape} blocks of {self.size}; these lengths need {need}")
        slot, table = slots.of_blocks(self), self.table
        # how many allowed blocks lie above and to the left of each corner: any rectangle is four look-ups
        counts = np.pad(table.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))

        def blocks(r: Ranges):
            if not all(isinstance(x, (int, np.ndarray)) for x in (r.query.low, r.query.high)):
                return True, False  # a traced offset: every pair is tested
            rows, columns = table.shape
            q0, q1 = (np.clip(np.asarray(x) // self.size, 0, rows - 1) for x in (r.query.low, r.query.high))
            k0, k1 = (np.clip(np.asarray(x) // self.size, 0, columns - 1) for x in (r.key.low, r.key.high))
            inside = counts[q1 + 1, k1 + 1] - counts[q0, k1 + 1] - counts[q1 + 1, k0] + counts[q0, k0]
            return inside > 0, inside == (q1 - q0 + 1) * (k1 - k0 + 1)

        def pairs(p: Pairs):
            assert p.table is not None
            return p.table(slot)

        return Rule(pairs, blocks)


@dataclasses.dataclass(frozen=True, eq=False)
class BigBird(Mask):
    """Blocks near the diagonal, blocks that see and are seen by all, and random ones (Zaheer et al. 2020, section 2).

    Attributes:
      window: number of blocks around a query's own, odd (3: one to each side).
      globals: number of first blocks that see all and are seen by all.
      random: number of further blocks that each block of queries sees, drawn from the rest.
      seed: seed of the draw.
      size: size of a block.
    """

    window: int = 3
    globals: int = 2
    random: int = 3
    seed: int = 0
    size: int = 64

    def __post_init__(self):
        if self.window < 1 or self.window % 2 == 0 or min(self.globals, self.random) < 0 or self.size < 1:
            raise ValueError(f"BigBird: got {self}; allowed: an odd window, globals and random from 0, size from 1")

    def blocks(self, queries: int, keys: int) -> Blocks:
        """The same for given lengths."""
        rows, columns = -(-queries // self.size), -(-keys // self.size)
        row, column = np.arange(rows)[:, None], np.arange(columns)[None, :]
        table = (np.abs(row - column) <= self.window // 2) | (row < self.globals) | (column < self.globals)
        draw = np.random.default_rng(self.seed)
        for i in range(rows):
            left = np.flatnonzero(~table[i])
            table[i, draw.permutation(left)[: self.random]] = True
        return Blocks(tuple(map(tuple, table.tolist())), self.size)

    def rule(self, slots):
        if not isinstance(slots.offset, int):
            raise ValueError("mask: BigBird needs a q_offset that is known when compiling; Blocks takes a traced one")
        return self.blocks(slots.queries + slots.offset, slots.keys).rule(slots)


@dataclasses.dataclass(frozen=True, eq=False)
class And(Mask):
    """Both allow it."""

    one: Mask
    other: Mask

    def rule(self, slots):
        return both(self.one.rule(slots), self.other.rule(slots))


@dataclasses.dataclass(frozen=True, eq=False)
class Or(Mask):
    """One of both allows it."""

    one: Mask
    other: Mask

    def rule(self, slots):
        one, other = self.one.rule(slots), self.other.rule(slots)

        def blocks(r: Ranges):
            (some, all_), (other_some, other_all) = one.blocks(r), other.blocks(r)
            return some | other_some, all_ | other_all

        return Rule(lambda pairs: one.pairs(pairs) | other.pairs(pairs), blocks)


for _mask in Mask.__subclasses__():
    _fields = dataclasses.fields(_mask)
    _arrays = [field.name for field in _fields if field.type in ("jax.Array", "Mask")]  # the others are static
    jax.tree_util.register_dataclass(_mask, _arrays, [field.name for field in _fields if field.name not in _arrays])
