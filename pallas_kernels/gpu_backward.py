"""Gradients of attention for NVIDIA GPUs: one kernel for the queries and the bias, one for keys and values.

Both compute the probabilities anew from the log-sum-exp. With delta = rowsum(dO o O) - d(lse), the gradient of a score
is p (dP - delta): delta holds the gradient that comes through the log-sum-exp too. Must not know the forward kernel.

Letters: B batch, L queries, S keys, H query heads, K key heads, N size of a query or key head, V size of a value head,
I query blocks, J key blocks, D distances.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.biases import Alibi, Bias, Dense, T5Relative
from pallas_kernels.gpu_plan import prepare, relative
from pallas_kernels.gpu_tiles import (
    CEILING,
    LOG2E,
    Data,
    Options,
    Plan,
    Sizes,
    Tile,
    choose,
    dot,
    iota,
    load_rows,
    load_vector,
    pieces,
    store_rows,
)

_ROWS = 16  # of a tile that are folded along the diagonals at a time


class Grads(NamedTuple):
    """Outputs of the kernel of the queries; None where there is no such bias.

    Attributes:
      dq: [B, L, H, N].
      distances: [B, H, I, D rounded up] float32, of a T5 bias by distance, each program's share.
      scratch: [B, H, I, queries of a block, keys of a block] float32: each program's tile, to be read along diagonals.
      slopes: [B, H, I] float32, each program's share.
      dense: the gradient of the array; where that is broadcast, float32 and padded to whole blocks.
    """

    dq: Any
    distances: Any = None
    scratch: Any = None
    slopes: Any = None
    dense: Any = None


def backward(
    options: Options, q, k, v, mask, bias: Bias | None, sinks, streams_BH, q_offset, out, lse_BHL, d_out, d_lse_BHL
):  # fmt: skip
    """Gradients of q, k, v, the bias and the sinks."""
    shape = Sizes.of(q, k, v)
    nothing = lse_BHL == -jnp.inf
    delta_BLH = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1)
    delta_BHL = jnp.where(nothing, 0.0, delta_BLH.transpose(0, 2, 1) - d_lse_BHL)
    saved = (d_out, jnp.where(nothing, CEILING, lse_BHL * LOG2E), delta_BHL)
    plan, data = prepare(options, shape, options.for_queries, False, mask, bias, None, streams_BH, q_offset)
    grads = _queries(plan, data, q, k, v, saved, bias)
    plan, data = prepare(options, shape, options.for_keys, True, mask, bias, None, streams_BH, q_offset)
    dk, dv = _keys(plan, data, q, k, v, saved)
    d_sinks = None
    if sinks is not None:
        sink_H11 = lax.expand_dims(sinks.astype(jnp.float32), (1, 2))[None]
        share_BHL = jnp.exp(sink_H11 - jnp.where(nothing[..., None], jnp.inf, lse_BHL[..., None]))[..., 0]
        d_sinks = -(share_BHL * delta_BHL).sum((0, 2)).astype(sinks.dtype)
    return grads.dq, dk, dv, _bias_gradient(bias, grads, shape), d_sinks


def _bias_gradient(bias: Bias | None, grads: Grads, shape: Sizes):
    """Sums the programs' shares."""
    if isinstance(bias, T5Relative):
        distances_HD, pull = jax.vjp(relative, bias)
        return pull(grads.distances.sum((0, 2))[:, : distances_HD.shape[1]])[0]
    if isinstance(bias, Alibi):
        return Alibi(grads.slopes.sum((0, 2)).astype(bias.slopes_H.dtype))
    if isinstance(bias, Dense):
        return Dense(grads.dense[:, :, : shape.L, : shape.S].astype(bias.array.dtype))
    return None


def _queries(plan: Plan, data: Data, q, k, v, saved, bias: Bias | None) -> Grads:
    shape, launch, blocks = plan.shape, plan.launch, plan.blocks
    of_programs = (shape.B, shape.H, blocks[0])
    out = Grads(jax.ShapeDtypeStruct(q.shape, q.dtype))
    zeros = None  # a dense gradient starts as zeros, because tiles without an allowed pair are not visited
    if isinstance(bias, T5Relative):
        distances = (*of_programs, pl.next_power_of_2(data.distances_HD.shape[1]))
        tiles = (*of_programs, launch.queries, launch.keys)
        distances, scratch = (jax.ShapeDtypeStruct(each, jnp.float32) for each in (distances, tiles))
        out = out._replace(distances=distances, scratch=scratch)
    elif isinstance(bias, Alibi):
        out = out._replace(slopes=jax.ShapeDtypeStruct(of_programs, jnp.float32))
    elif isinstance(bias, Dense):
        if _is_shared(bias.array.shape, shape):
            zeros = jnp.zeros((*bias.array.shape[:2], blocks[0] * launch.queries, blocks[1] * launch.keys), jnp.float32)
        else:
            zeros = jnp.zeros(bias.array.shape, bias.array.dtype)
        out = out._replace(dense=jax.ShapeDtypeStruct(zeros.shape, zeros.dtype))
    cost = plan.cost((2, 1), (q, k, v, data, saved, out))
    grid = (blocks[0], shape.H, shape.B)
    aliases = {0: 1} if zeros is not None else {}  # of flat inputs and outputs
    leaves, tree = jax.tree.flatten(out)
    kernel = functools.partial(_queries_kernel, plan, tree)
    written = plan.call(kernel, grid, leaves, "attention_dq", cost, aliases)(zeros, q, k, v, data, *saved)
    return jax.tree.unflatten(tree, written)


