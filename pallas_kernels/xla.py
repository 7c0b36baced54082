"""Attention in plain JAX for every device, with all features: what runs where there is no kernel.

Queries are cut into chunks that read only keys which the mask leaves possible. The chunks are worked on one after the
other, so that scores of [chunk, S] are the largest array; the backward pass makes them again from the log-sum-exp. On a
CPU that is also the fast form: what a chunk makes stays in the cache. Must not know which device it is on, nor kernels.

Nothing loops over batch rows or heads: XLA may have them sharded.

Letters: B batch, L queries, S keys, H query heads, K key heads, G = H / K, N size of a query or key head, V size of a
value head, C queries of a chunk, W keys that the chunk reads.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from pallas_kernels import dropout as bits
from pallas_kernels.biases import Bias, Dense
from pallas_kernels.dropout import Dropout
from pallas_kernels.masks import Full, Mask
from pallas_kernels.rules import Rule, Slots, dense
from pallas_kernels.visits import FULL, BlockMask, cut

MASKED = -1e30  # a finite score: the difference of two is 0, where infinities would give NaN
FLOOR = -0.5e30  # no row's maximum is below: exp(MASKED - FLOOR) is 0, also in rows without any key

# Found by benchmarks/attention_cpu.py's kind of measurement: smaller chunks waste the products, larger ones the cache.
CHUNK = 128
KEY_STEP = 64  # keys read by a chunk begin and end at multiples
WHOLE = 256 * 256  # scores up to which chunks only pay for their compilation where they skip half of the keys
GROUPS = (1, 2, 4)  # each group of chunks is a piece of compiled code


class Fixed(NamedTuple):
    """Arguments known when compiling, see ``attention``; ``offset`` is None where it is traced."""

    scale: float
    soft_cap: float
    offset: int | None
    chunk: int


class Piece(NamedTuple):
    """Chunks of queries after one another, with equally many keys each.

    Attributes:
      first: row of the first query.
      chunk: number of queries of a chunk.
      starts: first key that each chunk reads.
      width: number of keys that each reads.
      masked: whether some pairs may not attend.
    """

    first: int
    chunk: int
    starts: tuple[int, ...]
    width: int
    masked: bool


class At(NamedTuple):
    """One chunk: its first row and key, numbers or traced, and its sizes."""

    row: Any
    start: Any
    chunk: int
    width: int
    masked: bool


class Given(NamedTuple):
    """What decides about a score beside queries and keys; ``offset`` is the column of the first query."""

    fixed: Fixed
    offset: Any
    bias: Bias | None
    rule: Rule
    slots: Slots
    dropout: Dropout | None


def attention(
    q_BLHN: jax.Array,
    k_BSKN: jax.Array,
    v_BSKV: jax.Array,
    *,
    mask: Mask,
    bias: Bias | None,
    scale: float,
    soft_cap: float,
    sinks: jax.Array | None,
    dropout: Dropout | None,
    q_offset: int | jax.Array,
    chunk: int = 0,
) -> tuple[jax.Array, jax.Array]:
    """See ``pallas_kernels.attention``.

    Args:
      chunk: number of queries per chunk; 0: the size that is fast on a CPU.

    Returns:
      [B, L, H, V] in the dtype of q, and the log-sum-exp, [B, H, L] float32.
    """
    traced = isinstance(q_offset, jax.Array)
    fixed = Fixed(scale, soft_cap, None if traced else int(q_offset), chunk)
    return _attention(fixed, q_BLHN, k_BSKN, v_BSKV, bias, sinks, mask, dropout, q_offset if traced else None)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(fixed, q_BLHN, k_BSKN, v_BSKV, bias, sinks, mask, dropout, traced_offset):
    return _forward(fixed, q_BLHN, k_BSKN, v_BSKV, bias, sinks, mask, dropout, traced_offset)[0]


def _forward(fixed, q_BLHN, k_BSKN, v_BSKV, bias, sinks, mask, dropout, traced_offset):
    arguments = q_BLHN, k_BSKN, v_BSKV, bias, sinks, mask, dropout, traced_offset
    given, pieces = _plan(fixed, q_BLHN.shape[1], k_BSKN.shape[1], bias, mask, dropout, traced_offset)
    q_BHLN, k_BKSN, v_BKSV = (_heads_first(x) for x in (q_BLHN, k_BSKN, v_BSKV))

    def step(carry, at):
        k_BKWN, v_BKWV = (_part(x, 2, at.start, at.width) for x in (k_BKSN, v_BKSV))
        return carry, _chunk_forward(given, at, _part(q_BHLN, 2, at.row, at.chunk), k_BKWN, v_BKWV, sinks)

    outs, lses = zip(*(_over(piece, step, None)[1] for piece in pieces), strict=True)
    out_BLHV = jnp.concatenate([_joined(x, 1) for x in outs], axis=1)
    lse_BHL = jnp.concatenate([_joined(x, 2) for x in lses], axis=2)
    out_BLHV, lse_BHL = checkpoint_name(out_BLHV, "attention"), checkpoint_name(lse_BHL, "attention")
    return (out_BLHV, lse_BHL), (arguments, out_BLHV, lse_BHL)


def _chunk_forward(given: Given, at: At, q_BHCN, k_BKWN, v_BKWV, sinks):
    """([B, C, H, V], [B, H, C]) of one chunk."""
    s_BHCW, _ = _scores(given, at, q_BHCN, k_BKWN)
    peak_BHC1 = jnp.maximum(jnp.max(s_BHCW, axis=-1, keepdims=True), FLOOR)
    if sinks is not None:
        sink_1H11 = sinks.astype(jnp.float32)[None, :, None, None]
        peak_BHC1 = jnp.maximum(peak_BHC1, sink_1H11)
    p_BHCW = jnp.exp(s_BHCW - peak_BHC1)
    total_BHC1 = jnp.sum(p_BHCW, axis=-1, keepdims=True)
    if sinks is not None:
        total_BHC1 = total_BHC1 + jnp.exp(sink_1H11 - peak_BHC1)
    if given.dropout is not None:
        p_BHCW = _dropped(given, at, p_BHCW)
    out_BHCV = _times(p_BHCW.astype(v_BKWV.dtype), v_BKWV)
    some_BHC1 = total_BHC1 > 0
    total_BHC1 = jnp.where(some_BHC1, total_BHC1, 1.0)  # rows without a key: 0 / 1
    lse_BHC1 = jnp.where(some_BHC1, peak_BHC1 + jnp.log(total_BHC1), -jnp.inf)
    return _heads_first(out_BHCV / total_BHC1).astype(q_BHCN.dtype), lse_BHC1[..., 0]


def _backward(fixed, kept, cotangents):
    (q_BLHN, k_BSKN, v_BSKV, bias, sinks, mask, dropout, traced_offset), out_BLHV, lse_BHL = kept
    dout_BLHV, dlse_BHL = cotangents
    given, pieces = _plan(fixed, q_BLHN.shape[1], k_BSKN.shape[1], bias, mask, dropout, traced_offset)
    q_BHLN, k_BKSN, v_BKSV, dout_BHLV = (_heads_first(x) for x in (q_BLHN, k_BSKN, v_BSKV, dout_BLHV))
    # sum over the keys of p dp, which a softmax takes off every dp: the output times its gradient
    delta_BLH = jnp.sum(dout_BLHV.astype(jnp.float32) * out_BLHV.astype(jnp.float32), axis=-1)
    # the lse's derivative is p; a row without keys has none, whatever comes in
    delta_BHL = jnp.where(lse_BHL == -jnp.inf, 0.0, delta_BLH.transpose(0, 2, 1) - dlse_BHL)
    lse_BHL = jnp.where(lse_BHL == -jnp.inf, 0.0, lse_BHL)  # so that exp(MASKED - lse) is 0 there too

    def step(carry, at):
        dk_BKNS, dv_BKVS, dbias = carry
        k_BKWN, v_BKWV = (_part(x, 2, at.start, at.width) for x in (k_BKSN, v_BKSV))
        rows = [_part(x, 2, at.row, at.chunk) for x in (q_BHLN, dout_BHLV, lse_BHL, delta_BHL)]
        dq_BHCN, dk_BKNW, dv_BKVW, ds_BHCW = _chunk_backward(given, at, k_BKWN, v_BKWV, *rows)
        carry = (
            _added(dk_BKNS, dk_BKNW, 3, at.start),
            _added(dv_BKVS, dv_BKVW, 3, at.start),
            _bias_backward(given, at, dbias, ds_BHCW),
        )
        return carry, (_heads_first(dq_BHCN) * fixed.scale).astype(q_BLHN.dtype)

    carry = (
        jnp.zeros(k_BKSN.mT.shape, jnp.float32),
        jnp.zeros(v_BKSV.mT.shape, jnp.float32),
        jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), bias),
    )
    dqs = []
    for piece in pieces:
        carry, dq = _over(piece, step, carry)
        dqs.append(_joined(dq, 1))
    dk_BKNS, dv_BKVS, dbias = carry
    dk_BSKN = _heads_first((dk_BKNS * fixed.scale).mT).astype(k_BSKN.dtype)
    dv_BSKV = _heads_first(dv_BKVS.mT).astype(v_BSKV.dtype)
    dbias = jax.tree.map(lambda d, x: d.astype(x.dtype), dbias, bias)
    dsinks = None
    if sinks is not None:
        share_BHL = jnp.exp(sinks.astype(jnp.float32)[None, :, None] - lse_BHL)
        dsinks = -jnp.sum(share_BHL * delta_BHL, axis=(0, 2)).astype(sinks.dtype)
    return jnp.concatenate(dqs, axis=1), dk_BSKN, dv_BSKV, dbias, dsinks, None, None, None


def _chunk_backward(given: Given, at: At, k_BKWN, v_BKWV, q_BHCN, dout_BHCV, lse_BHC, delta_BHC):
    """Gradients of q (not yet times the scale), k (likewise), v and the biased scores, of one chunk; float32.

    Those of k and v have their sizes before the keys: [B, K, N, W].
    """
    dtype = q_BHCN.dtype
    s_BHCW, slope_BHCW = _scores(given, at, q_BHCN, k_BKWN)
    p_BHCW = jnp.exp(s_BHCW - lse_BHC[..., None])
    dp_BHCW = _across(dout_BHCV, v_BKWV)
    seen_BHCW = p_BHCW
    if given.dropout is not None:
        seen_BHCW, dp_BHCW = (_dropped(given, at, x) for x in (p_BHCW, dp_BHCW))
    dv_BKVW = _gathered(seen_BHCW.astype(dtype), dout_BHCV, v_BKWV.shape[1])
    ds_BHCW = p_BHCW * (dp_BHCW - delta_BHC[..., None])
    raw_BHCW = (ds_BHCW if slope_BHCW is None else ds_BHCW * slope_BHCW).astype(dtype)
    return _times(raw_BHCW, k_BKWN), _gathered(raw_BHCW, q_BHCN, k_BKWN.shape[1]), dv_BKVW, ds_BHCW


_attention.defvjp(_forward, _backward)


def _scores(given: Given, at: At, q_BHCN, k_BKWN):
    """Scores with soft cap, bias and mask, and how steep the soft cap is there (None without one)."""
    fixed, slope_BHCW = given.fixed, None
    s_BHCW = _across(q_BHCN, k_BKWN) * fixed.scale
    if fixed.soft_cap:
        capped_BHCW = jnp.tanh(s_BHCW / fixed.soft_cap)
        s_BHCW, slope_BHCW = fixed.soft_cap * capped_BHCW, 1.0 - capped_BHCW * capped_BHCW
    if given.bias is not None:
        s_BHCW = s_BHCW + _bias(given, at, given.bias)
    if at.masked:
        query_C, key_W = _columns(given, at)
        slots = Slots(
            at.chunk, at.width, given.offset,
            [_part(x, 1, at.row, at.chunk) for x in given.slots.query_data],
            [_part(x, 1, at.start, at.width) for x in given.slots.key_data],
            given.slots.tables,
        )  # fmt: skip
        s_BHCW = jnp.where(dense(given.rule, slots, query_C, key_W)[:, None], s_BHCW, MASKED)
    return s_BHCW, slope_BHCW


def _bias(given: Given, at: At, bias: Bias) -> jax.Array:
    """[1 or B, 1 or H, C, W] float32."""
    if isinstance(bias, Dense):
        return _part(_part(bias.array, 2, at.row, at.chunk), 3, at.start, at.width).astype(jnp.float32)
    # by distance alone: queries moved by the first key's column are as good as keys that begin there
    return bias.expand(given.offset + at.row - at.start, at.chunk, at.width).astype(jnp.float32)


def _bias_backward(given: Given, at: At, dbias, ds_BHCW):
    """``dbias`` with the contribution of this chunk."""
    if given.bias is None:
        return None
    shape = jax.eval_shape(lambda bias: _bias(given, at, bias), given.bias).shape
    repeated = tuple(i for i in range(2) if shape[i] == 1 and ds_BHCW.shape[i] > 1)
    ds = jnp.sum(ds_BHCW, axis=repeated, keepdims=True) if repeated else ds_BHCW
    if isinstance(given.bias, Dense):
        rows = _part(dbias.array, 2, at.row, at.chunk)
        return Dense(_placed(dbias.array, _added(rows, ds, 3, at.start), 2, at.row))
    exact = jax.tree.map(lambda x: x.astype(jnp.float32), given.bias)  # pairs are summed in float32
    (of_chunk,) = jax.vjp(lambda bias: _bias(given, at, bias), exact)[1](ds)
    return jax.tree.map(lambda total, x: total + x.astype(jnp.float32), dbias, of_chunk)


def _dropped(given: Given, at: At, x_BHCW):
    """Probabilities, or their gradients, after dropout."""
    drop, (query_C, key_W) = given.dropout, _columns(given, at)
    assert drop is not None
    row_B = drop.first_row + jnp.arange(x_BHCW.shape[0], dtype=jnp.int32)
    head_H = drop.first_head + jnp.arange(x_BHCW.shape[1], dtype=jnp.int32)
    stream_BH11 = bits.stream(drop.seed, row_B[:, None, None, None], head_H[None, :, None, None])
    kept_BHCW = bits.kept(drop.rate, stream_BH11, query_C[None, None, :, None], key_W[None, None, None, :])
    return jnp.where(kept_BHCW, x_BHCW * (1.0 / (1.0 - drop.rate)), 0.0)


def _columns(given: Given, at: At) -> tuple[jax.Array, jax.Array]:
    """Of the chunk's queries and keys."""
    first = jnp.asarray(at.row + given.offset, jnp.int32)
    query_C = first + jnp.arange(at.chunk, dtype=jnp.int32)
    return query_C, jnp.asarray(at.start, jnp.int32) + jnp.arange(at.width, dtype=jnp.int32)


