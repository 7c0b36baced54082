"""Tiles of T5's bias near the diagonal, for the TPU kernels: which there are, how they are filled and folded.

Must not know scores, masks or the order of a kernel's steps.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.blocks import LANES
from pallas_kernels.visits import BlockMask


@dataclasses.dataclass(frozen=True, eq=False)
class Near:
    """Blocks near the diagonal, where a bias by distance differs from pair to pair.

    All blocks whose first key is as far from their first query share one [bk, bq] tile: a bank holds a tile for each of
    ``count`` such offsets, ``step`` apart. It is filled once for a head, and its gradient folded once.

    Attributes:
      count, step: number and spacing of the offsets.
      first: local offset (key block's start minus query block's, without q_offset) of the first tile; int or traced.
    """

    count: int
    step: int
    first: Any


def find_near(blocks: BlockMask, reach: int, q_offset: int | jax.Array) -> Near:
    """The offsets at which a block has a distance between -reach and reach."""
    bq, bk = blocks.query_block, blocks.key_block
    step = math.gcd(bq, bk)
    # offset + bk - 1 > -reach and offset - bq + 1 < reach
    if isinstance(q_offset, jax.Array):
        count = -(-(2 * reach + bq + bk) // step)
        return Near(count, step, (q_offset - reach - bk + 1) // step * step + step)
    R, C = blocks.possible.shape
    local = np.arange(C)[None, :] * bk - np.arange(R)[:, None] * bq
    true = local - q_offset
    near = (true + bk - 1 > -reach) & (true - bq + 1 < reach) & blocks.possible
    if not near.any():
        return Near(1, step, int(local[0, 0]))
    least, greatest = int(local[near].min()), int(local[near].max())
    return Near((greatest - least) // step + 1, step, least)


def distance_tiles(near: Near, bq: int, bk: int, q_offset: int | jax.Array) -> jax.Array:
    """[count, bq + bk] int32: distances of each tile's first row as it is rolled (see ``fill_bank``)."""
    width = bq + bk
    lane = jnp.arange(width, dtype=jnp.int32)
    offset = near.first - q_offset + jnp.arange(near.count, dtype=jnp.int32) * near.step
    return offset[:, None] - jnp.where(lane < bq, lane, lane - width)[None, :]


def fill_bank(near: Near, bq: int, bk: int, refs: Mapping[str, Any]) -> None:
    """Expands the tiles of T5's bias: row j of a tile is its row of distances rolled by j lanes."""
    width = bq + bk

    def some_rows(tile, start):
        row = pltpu.roll(refs["windows"][pl.ds(tile, 1)], start, 1)
        rows = rolled_rows(jnp.broadcast_to(row, (LANES, width)), 1)
        refs["bank"][tile, pl.ds(start, LANES)] = rows[:, :bq]

    _for_each_strip(near, bk, some_rows)


def fold_bank(near: Near, bq: int, bk: int, tiles: Any, out: Any) -> None:
    """The transpose of ``fill_bank``: [count, bk, bq] -> [count, bq + bk]."""
    width = bq + bk
    out[...] = jnp.zeros_like(out)

    def some_rows(tile, start):
        rows = tiles[tile, pl.ds(start, LANES)]
        rows = jnp.concatenate([rows, jnp.zeros((LANES, bk), jnp.float32)], axis=1)
        row = jnp.sum(rolled_rows(rows, -1), axis=0, keepdims=True)
        out[pl.ds(tile, 1)] += pltpu.roll(row, width - start, 1)

    _for_each_strip(near, bk, some_rows)


def _for_each_strip(near: Near, bk: int, some_rows: Callable[[Any, Any], None]) -> None:
    """Loops over 128 rows of each tile: once for a head, so that short code counts more than speed."""
    strips = bk // LANES

    def step(n, _):
        tile = jax.lax.div(n, jnp.int32(strips))
        some_rows(tile, pl.multiple_of((n - tile * strips) * LANES, LANES))

    jax.lax.fori_loop(0, near.count * strips, step, None)


def rolled_rows(x: jax.Array, sign: int) -> jax.Array:
    """Row j rolled by j lanes to the right (or left): by the bits of j, which all generations can."""
    height, width = x.shape
    row = jax.lax.broadcasted_iota(jnp.int32, x.shape, 0)
    bit = 1
    while bit < height:
        x = jnp.where((row & bit) != 0, pltpu.roll(x, bit if sign > 0 else width - bit, 1), x)
        bit *= 2
    return x
