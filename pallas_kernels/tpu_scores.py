"""Shared by the TPU kernels: their operands, and the scores of a block with mask, bias and dropout applied.

Blocks of scores are held transposed, [keys, queries]: maxima, sums, log-sum-exps and everything else that belongs to a
query is then one row of lanes, which costs a sixteenth of a column and is stored without padding. All exponentials have
base 2: log2(e) is folded into the scale and into the biases.

Must not know the order of the products of the forward or backward pass.

Letters: B batch, H query heads, K key heads, L queries, S keys, N size of a head, bq and bk sizes of a block.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from pallas_kernels.biases import Alibi, Dense, T5Relative
from pallas_kernels.blocks import LANES
from pallas_kernels.dropout import kept, stream
from pallas_kernels.rules import Pairs
from pallas_kernels.tpu_tiles import Near, distance_tiles
from pallas_kernels.visits import COMPUTE, CUT, FULL, PARTIAL, WHOLE, BlockMask, Corner, words_of

LOG2E = math.log2(math.e)
MASKED = -1e30  # of a pair that is not allowed
FLOOR = -0.5e30  # of a row's maximum: far above MASKED, so that a row of masked pairs has exponentials of 0
ONES = 16  # rows of ones under the values: a packed register's
# the scalars of a call, in SMEM
Q_OFFSET, SEED, FIRST_ROW, FIRST_HEAD, FIRST_TILE = range(5)

Refs = Mapping[str, Any]


class Operand(NamedTuple):
    """An input or output of a kernel.

    Attributes:
      array: the array, or its shape and dtype.
      block: sizes of a block, None where one element is dropped; None: the whole, in scalar memory.
      index: (b, h, query block, key block) -> block.
      once: whether one buffer suffices, because it rarely changes.
    """

    array: Any
    block: tuple[int | None, ...] | None
    index: Callable[[Any, Any, Any, Any], tuple[Any, ...]] = lambda b, h, i, j: ()
    once: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """The arguments of a call that a kernel's code depends on.

    Attributes:
      blocks: the mask in blocks.
      scale, soft_cap: scale and cap of the scores; a cap of 0 is off.
      bias: kind of the bias and, for T5's, the bank's tiles; arrays are operands.
      near, reach: blocks near the diagonal, and reach, of T5's bias.
      dropout_rate: rate of dropout; 0 is off.
      sums_by_matmul: whether the matrix unit adds up the exponentials of the forward pass.
      heads, key_heads: H and K.
      interpret: as for ``pallas_call``.
      vmem_bytes: memory that a kernel may use; 0 is the compiler's own limit.
    """

    blocks: BlockMask
    scale: float
    soft_cap: float
    bias: str  # "", "t5", "alibi", "dense"
    near: Near | None
    reach: int
    dropout_rate: float
    sums_by_matmul: bool
    heads: int
    key_heads: int
    interpret: Any
    vmem_bytes: int

    @property
    def bq(self) -> int:
        return self.blocks.query_block

    @property
    def bk(self) -> int:
        return self.blocks.key_block

    @property
    def tiles(self) -> Near:
        """Of T5's bias."""
        assert self.near is not None
        return self.near

    @property
    def group(self) -> int:
        return self.heads // self.key_heads