# Products over [batch, key head]; the queries of one key head go behind one another, so that groups stay one product.
def _across(x_BHCN, y_BKWN):
    """[B, H, C, W]"""
    return _product(x_BHCN, y_BKWN, 3).reshape(*x_BHCN.shape[:3], y_BKWN.shape[2])


def _times(x_BHCW, y_BKWN):
    """[B, H, C, N]"""
    return _product(x_BHCW, y_BKWN, 2).reshape(*x_BHCW.shape[:3], y_BKWN.shape[3])


def _product(x_BHCX, y_BKWN, axis: int):
    B, K = y_BKWN.shape[:2]
    x_BKMX = x_BHCX.reshape(B, K, -1, x_BHCX.shape[3])
    return jax.lax.dot_general(
        x_BKMX, y_BKWN, (((3,), (axis,)), ((0, 1), (0, 1))), preferred_element_type=jnp.float32
    )  # fmt: skip


def _gathered(x_BHCW, y_BHCN, K: int):
    """[B, K, N, W]: summed over the queries of each key head. With W last a CPU takes a third of the time."""
    x_BKMW, y_BKMN = (x.reshape(x.shape[0], K, -1, x.shape[3]) for x in (x_BHCW, y_BHCN))
    return jax.lax.dot_general(
        y_BKMN, x_BKMW, (((2,), (2,)), ((0, 1), (0, 1))), preferred_element_type=jnp.float32
    )  # fmt: skip