def _is_shared(of_bias: tuple[int, ...], shape: Sizes) -> bool:
    """Whether several programs have a share in an element of the dense bias."""
    return of_bias[:2] != (shape.B, shape.H)


def _queries_kernel(plan: Plan, tree, _, q_ref, k_ref, v_ref, data: Data, d_out_ref, lse_ref, delta_ref, *written):
    shape, launch = plan.shape, plan.launch
    grads = jax.tree.unflatten(tree, written)
    tile = Tile(pl.program_id(2), pl.program_id(1), plan.blocks[0] - 1 - pl.program_id(0), None)
    key_head = lax.div(tile.head, jnp.int32(shape.group))
    parts, value_parts = pieces(shape.N), pieces(shape.V)
    start, ragged = tile.i * launch.queries, plan.ragged_queries
    here = (tile.b, start, launch.queries, tile.head, ragged)
    q, d_out = load_rows(q_ref, *here, parts), load_rows(d_out_ref, *here, value_parts)
    vector = (tile.b, tile.head, start, launch.queries, ragged)
    lse, delta = load_vector(lse_ref, *vector, CEILING), load_vector(delta_ref, *vector, 0.0)
    lse, delta = lax.expand_dims(lse, (1,)), lax.expand_dims(delta, (1,))
    if grads.distances is not None:
        row = grads.distances.at[tile.b, tile.head, tile.i, :]
        plgpu.store(row, jnp.zeros(row.shape, jnp.float32))

    def step(tile: Tile, hard: bool, carry):
        dq, share = carry
        there = (tile.b, tile.j * launch.keys, launch.keys, key_head, plan.ragged_keys if hard else 0)
        k, v = load_rows(k_ref, *there, parts), load_rows(v_ref, *there, value_parts)
        score, tanh = plan.scores(data, tile, q, k, hard)
        dp = sum(dot(a, b, (1, 1)) for a, b in zip(d_out, v, strict=True))
        ds = _score_gradient(plan, data, tile, jnp.exp2(score - lse), dp, delta)
        share = _add_bias_gradient(plan, data, tile, grads, ds, hard, share)
        if tanh is not None:
            ds = ds * (1.0 - tanh * tanh)
        ds = ds.astype(k[0].dtype)
        return [a + dot(ds, b, (1, 0)) for a, b in zip(dq, k, strict=True)], share

    dq = [jnp.zeros((launch.queries, part.size), jnp.float32) for part in parts]
    dq, share = plan.visit(data, tile, step, (dq, (jnp.float32(0), jnp.float32(0))))
    store_rows(grads.dq, [x * plan.options.scale for x in dq], *here, parts)
    if grads.slopes is not None:
        plgpu.store(grads.slopes.at[tile.b, tile.head, tile.i], share[0])
    if grads.distances is not None:
        _barrier(plan)
        assert plan.reach is not None
        for end, amount in zip((0, plan.reach[1] - plan.reach[0]), share, strict=True):
            plgpu.store(grads.distances.at[tile.b, tile.head, tile.i, tile.b * 0 + end], amount)


def _score_gradient(plan: Plan, data: Data, tile: Tile, p, dp, delta):
    if plan.options.rate:
        dp = jnp.where(plan.kept(data, tile), dp * (1.0 / (1.0 - plan.options.rate)), 0.0)
    return p * (dp - delta)


def _add_bias_gradient(plan: Plan, data: Data, tile: Tile, grads: Grads, ds: jax.Array, hard: bool, share):
    """Adds a tile's part. ``share``: of the slope; or of distances at both ends of the reach and beyond."""
    launch = plan.launch
    if grads.slopes is not None:
        query, key = plan.places(data, tile)
        return share[0] - (ds * jnp.abs(key - query).astype(jnp.float32)).sum(), share[1]
    if grads.dense is not None:
        if _is_shared(data.dense.shape, plan.shape):
            b, head = choose(tile.b, grads.dense.shape[0]), choose(tile.head, grads.dense.shape[1])
            rows, keys = pl.ds(tile.i * launch.queries, launch.queries), pl.ds(tile.j * launch.keys, launch.keys)
            plgpu.atomic_add(grads.dense, (b, head, rows, keys), ds)
        else:
            view, inside = plan.in_dense(grads.dense, tile)
            plgpu.store(view, ds.astype(grads.dense.dtype), mask=inside)
    if grads.distances is not None:
        corner = tile.j * launch.keys - tile.i * launch.queries - plgpu.load(data.offset_1.at[tile.b * 0])
        assert plan.reach is not None
        if hard:
            return _fold(plan, tile, grads, ds, corner, share)
        amount = ds.sum()
        after = corner >= plan.reach[1]
        return share[0] + jnp.where(after, 0.0, amount), share[1] + jnp.where(after, amount, 0.0)
    return share


