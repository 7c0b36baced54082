"""The blocks of pairs that a kernel visits, in order, and its work in each.

Where mask and offset are known when compiling, so are the visits (numpy); where a mask reads arrays (segments,
prefixes) they are found at run time from the least and greatest number in each block: one pass over [B, T] integers.
Must not know how a kernel computes.

Letters: B batch (1 where all rows are alike), R query blocks, C key blocks, P visits, L queries, S keys.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.masks import Blocks, Mask
from pallas_kernels.rules import Ranges, Rule, Slots, Span, both

EMPTY, PARTIAL, FULL = 0, 1, 2  # what a block is: no pair allowed, some, all


class Corner(NamedTuple):
    """Sub-blocks, known when compiling, of blocks that a mask cuts by position, as causal masks do.

    Attributes:
      there: [R, C], whether a block is cut so.
      possible: [queries, keys] of sub-blocks: False where no such block has an allowed pair.
      whole: where every such block allows all pairs.
    """

    there: np.ndarray
    possible: np.ndarray
    whole: np.ndarray


class BlockMask(NamedTuple):
    """A mask cut into blocks.

    Attributes:
      rule, slots: rule and slots of the mask and of the end of the keys.
      possible: [R, C] numpy, False where a block is empty whatever the data.
      kinds: [B, R, C] int32 of EMPTY, PARTIAL, FULL; numpy where it is known when compiling.
      query_block, key_block: sizes.
      corner: sub-blocks of cut blocks, if they spare work.
      rest: rule to evaluate in the other blocks.
    """

    rule: Rule
    slots: Slots
    possible: np.ndarray
    kinds: Any
    query_block: int
    key_block: int
    corner: Corner | None = None
    rest: Rule | None = None

    @property
    def static(self) -> bool:
        return isinstance(self.kinds, np.ndarray)

    @property
    def kinds_there(self) -> tuple[int, ...]:
        """Kinds that may occur: a kernel has code for these only."""
        if self.static:
            return tuple(int(kind) for kind in np.unique(self.kinds))
        return EMPTY, PARTIAL, FULL

    @property
    def partial_beside_corners(self) -> bool:
        """Whether there may be blocks that need the mask and have no known sub-blocks."""
        if self.corner is None:
            return PARTIAL in self.kinds_there
        partial = self.kinds == PARTIAL if self.static else self.possible[None]
        return bool((partial & ~self.corner.there).any())


def cut(
    mask: Mask, queries: int, keys: int, q_offset: int | jax.Array, query_block: int, key_block: int,
    sub: tuple[int, int] | None = None,
) -> BlockMask:  # fmt: skip
    """The mask in blocks; the last ones may reach over the end, where no key is allowed and queries see what they like.

    Args:
      mask: allowed pairs of query and key.
      queries, keys: lengths.
      q_offset: column of the first query.
      query_block, key_block: sizes of blocks.
      sub: (queries, keys) of the sub-blocks of corners; None: no corners.
    """
    slots = Slots(queries, keys, q_offset)
    rule = mask.rule(slots)
    R, C = -(-queries // query_block), -(-keys // key_block)
    query, key = _columns(queries, keys, q_offset, R, C, query_block, key_block)
    bound = rule.blocks(Ranges(query, key))
    known = not any(isinstance(x, jax.Array) for x in bound)
    possible = np.broadcast_to(np.asarray(bound[0]), (1, R, C))[0] if known else np.ones((R, C), bool)
    some, all_ = bound
    if slots.query_data or slots.key_data:
        some, all_ = rule.blocks(
            Ranges(
                query, key,
                [_spans(a, query_block, R, (slice(None), slice(None), None)) for a in slots.query_data],
                [_spans(a, key_block, C, (slice(None), None, slice(None))) for a in slots.key_data],
            )
        )  # fmt: skip
    if keys % key_block:  # the last block has places without a key
        inside = Rule(lambda pairs: pairs.key < keys, lambda r: (True, r.key.high + 1 < np.int32(keys)))
        rule, all_ = both(rule, inside), all_ & inside.blocks(Ranges(query, key))[1]
    xp = jnp if any(isinstance(x, jax.Array) for x in (some, all_)) else np
    kinds = xp.where(some, xp.where(all_, FULL, PARTIAL), EMPTY).astype(np.int32)
    kinds = xp.where(possible, xp.broadcast_to(kinds, (kinds.shape[0] if kinds.ndim == 3 else 1, R, C)), EMPTY)
    blocks = BlockMask(rule, slots, possible, kinds, query_block, key_block)
    if sub is None or not known or isinstance(q_offset, jax.Array):
        return blocks
    corner = _corner(blocks, q_offset, sub)
    rest = possible if corner is None else possible & ~corner.there
    return blocks._replace(corner=corner, rest=_needed(rule, Ranges(query, key), rest))


def _needed(rule: Rule, ranges: Ranges, where: np.ndarray) -> Rule:
    """The parts of a rule that forbid something in the blocks ``where``."""
    allowed = {part: np.broadcast_to(part.blocks(ranges)[1], (1, *where.shape))[0] for part in rule.parts}
    parts = [part for part, everywhere in allowed.items() if not everywhere[where].all()]
    return functools.reduce(both, parts) if parts else rule


def _columns(
    queries: int, keys: int, q_offset: Any, R: int, C: int, query_block: int, key_block: int
) -> tuple[Span, Span]:
    """First and last columns of blocks, [1, R, 1] and [1, 1, C]."""
    first_R, first_C = np.arange(R, dtype=np.int32) * query_block, np.arange(C, dtype=np.int32) * key_block
    last_R, last_C = np.minimum(first_R + query_block, queries) - 1, np.minimum(first_C + key_block, keys) - 1
    offset = q_offset if isinstance(q_offset, jax.Array) else np.int32(q_offset)
    query = Span((first_R + offset)[None, :, None], (last_R + offset)[None, :, None], None)
    return query, Span(first_C[None, None, :], last_C[None, None, :], None)


def _corner(blocks: BlockMask, q_offset: int | jax.Array, sub: tuple[int, int]) -> Corner | None:
    """Sub-blocks of the blocks in which positions alone forbid some."""
    R, C = blocks.possible.shape
    queries, keys = blocks.slots.queries, blocks.slots.keys
    rows, columns = blocks.query_block // sub[0], blocks.key_block // sub[1]
    query, key = _columns(queries, keys, q_offset, R * rows, C * columns, *sub)
    there = (query.low - np.int32(q_offset) < queries) & (key.low < keys)  # the others lie behind the end
    some, all_ = (np.broadcast_to(x, there.shape) & there for x in blocks.rule.blocks(Ranges(query, key)))
    all_ = all_ & (key.low + sub[1] <= keys) & blocks.static
    some, all_ = (x[0].reshape(R, rows, C, columns).transpose(0, 2, 1, 3) for x in (some, all_))
    cut_there = blocks.possible & ~some.all((2, 3))
    if not cut_there.any():
        return None
    possible, whole = some[cut_there].any(0), all_[cut_there].all(0)
    return Corner(cut_there, possible, whole) if whole.any() or not possible.all() else None


def _spans(array: jax.Array, block: int, count: int, place: tuple) -> Span:
    """Of [B, L]: of each block, put where ``place`` says."""
    padded = jnp.pad(array, ((0, 0), (0, count * block - array.shape[1])), mode="edge").reshape(-1, count, block)
    positive = jnp.where(padded > 0, padded, jnp.iinfo(jnp.int32).max)
    return Span(*(x[place] for x in (padded.min(-1), padded.max(-1), positive.min(-1))))


class Visits(NamedTuple):
    """Blocks in the order in which they are visited, each as one int32 (see ``pack``).

    Attributes:
      packed: [B, P]; after an example's last one come visits that do nothing.
      count: length of the longest list: an int, or int32 found at run time.
      possible: query and key blocks that may be visited, in order.
    """

    packed: Any
    count: Any
    possible: tuple[np.ndarray, np.ndarray]


def words_of(mask: Blocks, key_block: int, key_blocks: int) -> np.ndarray:
    """[C, W, R] int32: bit n of word w says whether row r of the mask's table sees the unit 32 w + n of key block c.

    Units are as many keys as divide both the mask's blocks and the kernel's.
    """
    unit = math.gcd(mask.size, key_block)
    rows, columns = mask.shape
    seen = mask.table[:, np.minimum(np.arange(key_blocks * key_block // unit) * unit // mask.size, columns - 1)]
    bits = seen.reshape(rows, key_blocks, -1)
    bits = np.pad(bits, ((0, 0), (0, 0), (0, -bits.shape[2] % 32))).reshape(rows, key_blocks, -1, 32).astype(np.uint32)
    return (bits << np.arange(32, dtype=np.uint32)).sum(-1, dtype=np.uint32).view(np.int32).transpose(1, 2, 0)


FIRST, LAST, COMPUTE, WHOLE, CUT = 1, 2, 4, 8, 16  # of its row (or column); some allowed pair; all allowed; a corner
_FLAGS, _BITS = 5, 13


def pack(query: Any, key: Any, flags: Any) -> Any:
    """int32 of 13 bits of each block's number over 5 bits of flags."""
    return (query << (_BITS + _FLAGS)) | (key << _FLAGS) | flags