def _heads_first(x):
    """[B, L, H, N] to [B, H, L, N], and back."""
    return x.transpose(0, 2, 1, 3)


def _part(x, axis: int, start, size: int):
    return x if size == x.shape[axis] else jax.lax.dynamic_slice_in_dim(x, start, size, axis)


def _placed(into, x, axis: int, start):
    return x if x.shape == into.shape else jax.lax.dynamic_update_slice_in_dim(into, x, start, axis)


def _added(into, x, axis: int, start):
    return _placed(into, _part(into, axis, start, x.shape[axis]) + x, axis, start)


def _over(piece: Piece, step: Callable[[Any, At], tuple[Any, Any]], carry):
    """``step`` over a piece's chunks; what it gives is stacked."""
    at = functools.partial(At, chunk=piece.chunk, width=piece.width, masked=piece.masked)
    if len(piece.starts) == 1:
        carry, made = step(carry, at(piece.first, piece.starts[0]))
        return carry, jax.tree.map(lambda x: x[None], made)
    rows = piece.first + piece.chunk * np.arange(len(piece.starts), dtype=np.int32)
    if len(set(piece.starts)) == 1:
        return jax.lax.scan(lambda carry, row: step(carry, at(row, piece.starts[0])), carry, rows)
    starts = np.asarray(piece.starts, np.int32)
    return jax.lax.scan(lambda carry, here: step(carry, at(*here)), carry, (rows, starts))