def mask_operands(problem: Problem) -> dict[str, Operand]:
    """Numbers of queries and keys that the mask compares: rows of lanes, and columns."""
    slots, bq, bk = problem.blocks.slots, problem.bq, problem.bk
    R, C = problem.blocks.possible.shape
    found: dict[str, Operand] = {}
    if PARTIAL not in problem.blocks.kinds_there and problem.blocks.corner is None:
        return found

    def row(array: jax.Array, length: int) -> jax.Array:
        return jnp.pad(array, ((0, 0), (0, length - array.shape[1])))[:, None]

    for n, array in enumerate(slots.query_data):
        index = lambda b, h, i, j, many=array.shape[0] > 1: (b if many else 0, 0, i)  # noqa: E731
        found[f"query_{n}"] = Operand(row(array, R * bq), (None, 1, bq), index)
    for n, array in enumerate(slots.key_data):
        many = array.shape[0] > 1
        # Turned into columns here, the same in all lanes: in a kernel that would cost an eighth of a block's time.
        column = jnp.broadcast_to(row(array, C * bk)[:, 0, :, None], (array.shape[0], C * bk, LANES))
        found[f"key_{n}"] = Operand(column, (None, bk, LANES), lambda b, h, i, j, many=many: (b if many else 0, j, 0))
    for n, mask in enumerate(slots.tables):
        unit = jnp.clip((jnp.arange(slots.queries, dtype=jnp.int32) + slots.offset) // mask.size, 0, mask.shape[0] - 1)
        words = jnp.asarray(words_of(mask, bk, C))[:, :, unit]
        words = jnp.pad(words, ((0, 0), (0, 0), (0, R * bq - words.shape[2])))
        found[f"words_{n}"] = Operand(words, (None, words.shape[1], bq), lambda b, h, i, j: (j, 0, i))
    return found


def block_operands(problem: Problem, arrays: Mapping[str, jax.Array]) -> dict[str, Operand]:
    """Arrays of queries, keys and values, and of one number for each query (``lse``, ``delta``), block by block."""
    bq, bk, G = problem.bq, problem.bk, problem.group
    found = {}
    for name, array in arrays.items():
        size = array.shape[3]
        if name in ("k", "v"):
            found[name] = Operand(array, (None, None, bk, size), lambda b, h, i, j: (b, jax.lax.div(h, G), j, 0))
        elif name in ("lse", "delta"):
            found[name] = Operand(array, (None, None, 1, bq), lambda b, h, i, j: (b, h, 0, i))
        else:
            found[name] = Operand(array, (None, None, bq, size), lambda b, h, i, j: (b, h, i, 0))
    return found


class Visit(NamedTuple):
    """Where a kernel is; scalars."""

    b: Any
    h: Any
    i: Any
    j: Any
    flags: Any


class Case(NamedTuple):
    """A kind of block that code is made for.

    Attributes:
      partial: whether pairs must be tested.
      corner: its known sub-blocks.
      bias: "" (none, or a constant), "far" (a constant), "t5", "alibi" or "dense".
      tile: index of a near block's tile.
    """

    partial: bool
    corner: Corner | None
    bias: str
    tile: Any = None

    def visible(self, ks: slice, qs: slice) -> bool:
        """Whether a sub-block may have allowed pairs."""
        return self.corner is None or bool(_sub_blocks(self.corner.possible, ks, qs).any())

    def asks(self, ks: slice, qs: slice) -> bool:
        """Whether pairs of a sub-block must be tested."""
        return self.partial and not (self.corner is not None and _sub_blocks(self.corner.whole, ks, qs).all())


def _sub_blocks(pattern: np.ndarray, ks: slice, qs: slice) -> np.ndarray:
    """The entries [queries, keys] of a corner's pattern that a sub-block touches."""
    return pattern[qs.start // LANES : -(-qs.stop // LANES), ks.start // LANES : -(-ks.stop // LANES)]


def for_each_case(problem: Problem, visit: Visit, refs: Refs, body: Callable[[Case], None]) -> None:
    """Calls ``body`` under the conditions of each case that can occur."""
    blocks = problem.blocks
    whole, some, corner = (((visit.flags & bit) != 0) for bit in (WHOLE, COMPUTE, CUT))
    cases = []
    if blocks.corner is not None:
        cases.append((Case(True, blocks.corner, problem.bias), some & corner))
        some, whole = some & ~corner, whole & ~corner
    if blocks.partial_beside_corners:
        cases.append((Case(True, None, problem.bias), some & ~whole))
    if FULL in blocks.kinds_there:
        cases.append((Case(False, None, problem.bias), whole))
    for case, condition in cases:
        if problem.bias != "t5":
            pl.when(condition)(functools.partial(body, case))
            continue
        local = visit.j * problem.bk - visit.i * problem.bq
        tile = jax.lax.div(local - refs["scalars"][FIRST_TILE], problem.tiles.step)
        offset = local - refs["scalars"][Q_OFFSET]  # near: some distance in the block is under the reach
        near = (offset + problem.bk - 1 > -problem.reach) & (offset - problem.bq + 1 < problem.reach)
        pl.when(condition & near)(functools.partial(body, case._replace(tile=tile)))
        pl.when(condition & ~near)(functools.partial(body, case._replace(bias="far")))


class Columns:
    """Makes what pairs of a sub-block are compared by; the stream of dropout once.

    Args:
      problem, refs, visit: arguments of the kernel.
    """

    def __init__(self, problem: Problem, refs: Refs, visit: Visit):
        self.problem, self.refs, self.visit = problem, refs, visit
        self._stream: jax.Array | None = None

    def query(self, qs: slice) -> jax.Array:
        """[1, width] int32 columns of queries."""
        start = self.visit.i * self.problem.bq + self.refs["scalars"][Q_OFFSET] + qs.start
        return start + jax.lax.broadcasted_iota(jnp.int32, (1, qs.stop - qs.start), 1)

    def key(self, ks: slice) -> jax.Array:
        """[height, 1] int32 columns of keys."""
        start = self.visit.j * self.problem.bk + ks.start
        return start + jax.lax.broadcasted_iota(jnp.int32, (ks.stop - ks.start, 1), 0)

    def allowed(self, ks: slice, qs: slice, case: Case) -> jax.Array:
        """[height, width] booleans of the mask."""
        problem, refs = self.problem, self.refs
        slots = problem.blocks.slots
        width = qs.stop - qs.start

        def table(slot: int) -> jax.Array:
            key = ks.start + jax.lax.broadcasted_iota(jnp.int32, (ks.stop - ks.start, 1), 0)
            unit = jax.lax.div(key, math.gcd(slots.tables[slot].size, problem.bk))
            words = refs[f"words_{slot}"]
            seen = words[0:1, qs]
            for n in range(1, words.shape[0]):
                seen = jnp.where(unit < 32 * n, seen, words[n : n + 1, qs])
            return (jax.lax.shift_right_logical(*jnp.broadcast_arrays(seen, unit & 31)) & 1) != 0

        pairs = Pairs(
            self.query(qs), self.key(ks),
            [refs[f"query_{n}"][:, qs] for n in range(len(slots.query_data))],
            [widened(refs[f"key_{n}"][ks], width) for n in range(len(slots.key_data))], table,
        )  # fmt: skip
        rule = problem.blocks.rest if case.corner is None and problem.blocks.rest is not None else problem.blocks.rule
        return jnp.broadcast_to(rule.pairs(pairs), (ks.stop - ks.start, width))

    def distance(self, ks: slice, qs: slice) -> jax.Array:
        """[height, width] float32, |key - query|."""
        return jnp.abs(self.key(ks).astype(jnp.float32) - self.query(qs).astype(jnp.float32))

    def kept(self, ks: slice, qs: slice) -> jax.Array:
        """[height, width] booleans of dropout."""
        scalars = self.refs["scalars"]
        if self._stream is None:
            self._stream = stream(scalars[SEED], scalars[FIRST_ROW] + self.visit.b, scalars[FIRST_HEAD] + self.visit.h)
        return kept(self.problem.dropout_rate, self._stream, self.query(qs), self.key(ks))


def widened(column: jax.Array, width: int) -> jax.Array:
    """[height, 128], the same in all lanes -> [height, width]."""
    return column if width == LANES else jnp.concatenate([column] * (width // LANES), axis=1)


def scores(
    product: jax.Array, columns: Columns, ks: slice, qs: slice, case: Case
) -> tuple[jax.Array, jax.Array | None]:
    """The scores of a sub-block from the product of its keys and queries.

    Args:
      product: [height, width] float32.
      columns: columns of the block.
      ks, qs: place of the sub-block in the block.
      case: kind of the block.

    Returns:
      [height, width] float32, times log2(e), MASKED where not allowed, a constant bias left out; and the tanh of the
      soft cap, if there is one.
    """
    problem, refs = columns.problem, columns.refs
    tanh = None
    if problem.soft_cap:
        tanh = jnp.tanh(product * (problem.scale / problem.soft_cap))
        value = tanh * (problem.soft_cap * LOG2E)
    else:
        value = product * (problem.scale * LOG2E)
    if case.bias == "t5":
        value = value + refs["bank"][case.tile, ks, qs]
    elif case.bias == "alibi":
        value = value - columns.distance(ks, qs) * refs["slopes"][columns.visit.h]
    elif case.bias == "dense":
        value = value + refs["dense"][ks, qs].astype(jnp.float32) * LOG2E
    if case.asks(ks, qs):
        value = jnp.where(columns.allowed(ks, qs, case), value, MASKED)
    return value, tanh


def is_right(problem: Problem, refs: Refs, visit: Visit) -> Any:
    """Whether a block far from the diagonal lies to its right."""
    return visit.j * problem.bk > visit.i * problem.bq + refs["scalars"][Q_OFFSET]


def constant(problem: Problem, refs: Refs, visit: Visit, case: Case) -> Any:
    """The bias of a whole block that is far from the diagonal, times log2(e); 0.0 elsewhere."""
    if case.bias != "far":
        return 0.0
    return jnp.where(is_right(problem, refs, visit), refs["far"][1, visit.h], refs["far"][0, visit.h])


def bias_operands(bias: Any, problem: Problem, q_offset: Any) -> dict[str, Operand]:
    """The operands of a bias."""
    if isinstance(bias, T5Relative):
        windows, far = t5_arrays(bias, problem, q_offset)
        return {
            "windows": Operand(windows, (None, *windows.shape[1:]), lambda b, h, i, j: (h, 0, 0)),
            "far": Operand(far, None),
        }
    if isinstance(bias, Alibi):
        return {"slopes": Operand(bias.slopes_H.astype(jnp.float32) * LOG2E, None)}
    if isinstance(bias, Dense):
        R, C = problem.blocks.possible.shape
        many_b, many_h = bias.array.shape[0] > 1, bias.array.shape[1] > 1
        array = bias.array.swapaxes(2, 3)
        missing = (C * problem.bk - array.shape[2], R * problem.bq - array.shape[3])
        array = jnp.pad(array, ((0, 0), (0, 0), (0, missing[0]), (0, missing[1])))
        block = (None, None, problem.bk, problem.bq)
        return {"dense": Operand(array, block, lambda b, h, i, j: (b if many_b else 0, h if many_h else 0, j, i))}
    return {}


def t5_arrays(bias: T5Relative, problem: Problem, q_offset: Any) -> tuple[jax.Array, jax.Array]:
    """([H, count, bq + bk], [2, H]) float32, times log2(e): each tile's row of distances; the bias far to the left and
    far to the right. Linear in the table: its transpose is the table's gradient."""
    distance = distance_tiles(problem.tiles, problem.bq, problem.bk, q_offset)
    ends = jnp.asarray([-problem.reach, problem.reach], jnp.int32)
    windows, far = (bias.of_distance(d).astype(jnp.float32) * LOG2E for d in (distance, ends))
    return windows, far.T
