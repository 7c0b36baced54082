"""The backward kernels for TPUs.

``backward_keys`` goes through the queries of one key block after another: dk and dv are accumulated for the block, and
dq of the whole sequence of a head where that fits into VMEM, so that each pair's scores are made once and no partial
sums go to memory. Where it does not fit, ``backward_queries`` makes dq in a pass of its own. ``backward_dense`` adds up
the gradient of a dense bias, block by block, over the rows and heads that share it.

Letters: B batch, H query heads, K key heads, L queries, S keys, N size of a query or key head, V of a value head.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.blocks import LANES, BackwardSub
from pallas_kernels.tpu_call import call, matmul, shared_grid, visit_grid
from pallas_kernels.tpu_scores import (
    Case,
    Columns,
    Operand,
    Problem,
    Refs,
    Visit,
    block_operands,
    constant,
    for_each_case,
    is_right,
    scores,
)
from pallas_kernels.tpu_tiles import fill_bank, fold_bank
from pallas_kernels.visits import FIRST, LAST, plan

Arrays = dict[str, jax.Array]


def backward_keys(
    problem: Problem, arrays: Arrays, extra: dict[str, Operand], scalars: jax.Array, sub: BackwardSub, with_dq: bool,
    bias_gradient: bool,
) -> Arrays:  # fmt: skip
    """``dk``, ``dv``, with ``with_dq`` ``dq``, and with ``bias_gradient`` what T5's bias or ALiBi needs.

    Args:
      problem: the call; lengths are multiples of its blocks.
      arrays: q, dout [B, H, L, N or V]; k, v [B, K, S, N or V]; lse, delta [B, H, 1, L] float32.
      extra: operands of mask and bias.
      scalars: scalars of the call.
      sub: division of a block into sub-blocks.
      with_dq: whether dq of a head fits into VMEM.
      bias_gradient: whether the gradient of the bias is wanted.

    Returns:
      dk, dv: [B, H, S, N or V]: of each query head; in float32 where several share a key head and are yet to be added.
      dq: [B, H, L, N].
      windows [H, count, bq + bk], far [H, 2, bq]: gradients of T5's tiles (see ``tpu_scores.t5_arrays``) and, yet to be
      added up over queries, of the two constants; slopes [H, 1, bq]: of ALiBi's.
    """
    B, H, L, N = arrays["q"].shape
    S, V = arrays["v"].shape[2:]
    bq, bk = problem.bq, problem.bk
    kept = arrays["k"].dtype if problem.group == 1 else jnp.float32
    outputs, scratch = dict[str, Operand](), dict[str, Any]()
    for name, size in (("dk", N), ("dv", V)):
        whole = jax.ShapeDtypeStruct((B, H, S, size), kept)
        outputs[name] = Operand(whole, (None, None, bk, size), lambda b, h, i, j: (b, h, j, 0))
        scratch[f"{name}_sum"] = pltpu.VMEM((size, bk) if sub.turned else (bk, size), jnp.float32)
    if sub.turned:
        scratch["q_turned"] = pltpu.VMEM((N, bq), arrays["q"].dtype)
        scratch["dout_turned"] = pltpu.VMEM((V, bq), arrays["q"].dtype)
    if with_dq:
        dq = jax.ShapeDtypeStruct((B, H, L, N), arrays["q"].dtype)
        outputs["dq"] = Operand(dq, (None, None, L, N), lambda b, h, i, j: (b, h, 0, 0), once=True)
        scratch["dq_sum"] = pltpu.VMEM((N, L), jnp.float32)
        scratch["k_turned"] = pltpu.VMEM((N, bk), arrays["k"].dtype)
    if problem.bias == "t5":
        tiles = (problem.tiles.count, bk, bq)
        scratch["bank"] = pltpu.VMEM(tiles, jnp.float32)
        if bias_gradient:
            scratch["bank_gradient"] = pltpu.VMEM(tiles, jnp.float32)
            outputs["windows_gradient"] = _of_head((H, tiles[0], bq + bk))
            outputs["far_gradient"] = _of_head((H, 2, bq))
    if problem.bias == "alibi" and bias_gradient:
        outputs["slopes_gradient"] = _of_head((H, 1, bq))
    rows_alone = not bias_gradient and problem.bias != "t5"
    kernel = functools.partial(_keys_kernel, problem, sub, with_dq, bias_gradient)
    grid, operands = visit_grid(problem, B, plan(problem.blocks, "key"), rows_alone), block_operands(problem, arrays)
    name, products = ("", (N, V, N, V, N)) if with_dq else ("_keys", (N, V, N, V))
    return call(
        problem, kernel, grid, scalars, operands | extra, outputs, scratch, f"attention_backward{name}", products
    )


def _of_head(shape: tuple[int, int, int]) -> Operand:
    return Operand(jax.ShapeDtypeStruct(shape, jnp.float32), (None, *shape[1:]), lambda b, h, i, j: (h, 0, 0))


def _keys_kernel(
    problem: Problem, sub: BackwardSub, with_dq: bool, bias_gradient: bool, refs: Refs, visit: Visit
) -> None:
    n = pl.program_id(2)
    last = n == pl.num_programs(2) - 1
    starts_head = (visit.b == 0) & (n == 0)
    if problem.bias == "t5":
        pl.when(starts_head)(lambda: fill_bank(problem.tiles, problem.bq, problem.bk, refs))
    sums = [name for name in ("bank_gradient", "far_gradient", "slopes_gradient") if name in refs]
    if sums:
        pl.when(starts_head)(lambda: _clear(refs, *sums))
    if with_dq:
        pl.when(n == 0)(lambda: _clear(refs, "dq_sum"))

    @pl.when((visit.flags & FIRST) != 0)
    def _():
        _clear(refs, "dk_sum", "dv_sum")
        if with_dq:
            refs["k_turned"][...] = refs["k"][...].T

    for_each_case(problem, visit, refs, functools.partial(_keys_block, problem, sub, bias_gradient, visit, refs))

    @pl.when((visit.flags & LAST) != 0)
    def _():
        for name, scale in (("dk", problem.scale), ("dv", 1.0)):
            total = refs[f"{name}_sum"][...]
            refs[name][...] = ((total.T if sub.turned else total) * scale).astype(refs[name].dtype)

    if with_dq:

        @pl.when(last)
        def _():
            for start in range(0, refs["dq"].shape[0], problem.bq):
                part = slice(start, start + problem.bq)
                refs["dq"][part] = (refs["dq_sum"][:, part] * problem.scale).T.astype(refs["dq"].dtype)

    if "bank_gradient" in refs:
        pl.when(last & (visit.b == pl.num_programs(1) - 1))(
            lambda: fold_bank(problem.tiles, problem.bq, problem.bk, refs["bank_gradient"], refs["windows_gradient"])
        )


def _clear(refs: Refs, *names: str) -> None:
    for name in names:
        refs[name][...] = jnp.zeros_like(refs[name])


def _places(problem: Problem, sub: BackwardSub, case: Case) -> list[tuple[slice, slice]]:
    """Sub-blocks in order, without what is known to be forbidden."""
    ks = [slice(k, k + sub.keys) for k in range(0, problem.bk, sub.keys)]
    qs = [slice(q, q + sub.queries) for q in range(0, problem.bq, sub.queries)]
    pairs = [(k, q) for q in qs for k in ks] if sub.queries_first else [(k, q) for k in ks for q in qs]
    return [place for place in pairs if case.visible(*place)]


def _products(refs: Refs, place: tuple[slice, slice]) -> tuple[jax.Array, jax.Array]:
    """k q^T and v dout^T of a sub-block."""
    ks, qs = place
    return matmul(refs["k"][ks], refs["q"][qs], "nt"), matmul(refs["v"][ks], refs["dout"][qs], "nt")


def _gradients(
    problem: Problem, columns: Columns, refs: Refs, place, products, case: Case, shift: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(p with dropout, gradient of the score, gradient of scale * q k^T), each [height, width] float32."""
    ks, qs = place
    raw, dp = products
    value, tanh = scores(raw, columns, ks, qs, case)
    p = jnp.exp2(value - (refs["lse"][:, qs] - shift))
    dropped = p
    if problem.dropout_rate:
        factor = jnp.where(columns.kept(ks, qs), 1.0 / (1.0 - problem.dropout_rate), 0.0)
        dropped, dp = p * factor, dp * factor
    ds = p * (dp - refs["delta"][:, qs])
    return dropped, ds, ds if tanh is None else ds * (1.0 - tanh * tanh)


