"""The forward kernel for TPUs.

A step of the grid visits one block. It is divided into items, and the products of the items after and before are issued
beside the exponentials of one, so that the matrix units have work while the vector units do. The running maximum is
one row; the output is accumulated transposed, so that rescaling it is a product with a row too. Where the matrix unit
is 256 wide, ones under the values let it add up the exponentials as well.

Letters: B batch, H query heads, K key heads, L queries, S keys, N size of a query or key head, V of a value head.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.blocks import ForwardSub
from pallas_kernels.tpu_call import call, matmul, visit_grid
from pallas_kernels.tpu_scores import (
    FLOOR,
    ONES,
    Case,
    Columns,
    Operand,
    Problem,
    Refs,
    Visit,
    block_operands,
    constant,
    for_each_case,
    scores,
)
from pallas_kernels.tpu_tiles import fill_bank
from pallas_kernels.visits import FIRST, LAST, plan


def forward(
    problem: Problem, arrays: dict[str, jax.Array], extra: dict[str, Operand], scalars: jax.Array, sub: ForwardSub
) -> tuple[jax.Array, jax.Array]:
    """([B, H, L, V] in the dtype of q, [B, H, 1, L] float32 log-sum-exp times log2(e)); FLOOR where no key is allowed.

    Args:
      problem: the call; lengths are multiples of its blocks.
      arrays: q [B, H, L, N], k [B, K, S, N], v [B, K, S, V], padded.
      extra: operands of mask, bias and sinks.
      scalars: scalars of the call.
      sub: division of a block.
    """
    (B, H, L, N), V = arrays["q"].shape, arrays["v"].shape[3]
    bq, bk = problem.bq, problem.bk
    out = jax.ShapeDtypeStruct((B, H, L, V), arrays["q"].dtype)
    lse = jax.ShapeDtypeStruct((B, H, 1, L), jnp.float32)
    outputs = {
        "out": Operand(out, (None, None, bq, V), lambda b, h, i, j: (b, h, i, 0)),
        "lse": Operand(lse, (None, None, 1, bq), lambda b, h, i, j: (b, h, 0, i)),
    }
    rows = V + ONES if problem.sums_by_matmul else V
    scratch = {
        "peak": pltpu.VMEM((1, bq), jnp.float32),
        "total": pltpu.VMEM((8, bq), jnp.float32),
        "sum": pltpu.VMEM((rows, bq), jnp.float32),
        "v_turned": pltpu.VMEM((rows, bk), arrays["v"].dtype),
    }
    if problem.bias == "t5":
        scratch["bank"] = pltpu.VMEM((problem.tiles.count, bk, bq), jnp.float32)
    grid = visit_grid(problem, B, plan(problem.blocks, "query"), rows_alone=problem.bias != "t5")
    kernel, operands = functools.partial(_kernel, problem, sub), block_operands(problem, arrays) | extra
    found = call(problem, kernel, grid, scalars, operands, outputs, scratch, "attention_forward", (N, V))
    return found["out"], found["lse"]


def _kernel(problem: Problem, sub: ForwardSub, refs: Refs, visit: Visit) -> None:
    V = refs["v"].shape[1]
    if problem.bias == "t5":
        starts_head = (visit.b == 0) & (pl.program_id(2) == 0)
        pl.when(starts_head)(lambda: fill_bank(problem.tiles, problem.bq, problem.bk, refs))

    @pl.when((visit.flags & FIRST) != 0)
    def _():
        for name in ("sum", "total"):
            refs[name][...] = jnp.zeros_like(refs[name])
        refs["peak"][...] = jnp.full_like(refs["peak"], FLOOR)
        if "sinks" in refs:
            sink = jnp.full_like(refs["peak"], refs["sinks"][visit.h])
            refs["peak"][...] = jnp.maximum(sink, FLOOR)
            refs["total"][0:1] = jnp.where(sink > FLOOR, 1.0, 0.0)
        if problem.sums_by_matmul:
            refs["v_turned"][V:] = jnp.ones_like(refs["v_turned"][V:])

    for_each_case(problem, visit, refs, functools.partial(_block, problem, sub, visit, refs))

    @pl.when((visit.flags & LAST) != 0)
    def _():
        total = jnp.sum(refs["total"][...], axis=0, keepdims=True)
        if problem.sums_by_matmul:
            total = total + refs["sum"][V : V + 1]
        seen = total > 0.0
        total = jnp.where(seen, total, 1.0)
        refs["out"][...] = (refs["sum"][:V] * (1.0 / total)).T.astype(refs["out"].dtype)
        refs["lse"][...] = jnp.where(seen, refs["peak"][...] + jnp.log2(total), FLOOR)


def _block(problem: Problem, sub: ForwardSub, visit: Visit, refs: Refs, case: Case) -> None:
    """Adds one block's keys to the running maximum, sum and output.

    An item is ``sub.keys`` keys of ``sub.queries`` queries, for which the running maximum changes once. Its products
    with the keys are issued ``sub.ahead`` items before its exponentials, those with the values ``sub.lag`` items after.
    """
    columns, shift = Columns(problem, refs, visit), constant(problem, refs, visit, case)
    items = _items(problem, sub, case)
    state = {qs.start: [refs[name][:, qs] for name in ("peak", "total", "sum")] for _, qs in items}
    for k in range(0, problem.bk, sub.chunk):
        ks = slice(k, k + sub.chunk)
        refs["v_turned"][: refs["v"].shape[1], ks] = refs["v"][ks].T
    scored: dict[int, list[jax.Array]] = {}
    weighted: dict[int, tuple[list[jax.Array], jax.Array]] = {}
    for step in range(-sub.ahead, len(items) + sub.lag):
        early, late = step + sub.ahead, step - sub.lag
        if 0 <= step < len(items):
            qs, found = items[step][1], scored.pop(step)
            top = functools.reduce(jnp.maximum, [_by_eight(s).max(0) for s in found]).max(0, keepdims=True)
            peak = jnp.maximum(state[qs.start][0], top + shift)
            fade = jnp.exp2(state[qs.start][0] - peak)
            weighted[step] = [], fade
            state[qs.start][0] = peak
            state[qs.start][1] = state[qs.start][1] * fade
        out = None
        # products with keys are issued before those with values: the other way round both wait
        for n in range(sub.keys // sub.chunk):
            if early < len(items) and n < len(items[early][0]):
                ks, qs = items[early][0][n], items[early][1]
                product = matmul(refs["k"][ks], refs["q"][qs], "nt")
                scored.setdefault(early, []).append(scores(product, columns, ks, qs, case)[0])
            if 0 <= late < len(items) and n < len(items[late][0]):
                rows = refs["v_turned"][:, items[late][0][n]]
                part = matmul(rows, weighted[late][0][n], "nn")
                out = part if out is None else out + part
            if 0 <= step < len(items) and n < len(items[step][0]):
                ks, qs = items[step][0][n], items[step][1]
                p = jnp.exp2(found[n] - (peak - shift))
                if not problem.sums_by_matmul:
                    state[qs.start][1] = state[qs.start][1] + _by_eight(p).sum(0)
                if problem.dropout_rate:
                    p = jnp.where(columns.kept(ks, qs), p * (1.0 / (1.0 - problem.dropout_rate)), 0.0)
                weighted[step][0].append(p.astype(refs["v"].dtype))
        if out is not None:
            qs = items[late][1]
            state[qs.start][2] = state[qs.start][2] * weighted.pop(late)[1] + out
    for start, values in state.items():
        for name, value in zip(("peak", "total", "sum"), values, strict=True):
            refs[name][:, start : start + sub.queries] = value


def _items(problem: Problem, sub: ForwardSub, case: Case) -> list[tuple[list[slice], slice]]:
    """(chunks of keys, queries) of each item, without what is known to be forbidden."""
    found = []
    together = sub.queries * sub.group
    for first in range(0, problem.bq, together):
        for k in range(0, problem.bk, sub.keys):
            for q in range(first, min(first + together, problem.bq), sub.queries):
                qs = slice(q, q + sub.queries)
                chunks = [slice(c, c + sub.chunk) for c in range(k, min(k + sub.keys, problem.bk), sub.chunk)]
                if chunks := [ks for ks in chunks if case.visible(ks, qs)]:
                    found.append((chunks, qs))
    return found


def _by_eight(x: jax.Array) -> jax.Array:
    """[n, width] -> [n / 8, 8, width]: reducing the first dimension is element by element on registers."""
    return x.reshape(-1, 8, x.shape[1])