def _fold(plan: Plan, tile: Tile, grads: Grads, ds: jax.Array, corner, share):
    """Sums a tile along its diagonals into the program's row of distances.

    Triton can neither roll nor index registers: the tile goes through memory of its own, which stays in the cache.
    """
    assert plan.reach is not None
    launch, (low, high) = plan.launch, plan.reach
    mine = (tile.b, tile.head, tile.i)
    width = pl.next_power_of_2(launch.queries + launch.keys)
    plgpu.store(grads.scratch.at[*mine, pl.ds(0, launch.queries), pl.ds(0, launch.keys)], ds)
    _barrier(plan)
    lane = iota(width)  # 0 is the distance of the first key to the last query

    def rows(n, total):
        row = lax.expand_dims(n * _ROWS + iota(_ROWS), (1,))
        row, key = jnp.broadcast_arrays(row, lax.expand_dims(lane, (0,)) + row - (launch.queries - 1))
        inside = (key >= 0) & (key < launch.keys)
        view = grads.scratch.at[*mine, row, jnp.clip(key, 0, launch.keys - 1)]
        return total + plgpu.load(view, mask=inside, other=0.0).sum(0)

    total = lax.fori_loop(0, launch.queries // _ROWS, rows, jnp.zeros((width,), jnp.float32))
    distance = corner + lane - (launch.queries - 1)
    reached = (distance > low) & (distance < high)
    row = grads.distances.at[*mine, jnp.clip(distance, low, high) - low]
    before = plgpu.load(row, mask=reached, other=0.0)
    plgpu.store(row, before + total, mask=reached)
    _barrier(plan)
    before = share[0] + jnp.where(distance <= low, total, 0.0).sum()
    return before, share[1] + jnp.where(distance >= high, total, 0.0).sum()


def _barrier(plan: Plan) -> None:
    """Lets the program's threads see what the others wrote; the interpreter has one thread."""
    if not plan.options.interpret:
        plgpu.debug_barrier()


def _keys(plan: Plan, data: Data, q, k, v, saved):
    shape = plan.shape
    out = (jax.ShapeDtypeStruct(k.shape, k.dtype), jax.ShapeDtypeStruct(v.shape, v.dtype))
    cost = plan.cost((2, 2), (q, k, v, data, saved, out))
    grid = (plan.blocks[1], shape.K, shape.B)
    kernel = functools.partial(_keys_kernel, plan)
    return plan.call(kernel, grid, out, "attention_dkv", cost)(q, k, v, data, *saved)


def _keys_kernel(plan: Plan, q_ref, k_ref, v_ref, data: Data, d_out_ref, lse_ref, delta_ref, dk_ref, dv_ref):
    """Tiles are [keys, queries] here, so that p and ds are left operands as they come."""
    shape, launch = plan.shape, plan.launch
    key_head = pl.program_id(1)
    tile = Tile(pl.program_id(2), key_head * shape.group, None, pl.program_id(0))
    parts, value_parts = pieces(shape.N), pieces(shape.V)
    here = (tile.b, tile.j * launch.keys, launch.keys, key_head, plan.ragged_keys)
    k, v = load_rows(k_ref, *here, parts), load_rows(v_ref, *here, value_parts)

    def step(tile: Tile, hard: bool, carry):
        dk, dv = carry
        start, ragged = tile.i * launch.queries, plan.ragged_queries
        there = (tile.b, start, launch.queries, tile.head, ragged)
        q, d_out = load_rows(q_ref, *there, parts), load_rows(d_out_ref, *there, value_parts)
        vector = (tile.b, tile.head, start, launch.queries, ragged)
        lse, delta = load_vector(lse_ref, *vector, CEILING), load_vector(delta_ref, *vector, 0.0)
        score, tanh = plan.scores(data, tile, q, k, hard)
        p = jnp.exp2(score - lax.expand_dims(lse, (0,)))
        dp = sum(dot(a, b, (1, 1)) for a, b in zip(v, d_out, strict=True))
        ds = _score_gradient(plan, data, tile, p, dp, lax.expand_dims(delta, (0,)))
        if plan.options.rate:
            p = jnp.where(plan.kept(data, tile), p * (1.0 / (1.0 - plan.options.rate)), 0.0)
        if tanh is not None:
            ds = ds * (1.0 - tanh * tanh)
        p, ds = p.astype(v[0].dtype), ds.astype(k[0].dtype)
        dk = [a + dot(ds, b, (1, 0)) for a, b in zip(dk, q, strict=True)]
        return dk, [a + dot(p, b, (1, 0)) for a, b in zip(dv, d_out, strict=True)]

    dk = [jnp.zeros((launch.keys, part.size), jnp.float32) for part in parts]
    dv = [jnp.zeros((launch.keys, part.size), jnp.float32) for part in value_parts]
    dk, dv = plan.visit(data, tile, step, (dk, dv))
    store_rows(dk_ref, [x * plan.options.scale for x in dk], *here, parts)
    store_rows(dv_ref, dv, *here, value_parts)