def _keys_block(problem: Problem, sub: BackwardSub, bias_gradient: bool, visit: Visit, refs: Refs, case: Case) -> None:
    columns = Columns(problem, refs, visit)
    shift = constant(problem, refs, visit, case)
    if sub.turned:
        refs["q_turned"][...] = refs["q"][...].T
        refs["dout_turned"][...] = refs["dout"][...].T

    def middle(place, products):
        p, ds, dproduct = _gradients(problem, columns, refs, place, products, case, shift)
        if bias_gradient:
            _add_bias_gradient(columns, refs, place[0], place[1], case, ds)
        return p.astype(refs["dout"].dtype), dproduct.astype(refs["q"].dtype)

    def add(place, gradients):
        (ks, qs), (p, dproduct) = place, gradients
        if sub.turned:
            refs["dv_sum"][:, ks] += matmul(refs["dout_turned"][:, qs], p, "nt")
            refs["dk_sum"][:, ks] += matmul(refs["q_turned"][:, qs], dproduct, "nt")
        else:
            refs["dv_sum"][ks] += matmul(p, refs["dout"][qs], "nn")
            refs["dk_sum"][ks] += matmul(dproduct, refs["q"][qs], "nn")
        if "dq_sum" in refs:
            start = pl.multiple_of(visit.i * problem.bq + qs.start, LANES)
            refs["dq_sum"][:, pl.ds(start, qs.stop - qs.start)] += matmul(refs["k_turned"][:, ks], dproduct, "nn")

    _in_stages(problem, sub if case.corner is None else sub.of_corner(), case, refs, middle, add)


