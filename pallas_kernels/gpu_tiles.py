"""Shared by the GPU kernels of both directions: the tiles that a program visits, and the scores of a tile.

A tile is a block of queries times a block of keys. Each block of queries (or of keys) has a list of the tiles that it
visits: first the easy ones, in which every pair is allowed and a T5 bias is one number, then the hard ones, in which
each pair is tested. Empty tiles are in no list. Must not know who makes the lists (``gpu_plan``), gradients, or what a
kernel writes.

Letters: B batch, L queries, S keys, H query heads, K key heads, N size of a query or key head, V size of a value head,
I query blocks, J key blocks, P visits, D distances, R query units of a ``Blocks`` mask, W words.
"""

from __future__ import annotations

import functools
import math
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.dropout import kept
from pallas_kernels.masks import Blocks
from pallas_kernels.rules import Pairs, Rule

LOG2E = math.log2(math.e)
UNSEEN = -1e30  # the score of a pair that is not allowed; finite, so that no difference of two is NaN
FLOOR = -0.5e30  # where a running maximum starts: above UNSEEN, so that 2^(UNSEEN - maximum) is 0 in any row
CEILING = 0.5e30  # the log-sum-exp of a row that sees nothing, for the backward pass: 2^(score - CEILING) is 0


class Launch(NamedTuple):
    """How a kernel is launched: sizes of its blocks, warps of a program, stages of its software pipeline."""

    queries: int
    keys: int
    warps: int
    stages: int


class Options(NamedTuple):
    """Arguments of a call known when compiling, besides shapes.

    Attributes:
      scale, soft_cap: scale and cap of the scores; a cap of 0 is none.
      rate: rate of dropout.
      q_offset: column of the first query; None if it is an array.
      forward, for_queries, for_keys: launches of the three kernels.
      interpret: whether to run in the interpreter.
    """

    scale: float
    soft_cap: float
    rate: float
    q_offset: int | None
    forward: Launch
    for_queries: Launch
    for_keys: Launch
    interpret: bool


class Data(NamedTuple):
    """Arrays that a kernel reads besides queries, keys and values; in a kernel, references to them. Bias arrays and
    sinks are float32, and in units of log 2 except ``dense``.

    Attributes:
      offset_1: column of the first query.
      visits: [1 or B, 1 or I, P] (or J for I): blocks to visit, the easy ones first; a block may use less than all.
      counts: [1 or B, I, 2]: numbers of easy blocks and of all blocks.
      query_data, key_data: numbers of the mask's ``Slots``.
      words: for each ``Blocks`` mask [J, W, R] int32, see ``visits.words_of``.
      streams_BH: streams of dropout.
      distances_HD: T5 bias by distance. slopes_H: ALiBi. dense: [1 or B, 1 or H, L, S].
      sinks_H: scores of the sinks.
    """

    offset_1: Any
    visits: Any
    counts: Any
    query_data: tuple = ()
    key_data: tuple = ()
    words: tuple = ()
    streams_BH: Any = None
    distances_HD: Any = None
    slopes_H: Any = None
    dense: Any = None
    sinks_H: Any = None


class Sizes(NamedTuple):
    """Sizes of a call; see the letters."""

    B: int
    L: int
    S: int
    H: int
    K: int
    N: int
    V: int

    @classmethod
    def of(cls, q_BLHN, k_BSKN, v_BSKV) -> Sizes:
        B, L, H, N = q_BLHN.shape
        return cls(B, L, k_BSKN.shape[1], H, k_BSKN.shape[2], N, v_BSKV.shape[3])

    @property
    def group(self) -> int:
        return self.H // self.K


class HeadPart(NamedTuple):
    """A part of a head of a size that is a power of 2, as Triton wants it: its start, its size, how much is there."""

    start: int
    size: int
    valid: int