def unpack(visit: Any) -> tuple[Any, Any, Any]:
    """(query block, key block, flags)."""
    return (visit >> (_BITS + _FLAGS)) & (2**_BITS - 1), (visit >> _FLAGS) & (2**_BITS - 1), visit & (2**_FLAGS - 1)


def plan(blocks: BlockMask, by: str) -> Visits:
    """The visits of all blocks that are not empty, and of one block in each row (or column) that has no other.

    Args:
      blocks: the mask.
      by: order of visits. ``query``: all keys of a query block in turn; ``key``: the other way round.

    Raises:
      ValueError: more blocks than can be numbered.
    """
    R, C = blocks.possible.shape
    if max(R, C) >= 2**_BITS:
        got = f"attention: {max(R, C)} blocks along the sequence"
        raise ValueError(f"{got}; allowed: {2**_BITS - 1}; try larger blocks")
    xp: Any = np if blocks.static else jnp
    possible, kinds = blocks.possible, blocks.kinds
    if by == "key":
        possible, kinds = possible.T, kinds.transpose(0, 2, 1)
    possible = possible.copy()
    possible[~possible.any(1), 0] = True  # something must write the output
    rows, columns = np.nonzero(possible)
    kind_BP = kinds[:, rows, columns]
    lead = np.r_[True, rows[1:] != rows[:-1]]  # the first possible visit of each row
    busy = (kinds != EMPTY).any(2)
    wanted = (kind_BP != EMPTY) | (lead[None] & ~busy[:, rows])
    # what is wanted goes to the front, in order
    place = np.arange(len(rows), dtype=np.int32)[None]
    order = xp.sort(place + xp.where(wanted, np.int32(0), np.int32(len(rows))), axis=1) % np.int32(len(rows))
    count_B = wanted.sum(1)
    row_BP, column_BP = xp.asarray(rows)[order], xp.asarray(columns)[order]
    kind_BP = xp.take_along_axis(kind_BP, order, axis=1)
    there = place < count_B[:, None]
    first = xp.concatenate([xp.ones_like(there[:, :1]), row_BP[:, 1:] != row_BP[:, :-1]], axis=1)
    last = xp.concatenate([first[:, 1:], xp.ones_like(there[:, :1])], axis=1) | (place == count_B[:, None] - 1)
    told = [(first, FIRST), (last, LAST), (kind_BP != EMPTY, COMPUTE), (kind_BP == FULL, WHOLE)]
    query, key = (row_BP, column_BP) if by == "query" else (column_BP, row_BP)
    if blocks.corner is not None:
        told.append((xp.asarray(blocks.corner.there)[query, key], CUT))
    flags = sum(xp.where(is_so, np.int32(flag), np.int32(0)) for is_so, flag in told)
    packed = pack(query, key, flags)
    # the rest repeats the blocks of the last visit, so that nothing is fetched or computed
    final = xp.take_along_axis(packed, count_B[:, None] - 1, axis=1)
    packed = xp.where(there, packed, final & ~(2**_FLAGS - 1)).astype(np.int32)
    count = count_B.max()
    may = (rows, columns) if by == "query" else (columns, rows)
    if xp is np:
        return Visits(packed[:, : int(count)], int(count), may)
    return Visits(packed, count.astype(jnp.int32), may)
