"""Attention for NVIDIA GPUs: Pallas kernels on Triton, forward here and backward in ``gpu_backward``.

Flash attention (Dao 2023, FlashAttention-2): a program owns a block of queries and passes over the blocks of keys that
its list names (``gpu_tiles``), keeping a running maximum and sum in float32, in units of log 2. Must not know which
backend is picked.

Letters: B batch, L queries, S keys, H query heads, K key heads, N size of a query or key head, V size of a value head.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels import gpu_backward
from pallas_kernels.biases import Bias, Dense
from pallas_kernels.blocks import BlockSizes, resolve
from pallas_kernels.dropout import Dropout, stream
from pallas_kernels.gpu_plan import prepare
from pallas_kernels.gpu_tiles import (
    FLOOR,
    LOG2E,
    Data,
    Launch,
    Options,
    Plan,
    Sizes,
    Tile,
    dot,
    iota,
    load_rows,
    pieces,
    store_rows,
)
from pallas_kernels.masks import Mask

LARGEST_HEAD = 256

# Launches of the forward kernel, of dq and of dk and dv, by bytes of an element and the larger of a head's two sizes,
# rounded up; then what a bias, which takes registers, changes in them. Chosen so that no chip spills in bfloat16 with
# heads of 64 and 128, or little (benchmarks/kernels_gpu.py); they have not been timed.
_LAUNCHES = {
    (2, 64): (Launch(128, 64, 4, 3), Launch(64, 64, 4, 3), Launch(64, 64, 4, 3)),
    (2, 128): (Launch(128, 64, 8, 3), Launch(64, 64, 4, 2), Launch(64, 64, 8, 2)),
    (2, 256): (Launch(64, 32, 8, 2), Launch(64, 32, 4, 2), Launch(32, 64, 8, 2)),
    (4, 64): (Launch(64, 32, 8, 2), Launch(32, 32, 4, 2), Launch(32, 32, 4, 2)),
    (4, 128): (Launch(32, 16, 4, 1), Launch(32, 32, 8, 2), Launch(32, 32, 8, 2)),
    (4, 256): (Launch(32, 16, 8, 1), Launch(16, 32, 4, 1), Launch(16, 16, 4, 1)),
}
_WITH_BIAS = {(2, 128): (Launch(128, 64, 8, 3), Launch(64, 32, 4, 2), Launch(64, 64, 8, 2))}
_WITH_DENSE_BIAS = {(2, 64): (Launch(128, 64, 8, 3), Launch(64, 32, 4, 3), Launch(32, 64, 4, 3))}


def refusal(q: Any, k: Any, v: Any) -> str:
    """Reason why the kernels cannot do this: the argument, and the backend that can; empty if they can."""
    for name, size in (("q and k", q.shape[3]), ("v", v.shape[3])):
        if not 1 <= size <= LARGEST_HEAD:
            allowed = f"allowed: 1 to {LARGEST_HEAD}; or backend='xla'"
            return f"{name}: head size {size}, which backend 'gpu' does not have; {allowed}"
    for name, array in (("q", q), ("k", k)):
        if not array.shape[0] * array.shape[1] * array.shape[2]:
            return f"{name}: shape {array.shape} is empty, which backend 'gpu' does not have; try backend='xla'"
    return ""


def attention(
    q_BLHN: jax.Array, k_BSKN: jax.Array, v_BSKV: jax.Array, *, mask: Mask, bias: Bias | None, scale: float,
    soft_cap: float, sinks: jax.Array | None, dropout: Dropout | None, q_offset: int | jax.Array,
    blocks: BlockSizes | None, interpret: bool,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """As ``pallas_kernels.attention``, which has checked the arguments.

    Returns:
      [B, L, H, V] in the dtype of q, and [B, H, L] float32, the log-sum-exp.

    Raises:
      ValueError: block sizes that are not powers of 2 from 16.
    """
    shape = Sizes.of(q_BLHN, k_BSKN, v_BSKV)
    known = not isinstance(q_offset, jax.Array)
    options = Options(
        scale, soft_cap, dropout.rate if dropout else 0.0, int(q_offset) if known else None,
        *_launches(shape, q_BLHN.dtype.itemsize, bias, resolve(blocks, max(shape.N, shape.V), shape.S)), interpret,
    )  # fmt: skip
    streams_BH = None
    if dropout is not None:
        row = jnp.asarray(dropout.first_row, jnp.int32) + iota(shape.B)
        head = jnp.asarray(dropout.first_head, jnp.int32) + iota(shape.H)
        streams_BH = stream(dropout.seed, lax.expand_dims(row, (1,)), lax.expand_dims(head, (0,)))
    offset = None if known else q_offset
    return _attention(options, q_BLHN, k_BSKN, v_BSKV, mask, bias, sinks, streams_BH, offset)


def _launches(shape: Sizes, itemsize: int, bias: Bias | None, blocks: BlockSizes) -> tuple[Launch, Launch, Launch]:
    case = itemsize, next(size for size in (64, 128, 256) if max(shape.N, shape.V) <= size)
    changes = {} if bias is None else _WITH_BIAS | (_WITH_DENSE_BIAS if isinstance(bias, Dense) else {})
    forward, *backward = (_LAUNCHES | changes)[case]
    for_queries, for_keys = (_sized(x, shape, blocks.backward_queries, blocks.backward_keys) for x in backward)
    return _sized(forward, shape, blocks.queries, blocks.keys), for_queries, for_keys


def _sized(launch: Launch, shape: Sizes, queries: int, keys: int) -> Launch:
    """With the sizes asked for, and none larger than the call needs."""
    for name, size in (("queries", queries), ("keys", keys)):
        if size and (size < 16 or size & (size - 1)):
            raise ValueError(f"attention: blocks: got {size} {name} for backend 'gpu'; allowed: powers of 2 from 16")
    need_queries, need_keys = (max(16, pl.next_power_of_2(n)) for n in (shape.L, shape.S))
    queries, keys = queries or min(launch.queries, need_queries), keys or min(launch.keys, need_keys)
    return launch._replace(queries=queries, keys=keys)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(options: Options, q, k, v, mask, bias, sinks, streams_BH, offset):
    return _forward(options, q, k, v, mask, bias, sinks, streams_BH, offset)


def _forward(options: Options, q, k, v, mask, bias, sinks, streams_BH, offset):
    shape = Sizes.of(q, k, v)
    place = offset if options.q_offset is None else options.q_offset
    plan, data = prepare(options, shape, options.forward, False, mask, bias, sinks, streams_BH, place)
    out = (
        jax.ShapeDtypeStruct((shape.B, shape.L, shape.H, shape.V), q.dtype),
        jax.ShapeDtypeStruct((shape.B, shape.H, shape.L), jnp.float32),
    )
    grid = (plan.blocks[0], shape.H, shape.B)
    cost = plan.cost((1, 1), (q, k, v, data, out))
    return plan.call(functools.partial(_forward_kernel, plan), grid, out, "attention_forward", cost)(q, k, v, data)


def _forward_rule(options: Options, q, k, v, mask, bias, sinks, streams_BH, offset):
    out, lse = _forward(options, q, k, v, mask, bias, sinks, streams_BH, offset)
    out, lse = checkpoint_name(out, "attention"), checkpoint_name(lse, "attention")
    return (out, lse), (q, k, v, mask, bias, sinks, streams_BH, offset, out, lse)


def _backward_rule(options: Options, saved, gradients):
    q, k, v, mask, bias, sinks, streams_BH, offset, out, lse = saved
    place = offset if options.q_offset is None else options.q_offset
    call = (options, q, k, v, mask, bias, sinks, streams_BH, place, out, lse)
    dq, dk, dv, d_bias, d_sinks = gpu_backward.backward(*call, *gradients)
    return dq, dk, dv, None, d_bias, d_sinks, None, None


_attention.defvjp(_forward_rule, _backward_rule)


def _forward_kernel(plan: Plan, q_ref, k_ref, v_ref, data: Data, out_ref, lse_ref):
    shape, launch = plan.shape, plan.launch
    # The last queries have most to do under a causal mask, so they start first.
    tile = Tile(pl.program_id(2), pl.program_id(1), plan.blocks[0] - 1 - pl.program_id(0), None)
    key_head = lax.div(tile.head, jnp.int32(shape.group))
    parts, value_parts = pieces(shape.N), pieces(shape.V)
    start = tile.i * launch.queries
    q = load_rows(q_ref, tile.b, start, launch.queries, tile.head, plan.ragged_queries, parts)

    def step(tile: Tile, hard: bool, carry):
        greatest, total, out = carry
        ragged = plan.ragged_keys if hard else 0  # an easy tile has no place without a key
        here = (tile.b, tile.j * launch.keys, launch.keys, key_head, ragged)
        k = load_rows(k_ref, *here, parts)
        score, _ = plan.scores(data, tile, q, k, hard)
        raised = jnp.maximum(greatest, score.max(1))
        shrink = jnp.exp2(greatest - raised)
        p = jnp.exp2(score - lax.expand_dims(raised, (1,)))
        total = total * shrink + p.sum(1)
        if plan.options.rate:
            p = jnp.where(plan.kept(data, tile), p, 0.0)
        v = load_rows(v_ref, *here, value_parts)
        shrink, p = lax.expand_dims(shrink, (1,)), p.astype(v[0].dtype)
        return raised, total, [o * shrink + dot(p, x, (1, 0)) for o, x in zip(out, v, strict=True)]

    greatest = jnp.full((launch.queries,), FLOOR, jnp.float32)
    total = jnp.zeros((launch.queries,), jnp.float32)
    if data.sinks_H is not None:
        sink = plgpu.load(data.sinks_H.at[tile.head])
        greatest = jnp.maximum(greatest, sink)
        total = jnp.exp2(sink - greatest)
    out = [jnp.zeros((launch.queries, part.size), jnp.float32) for part in value_parts]
    greatest, total, out = plan.visit(data, tile, step, (greatest, total, out))
    some = total > 0.0
    total = jnp.where(some, total, 1.0)
    norm = lax.expand_dims(1.0 / ((1.0 - plan.options.rate) * total), (1,))
    out = [o * norm for o in out]
    store_rows(out_ref, out, tile.b, start, launch.queries, tile.head, plan.ragged_queries, value_parts)
    lse = jnp.where(some, (greatest + jnp.log2(total)) * (1.0 / LOG2E), -jnp.inf)
    inside = start + iota(launch.queries) < shape.L if plan.ragged_queries else None
    plgpu.store(lse_ref.at[tile.b, tile.head, pl.ds(start, launch.queries)], lse, mask=inside)