def _in_stages(problem: Problem, sub: BackwardSub, case: Case, refs: Refs, middle: Any, add: Any) -> None:
    """Goes through the sub-blocks of a block: the products of the next one are issued before the gradients of one are
    made (``middle``), and those are used (``add``) ``sub.lag`` sub-blocks later: matrix units have work meanwhile."""
    places = _places(problem, sub, case)
    if not places:
        return
    ahead, made = _products(refs, places[0]), {}
    for n in range(len(places) + sub.lag):
        if n < len(places):
            products, ahead = ahead, _products(refs, places[n + 1]) if n + 1 < len(places) else ahead
            made[n] = middle(places[n], products)
        if n >= sub.lag:
            add(places[n - sub.lag], made.pop(n - sub.lag))


def _add_bias_gradient(columns: Columns, refs: Refs, ks: slice, qs: slice, case: Case, ds: jax.Array) -> None:
    if case.bias == "t5":
        refs["bank_gradient"][case.tile, ks, qs] += ds
    elif case.bias == "far":
        right = is_right(columns.problem, refs, columns.visit)
        row = jnp.sum(ds, axis=0, keepdims=True)
        refs["far_gradient"][0:1, qs] += jnp.where(right, 0.0, row)
        refs["far_gradient"][1:2, qs] += jnp.where(right, row, 0.0)
    elif case.bias == "alibi":
        refs["slopes_gradient"][:, qs] -= jnp.sum(ds * columns.distance(ks, qs), axis=0, keepdims=True)