def pieces(size: int) -> tuple[HeadPart, ...]:
    """A head in at most two pieces; the last one may reach over the end: 80 is 64 + 16, 112 is 128."""
    first = max(16, 1 << (size.bit_length() - 1))
    rest = size - first
    if rest <= 0:
        return (HeadPart(0, first, size),)
    second = max(16, pl.next_power_of_2(rest))
    if second >= first:
        return (HeadPart(0, 2 * first, size),)
    return HeadPart(0, first, first), HeadPart(first, second, rest)


def dot(a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
    """Product in float32. HIGHEST, because anything less lets Triton round float32 operands to tf32."""
    return lax.dot_general(
        a, b, (((contract[0],), (contract[1],)), ((), ())), precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )  # fmt: skip


def _place(part: HeadPart, number: jax.Array):
    """A slice; with a start that is not static where it reaches over the end, which JAX refuses of static ones."""
    return pl.ds(part.start if part.valid == part.size else number * 0 + part.start, part.size)


def _there(start, size: int, length: int, part: HeadPart) -> jax.Array | None:
    """Which elements of a piece of rows are in the array; None: all."""
    masks = [lax.expand_dims(start + iota(size) < length, (1,))] if length else []
    if part.valid < part.size:
        masks.append(lax.expand_dims(iota(part.size) < part.valid, (0,)))
    return jnp.broadcast_to(functools.reduce(operator.and_, masks), (size, part.size)) if masks else None


def load_rows(ref, b, start, size: int, head, length: int, parts: tuple[HeadPart, ...]) -> list[jax.Array]:
    """Rows of one head of [B, length, heads, N], in pieces; 0 beyond the ends. ``length`` 0: no row is beyond."""
    out = []
    for part in parts:
        mask, view = _there(start, size, length, part), ref.at[b, pl.ds(start, size), head, _place(part, b)]
        out.append(plgpu.load(view, mask=mask, other=None if mask is None else 0.0))
    return out


def store_rows(
    ref, values: list[jax.Array], b, start, size: int, head, length: int, parts: tuple[HeadPart, ...]
) -> None:
    """The reverse of ``load_rows``; in the dtype of what is written."""
    for part, value in zip(parts, values, strict=True):
        view = ref.at[b, pl.ds(start, size), head, _place(part, b)]
        plgpu.store(view, value.astype(ref.dtype), mask=_there(start, size, length, part))


def load_vector(ref, b, head, start, size: int, length: int, other: float) -> jax.Array:
    """Of [B, H, length]; ``length`` as for ``load_rows``."""
    view = ref.at[b, head, pl.ds(start, size)]
    return plgpu.load(view, mask=start + iota(size) < length, other=other) if length else plgpu.load(view)


def iota(size: int) -> jax.Array:
    return lax.iota(jnp.int32, size)


class Tile(NamedTuple):
    """Where a program is: example, query head, query block, key block."""

    b: Any
    head: Any
    i: Any
    j: Any


class Plan(NamedTuple):
    """Arguments of one kernel known when compiling.

    Attributes:
      options, shape, launch: options, sizes and launch of the call.
      rule: rule of the mask.
      tables: tables of blocks of the mask.
      reach: (least, greatest) distance at which a T5 bias may still change; None without one.
      kinds: whether there may be (easy, hard) tiles.
      pairs: number of pairs that all tiles have, or may have.
      keys_first: whether a tile is [keys, queries].
    """

    options: Options
    shape: Sizes
    launch: Launch
    rule: Rule
    tables: tuple[Blocks, ...]
    reach: tuple[int, int] | None
    kinds: tuple[bool, bool]
    pairs: int
    keys_first: bool

    @property
    def blocks(self) -> tuple[int, int]:
        return -(-self.shape.L // self.launch.queries), -(-self.shape.S // self.launch.keys)

    @property
    def ragged_queries(self) -> int:
        """The number of queries if the last block reaches over it, else 0."""
        return self.shape.L if self.shape.L % self.launch.queries else 0

    @property
    def ragged_keys(self) -> int:
        return self.shape.S if self.shape.S % self.launch.keys else 0

    def by_query(self, vector: jax.Array) -> jax.Array:
        """A vector over queries laid along its axis of the tile."""
        return lax.expand_dims(vector, (0,) if self.keys_first else (1,))

    def by_key(self, vector: jax.Array) -> jax.Array:
        return lax.expand_dims(vector, (1,) if self.keys_first else (0,))

    def places(self, data: Data, tile: Tile) -> tuple[jax.Array, jax.Array]:
        """Columns of the queries and keys, laid along their axes."""
        query = tile.i * self.launch.queries + plgpu.load(data.offset_1.at[tile.b * 0]) + iota(self.launch.queries)
        return self.by_query(query), self.by_key(tile.j * self.launch.keys + iota(self.launch.keys))

    def visit(self, data: Data, tile: Tile, step, carry):
        """Runs ``step(tile, hard, carry)`` for all tiles of a block: of its queries, or of its keys and then for each
        head of the group. The block of ``tile`` that is not set is filled in."""
        example = choose(tile.b, data.counts.shape[0])
        block = tile.j if self.keys_first else tile.i
        row = choose(block, data.visits.shape[1])
        heads = self.shape.group if self.keys_first else 1
        easy = plgpu.load(data.counts.at[example, block, tile.b * 0])
        total = plgpu.load(data.counts.at[example, block, tile.b * 0 + 1])
        for hard, first, count in ((False, jnp.int32(0), easy), (True, easy, total - easy)):
            if not self.kinds[hard]:
                continue

            def body(n, carry, hard=hard, first=first, count=count):
                head = tile.head
                if heads > 1:  # one loop over heads and tiles, so that loads of the next head are not waited for
                    head, n = tile.head + lax.div(n, count), lax.rem(n, count)
                other = plgpu.load(data.visits.at[example, row, first + n])
                there = Tile(tile.b, head, other, tile.j) if self.keys_first else Tile(tile.b, head, tile.i, other)
                return step(there, hard, carry)

            carry = lax.fori_loop(jnp.int32(0), count * heads, body, carry)
        return carry

    def scores(self, data: Data, tile: Tile, q: list, k: list, hard: bool) -> tuple[jax.Array, jax.Array | None]:
        """Scores in units of log 2, UNSEEN where not allowed; and the tanh of the soft cap, if there is one."""
        first, second = (k, q) if self.keys_first else (q, k)
        score = sum(dot(a, b, (1, 1)) for a, b in zip(first, second, strict=True))
        tanh = None
        if cap := self.options.soft_cap:
            # 1 - 2 / (1 + e^2x) is right to 1e-7 of the cap, which is what a float32 score near it has
            tanh = 1.0 - 2.0 / (1.0 + jnp.exp2(score * (2.0 * LOG2E * self.options.scale / cap)))
            score = tanh * (cap * LOG2E)
        else:
            score = score * (self.options.scale * LOG2E)
        query, key = self.places(data, tile)
        if data.distances_HD is not None:
            score = score + self._relative(data, tile, query, key, hard)
        if data.slopes_H is not None:
            slope = plgpu.load(data.slopes_H.at[tile.head])
            score = score - slope * jnp.abs(key - query).astype(jnp.float32)
        if data.dense is not None:
            view, inside = self.in_dense(data.dense, tile)
            bias = plgpu.load(view, mask=inside, other=None if inside is None else 0.0)
            score = score + bias.astype(jnp.float32) * LOG2E
        if hard:
            seen = self.seen(data, tile, query, key)
            score = jnp.where(seen, score, UNSEEN)
        return jnp.asarray(score), tanh

    def seen(self, data: Data, tile: Tile, query: jax.Array, key: jax.Array) -> jax.Array:
        """Whether each pair is allowed."""

        def of(ref, block, size, length):
            view = ref.at[choose(tile.b, ref.shape[0]), pl.ds(block * size, size)]
            inside = {"mask": block * size + iota(size) < length, "other": 0} if length % size else {}
            return plgpu.load(view, **inside)

        def table(slot: int) -> jax.Array:
            mask, words = self.tables[slot], data.words[slot]
            row = jnp.clip(lax.div(query, jnp.int32(mask.size)), 0, mask.shape[0] - 1)
            unit = lax.div(key - tile.j * self.launch.keys, jnp.int32(math.gcd(mask.size, self.launch.keys)))
            word = plgpu.load(words.at[tile.j, tile.j * 0, row])
            for w in range(1, words.shape[1]):
                word = jnp.where(unit < 32 * w, word, plgpu.load(words.at[tile.j, tile.j * 0 + w, row]))
            word, bit = jnp.broadcast_arrays(word, unit & 31)
            return ((word >> bit) & 1) != 0

        shape, launch = self.shape, self.launch
        return self.rule.pairs(
            Pairs(
                query, key, [self.by_query(of(ref, tile.i, launch.queries, shape.L)) for ref in data.query_data],
                [self.by_key(of(ref, tile.j, launch.keys, shape.S)) for ref in data.key_data], table,
            )
        )  # fmt: skip

    def kept(self, data: Data, tile: Tile) -> jax.Array:
        """Whether dropout keeps each pair."""
        return kept(self.options.rate, plgpu.load(data.streams_BH.at[tile.b, tile.head]), *self.places(data, tile))

    def _relative(self, data: Data, tile: Tile, query, key, hard: bool) -> jax.Array:
        assert self.reach is not None
        low, high = self.reach
        if hard:
            return plgpu.load(data.distances_HD.at[tile.head, jnp.clip(key - query, low, high) - low])
        corner = tile.j * self.launch.keys - tile.i * self.launch.queries - plgpu.load(data.offset_1.at[tile.b * 0])
        return plgpu.load(data.distances_HD.at[tile.head, jnp.clip(corner, low, high) - low])

    def in_dense(self, ref, tile: Tile) -> tuple[Any, jax.Array | None]:
        """A tile's part of [1 or B, 1 or H, L, S], and which pairs are in the array; None if all are."""
        row = self.by_query(tile.i * self.launch.queries + iota(self.launch.queries))
        key = self.by_key(tile.j * self.launch.keys + iota(self.launch.keys))
        b, head = choose(tile.b, ref.shape[0]), choose(tile.head, ref.shape[1])
        ragged = self.ragged_queries or self.ragged_keys
        inside = (row < self.shape.L) & (key < self.shape.S) if ragged else None
        return ref.at[b, head, *jnp.broadcast_arrays(row, key)], inside

    def cost(self, products: tuple[int, int], arrays) -> pl.CostEstimate:
        """Cost of a kernel with these numbers of products of [queries, N] and of [queries, V] for each pair."""
        pairs = self.pairs * self.shape.H
        return pl.CostEstimate(
            flops=2 * pairs * (products[0] * self.shape.N + products[1] * self.shape.V),
            transcendentals=pairs * (2 if self.options.soft_cap else 1),
            bytes_accessed=sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(arrays)),
        )

    def call(self, kernel, grid: tuple[int, ...], out_shape, name: str, cost: pl.CostEstimate, aliases=()):
        """``pallas_call`` with the arguments that all kernels share."""
        return pl.pallas_call(
            kernel, grid=grid, out_shape=out_shape, name=name, cost_estimate=cost, interpret=self.options.interpret,
            input_output_aliases=dict(aliases),
            compiler_params=plgpu.CompilerParams(num_warps=self.launch.warps, num_stages=self.launch.stages),
        )  # fmt: skip


def choose(number: jax.Array, size: int) -> jax.Array:
    """Where to find a number along an axis that may be broadcast; an array, as the interpreter wants it."""
    return number if size > 1 else number * 0

