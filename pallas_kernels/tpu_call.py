"""How the TPU kernels are called: names instead of positions, grids over blocks, the cost. Must not know what they
compute.

Letters: B batch, H query heads, R query blocks, C key blocks, P visits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.tpu_scores import Operand, Problem, Refs, Visit
from pallas_kernels.visits import COMPUTE, EMPTY, FULL, WHOLE, Visits, unpack

SMEM_BYTES = 2**20 - 2**14  # of the list of blocks; the rest is for what else lies there
_CONTRACT = {"nn": ((1,), (0,)), "nt": ((1,), (1,)), "tn": ((0,), (0,))}


def matmul(a: jax.Array, b: jax.Array, form: str) -> jax.Array:
    """The product in float32; ``n`` or ``t`` (transposed) for each factor. float32 factors are not rounded."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(
        a, b, (_CONTRACT[form], ((), ())), precision=precision, preferred_element_type=jnp.float32
    )


class Grid(NamedTuple):
    """The steps of a kernel.

    Attributes:
      sizes: of its dimensions.
      alone: whether steps along each dimension may run in any order, on any core.
      blocks: int32, from which ``locate`` reads; flat, for SMEM.
      locate: (numbers of the step, ``blocks``) -> where it is.
      path: query and key block of each step of one row and head, for the cost; where they are found at run time, of
        those that are possible.
    """

    sizes: tuple[Any, ...]
    alone: tuple[bool, ...]
    blocks: jax.Array
    locate: Callable[[Sequence[Any], Any], Visit]
    path: tuple[np.ndarray, np.ndarray]


def visit_grid(problem: Problem, B: int, visits: Visits, rows_alone: bool) -> Grid:
    """(H, B, visits): heads outside, so that what belongs to a head is made once.

    Args:
      problem, B: the call, and its batch rows.
      visits: what is visited.
      rows_alone: whether batch rows have nothing in common.
    """
    many, each = visits.packed.shape

    def locate(step, blocks):
        h, b, n = step
        i, j, flags = unpack(blocks[b * each + n if many > 1 else n])
        return Visit(b, h, i, j, flags)

    i, j = unpack(visits.packed[0])[:2] if isinstance(visits.packed, np.ndarray) else visits.possible
    flat = _for_smem(jnp.asarray(visits.packed))
    return Grid((problem.heads, B, visits.count), (True, rows_alone, False), flat, locate, (i, j))


def shared_grid(problem: Problem, B: int, rows: int, heads: int) -> Grid:
    """(rows, heads, C, R, B / rows, H / heads): all blocks; those that share a place in [rows, heads, C, R] in turn."""
    many, R, C = problem.blocks.kinds.shape
    H = problem.heads

    def locate(step, blocks):
        row, head, j, i, other_row, other_head = step
        b, h = jnp.maximum(row, other_row), jnp.maximum(head, other_head)  # one of each is always 0
        kind = blocks[((b if many > 1 else 0) * R + i) * C + j]
        return Visit(b, h, i, j, jnp.where(kind == FULL, WHOLE, 0) + jnp.where(kind != EMPTY, COMPUTE, 0))

    sizes = (rows, heads, C, R, B // rows, H // heads)
    j, i = (x.reshape(-1) for x in np.mgrid[:C, :R])
    return Grid(sizes, (True,) * 4 + (False,) * 2, _for_smem(jnp.asarray(problem.blocks.kinds)), locate, (i, j))


def _for_smem(blocks: jax.Array) -> jax.Array:
    """Flat, if the scalar memory has room for it."""
    if blocks.size * 4 > SMEM_BYTES:
        raise ValueError(
            f"attention: mask: {blocks.size:,} blocks to visit on backend 'tpu'; allowed: {SMEM_BYTES // 4:,}, each "
            "row's counted where a mask reads arrays; try larger blocks, fewer rows on a device, or backend='xla'"
        )
    return blocks.reshape(-1)


def call(
    problem: Problem, kernel: Callable[[Refs, Visit], None], grid: Grid, scalars: jax.Array,
    operands: Mapping[str, Operand], outputs: Mapping[str, Operand], scratch: Mapping[str, Any], name: str,
    products: Sequence[int],
) -> dict[str, jax.Array]:  # fmt: skip
    """Runs a kernel.

    Args:
      problem: the call.
      kernel: takes its references by name (``scalars``, operands, outputs, scratch), and where it is.
      grid: its steps.
      scalars: int32, for SMEM.
      operands, outputs, scratch: by name.
      name: of the kernel.
      products: sizes of the heads in the matrix products that each pair takes part in, for the cost.
    """
    names = ["scalars", *operands, *outputs, *scratch]

    def run(blocks, *refs):
        step = [pl.program_id(n) for n in range(len(grid.sizes))]
        kernel(dict(zip(names, refs, strict=True)), grid.locate(step, blocks))

    ins, outs = ([_spec(operand, grid) for operand in side.values()] for side in (operands, outputs))
    spec = pltpu.PrefetchScalarGridSpec(2, grid.sizes, ins, outs, list(scratch.values()))
    order: Any = tuple("parallel" if alone else "arbitrary" for alone in grid.alone)
    results = pl.pallas_call(
        run, grid_spec=spec, out_shape=[output.array for output in outputs.values()], name=name,
        compiler_params=pltpu.CompilerParams(dimension_semantics=order, vmem_limit_bytes=problem.vmem_bytes or None),
        cost_estimate=_cost(problem, grid, products, operands, outputs), interpret=problem.interpret,
    )(grid.blocks, scalars, *(operand.array for operand in operands.values()))
    return dict(zip(outputs, results, strict=True))


def _spec(operand: Operand, grid: Grid) -> pl.BlockSpec:
    if operand.block is None:
        return pl.BlockSpec(memory_space=pltpu.SMEM)

    def index(*step_and_scalars):
        *step, blocks, _ = step_and_scalars
        at = grid.locate(step, blocks)
        return operand.index(at.b, at.h, at.i, at.j)

    return pl.BlockSpec(operand.block, index, pipeline_mode=pl.Buffered(1) if operand.once else None)


def _cost(problem: Problem, grid: Grid, products: Sequence[int], operands, outputs) -> pl.CostEstimate:
    """Of the blocks that the mask allows; where that is known at run time only, of those that are possible."""
    blocks, each = problem.blocks, operands["q"].array.shape[0] * problem.heads
    visited = np.mean((blocks.kinds != EMPTY).sum((1, 2))) if blocks.static else blocks.possible.sum()
    pairs = int(visited) * problem.bq * problem.bk * each
    moved = sum(_fetches(x, grid) * each for x in (*operands.values(), *outputs.values()) if x.block is not None)
    return pl.CostEstimate(flops=2 * pairs * sum(products), transcendentals=pairs, bytes_accessed=moved)


def _fetches(operand: Operand, grid: Grid) -> int:
    """Bytes moved for one row and head: a block stays while its index does."""
    assert operand.block is not None
    i, j = grid.path
    with jax.ensure_compile_time_eval():  # index maps divide with JAX
        index = np.stack(np.broadcast_arrays(*(np.asarray(x) for x in operand.index(0, 0, i, j)), i)[:-1])
    times = 1 + int((np.diff(index, axis=1) != 0).any(0).sum())
    return times * math.prod(size or 1 for size in operand.block) * operand.array.dtype.itemsize