def backward_queries(
    problem: Problem, arrays: Arrays, extra: dict[str, Operand], scalars: jax.Array, sub: BackwardSub
) -> jax.Array:
    """dq [B, H, L, N]; arguments as for ``backward_keys``."""
    B, H, L, N = arrays["q"].shape
    dq = jax.ShapeDtypeStruct((B, H, L, N), arrays["q"].dtype)
    outputs = {"dq": Operand(dq, (None, None, problem.bq, N), lambda b, h, i, j: (b, h, i, 0))}
    scratch: dict[str, Any] = {
        "dq_sum": pltpu.VMEM((N, problem.bq), jnp.float32),
        "k_turned": pltpu.VMEM((N, problem.bk), arrays["k"].dtype),
    }
    if problem.bias == "t5":
        scratch["bank"] = pltpu.VMEM((problem.tiles.count, problem.bk, problem.bq), jnp.float32)
    return call(
        problem, functools.partial(_queries_kernel, problem, sub),
        visit_grid(problem, B, plan(problem.blocks, "query"), problem.bias != "t5"), scalars,
        block_operands(problem, arrays) | extra, outputs, scratch, name="attention_backward_queries",
        products=(N, arrays["v"].shape[3], N),
    )["dq"]  # fmt: skip


def _queries_kernel(problem: Problem, sub: BackwardSub, refs: Refs, visit: Visit) -> None:
    if problem.bias == "t5":
        pl.when((visit.b == 0) & (pl.program_id(2) == 0))(
            lambda: fill_bank(problem.tiles, problem.bq, problem.bk, refs)
        )
    pl.when((visit.flags & FIRST) != 0)(lambda: _clear(refs, "dq_sum"))

    def block(case: Case) -> None:
        columns = Columns(problem, refs, visit)
        shift = constant(problem, refs, visit, case)
        refs["k_turned"][...] = refs["k"][...].T

        def middle(place, products):
            dproduct = _gradients(problem, columns, refs, place, products, case, shift)[2]
            return dproduct.astype(refs["k"].dtype)

        def add(place, dproduct):
            ks, qs = place
            refs["dq_sum"][:, qs] += matmul(refs["k_turned"][:, ks], dproduct, "nn")

        _in_stages(problem, sub if case.corner is None else sub.of_corner(), case, refs, middle, add)

    for_each_case(problem, visit, refs, block)

    @pl.when((visit.flags & LAST) != 0)
    def _():
        refs["dq"][...] = (refs["dq_sum"][...] * problem.scale).T.astype(refs["dq"].dtype)


def backward_dense(
    problem: Problem, arrays: Arrays, extra: dict[str, Operand], scalars: jax.Array, shape: tuple[int, ...]
) -> jax.Array:
    """The gradient of a dense bias of this shape, [1 or B, 1 or H, L, S] float32; as ``backward_keys``."""
    rows, heads, L, S = shape
    # all blocks alike: which are cut is not told here
    problem = dataclasses.replace(problem, blocks=problem.blocks._replace(corner=None, rest=None))
    R, C = problem.blocks.possible.shape
    whole = jax.ShapeDtypeStruct((rows, heads, C * problem.bk, R * problem.bq), jnp.float32)
    index = lambda b, h, i, j: (b if rows > 1 else 0, h if heads > 1 else 0, j, i)  # noqa: E731
    found = call(
        problem, functools.partial(_dense_kernel, problem),
        shared_grid(problem, arrays["q"].shape[0], rows, heads), scalars, block_operands(problem, arrays) | extra,
        {"gradient": Operand(whole, (None, None, problem.bk, problem.bq), index)}, {},
        name="attention_backward_dense", products=(arrays["q"].shape[3], arrays["v"].shape[3]),
    )  # fmt: skip
    return found["gradient"].swapaxes(2, 3)[:, :, :L, :S]


def _dense_kernel(problem: Problem, refs: Refs, visit: Visit) -> None:
    pl.when((pl.program_id(4) == 0) & (pl.program_id(5) == 0))(lambda: _clear(refs, "gradient"))

    def block(case: Case) -> None:
        columns = Columns(problem, refs, visit)
        for place in _places(problem, BackwardSub(LANES, LANES, 0, False, False), case):
            products = _products(refs, place)
            refs["gradient"][place] += _gradients(problem, columns, refs, place, products, case, 0.0)[1]

    for_each_case(problem, visit, refs, block)