def _joined(stacked, axis: int):
    """Chunks [chunks, ...] as one array, along ``axis`` of each."""
    x = jnp.moveaxis(stacked, 0, axis)
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


def _plan(fixed: Fixed, queries: int, keys: int, bias, mask: Mask, dropout, traced_offset) -> tuple[Given, list[Piece]]:
    """What decides about scores, and the pieces that go through all queries."""
    offset: Any = fixed.offset if traced_offset is None else traced_offset
    chunk = fixed.chunk or _chunk_size(queries)
    blocks = cut(mask, queries, keys, offset, min(chunk, queries), min(KEY_STEP, keys))
    given = Given(fixed, offset, bias, blocks.rule, blocks.slots, dropout)
    if isinstance(mask, Full):
        blocks = blocks._replace(kinds=np.full_like(blocks.kinds, FULL))  # keys are never read beyond their end
    pieces = _pieces(blocks, queries, keys)
    read = sum(piece.chunk * piece.width * len(piece.starts) for piece in pieces)
    if not fixed.chunk and queries * keys <= WHOLE and read > 0.5 * queries * keys:
        pieces = [Piece(0, queries, (0,), keys, not _all_full(blocks))]
    return given, pieces


def _chunk_size(queries: int) -> int:
    """About ``CHUNK``: a divisor of the length if there is one, as a last chunk of another size is code of its own."""
    divisors = (size for size in range(CHUNK, CHUNK // 2, -8) if queries % size == 0)
    return next(divisors, CHUNK)


def _all_full(blocks: BlockMask) -> bool:
    return blocks.static and bool((blocks.kinds == FULL).all())


def _pieces(blocks: BlockMask, queries: int, keys: int) -> list[Piece]:
    """As few pieces as read hardly more keys than most pieces would."""
    chunk, count = blocks.query_block, queries // blocks.query_block
    first_I, last_I = blocks.possible.argmax(1), blocks.possible.shape[1] - 1 - blocks.possible[:, ::-1].argmax(1)
    empty_I = ~blocks.possible.any(1)
    first_I, last_I = np.where(empty_I, 0, first_I), np.where(empty_I, 0, last_I)
    begin_I, end_I = first_I * blocks.key_block, np.minimum((last_I + 1) * blocks.key_block, keys)

    def piece(chunks: np.ndarray, size: int) -> Piece:
        begin, end = begin_I[chunks], end_I[chunks]
        width = int((end - begin).max())
        span = int(end.max() - begin.min())
        if span <= width * 1.1:  # one place for all is simpler than a place for each
            begin, width = np.full_like(begin, begin.min()), span
        starts = tuple(int(start) for start in np.minimum(begin, keys - width))
        return Piece(int(chunks[0]) * chunk, size, starts, width, not _all_full(blocks))

    tail = [piece(np.asarray([count]), queries % chunk)] if queries % chunk else []
    options = [
        [piece(chunks, chunk) for chunks in np.array_split(np.arange(count), groups)]
        for groups in GROUPS
        if groups <= max(1, min(2, count), count // 2)
    ]
    cost = [sum(p.width * len(p.starts) for p in pieces) for pieces in options]
    return next(pieces for pieces, read in zip(options, cost, strict=True) if read <= 1.15 * min(cost)) + tail
