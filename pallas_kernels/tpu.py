"""Attention on TPUs: inputs of the kernels, and results made of their outputs.

Arrays are laid out [batch, head, sequence, size] and padded to whole blocks; gradients of arrays that a mask or a bias
was made of are left to JAX.

Letters: B batch, H query heads, K key heads, L queries, S keys, N size of a query or key head, V of a value head.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from pallas_kernels.biases import Alibi, Bias, Dense, T5Relative
from pallas_kernels.blocks import LANES, BlockSizes, TpuBlocks, tpu_blocks
from pallas_kernels.dropout import Dropout
from pallas_kernels.masks import Mask
from pallas_kernels.tpu_backward import backward_dense, backward_keys, backward_queries
from pallas_kernels.tpu_forward import forward
from pallas_kernels.tpu_scores import (
    FLOOR,
    LOG2E,
    ONES,
    Operand,
    Problem,
    bias_operands,
    mask_operands,
    t5_arrays,
)
from pallas_kernels.tpu_tiles import find_near
from pallas_kernels.visits import cut

LARGEST_HEAD = 256


class Static(NamedTuple):
    """Arguments that a compiled call depends on besides shapes."""

    scale: float
    soft_cap: float
    q_offset: int | None  # None: traced
    blocks: Any
    interpret: Any


class Traced(NamedTuple):
    """Arguments without a gradient."""

    mask: Mask
    dropout: Dropout | None
    q_offset: jax.Array | None


def refusal(q: Any, k: Any, v: Any, bias: Bias | None, blocks: BlockSizes | None) -> str:
    """Reason why the kernels cannot do this: the argument, and the backend that can; empty if they can."""
    head = max(q.shape[3], v.shape[3])
    if head > LARGEST_HEAD:
        return f"q, v: backend 'tpu' has no heads of {head}; allowed: 1 to {LARGEST_HEAD}, or backend='xla'"
    try:
        _sizes(q, k, v, bias, blocks)
    except ValueError as error:
        return str(error).removeprefix("attention: ")
    return ""


def _sizes(q: Any, k: Any, v: Any, bias: Bias | None, blocks: BlockSizes | None) -> TpuBlocks:
    reach = bias.reach if isinstance(bias, T5Relative) else 0
    head_bytes = max(q.shape[3], v.shape[3]) * q.dtype.itemsize
    return tpu_blocks(blocks, q.shape[1], k.shape[1], max(q.shape[3], v.shape[3]), reach, head_bytes)


def attention(
    q_BLHN: jax.Array, k_BSKN: jax.Array, v_BSKV: jax.Array, *, mask: Mask, bias: Bias | None, scale: float,
    soft_cap: float, sinks: jax.Array | None, dropout: Dropout | None, q_offset: int | jax.Array,
    blocks: BlockSizes | None, interpret: Any,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """(output [B, L, H, V], log-sum-exp [B, H, L]); as ``pallas_kernels.attention``."""
    traced = isinstance(q_offset, jax.Array)
    sizes = _sizes(q_BLHN, k_BSKN, v_BSKV, bias, blocks)
    static = Static(scale, soft_cap, None if traced else int(q_offset), sizes, interpret)
    return _attend(static, q_BLHN, k_BSKN, v_BSKV, bias, sinks, Traced(mask, dropout, q_offset if traced else None))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(static, q, k, v, bias, sinks, traced):
    return _attend_forward(static, q, k, v, bias, sinks, traced)[0]


def _attend_forward(static: Static, q, k, v, bias, sinks, traced: Traced):
    L = q.shape[1]
    setup = _Setup(static, q, k, v, bias, traced, backward=False)
    extra = setup.extra()
    if sinks is not None:
        extra["sinks"] = Operand(sinks.astype(jnp.float32) * LOG2E, None)
    arrays = {"q": setup.q(q), "k": setup.k(k), "v": setup.k(v)}
    out, lse2 = forward(setup.problem, arrays, extra, setup.scalars, setup.sizes.forward_sub)
    out, lse2 = out[:, :, :L].swapaxes(1, 2), lse2[:, :, 0, :L]
    out, lse2 = checkpoint_name(out, "attention"), checkpoint_name(lse2, "attention")
    lse = jnp.where(lse2 > 0.5 * FLOOR, lse2 / LOG2E, -jnp.inf)
    return (out, lse), (q, k, v, bias, sinks, traced, out, lse2)


def _attend_backward(static: Static, saved, cotangents):
    q, k, v, bias, sinks, traced, out, lse2 = saved
    dout, dlse = cotangents
    delta = jnp.sum(dout.astype(jnp.float32) * out.astype(jnp.float32), axis=-1).swapaxes(1, 2)  # [B, H, L]
    # the lse's derivative is p; a row without keys has none, whatever comes in
    delta = jnp.where(lse2 > 0.5 * FLOOR, delta - dlse, 0.0)
    dsinks = None
    if sinks is not None:
        share = jnp.exp2(sinks.astype(jnp.float32)[None, :, None] * LOG2E - lse2)
        dsinks = -jnp.sum(jnp.where(lse2 > 0.5 * FLOOR, share * delta, 0.0), axis=(0, 2)).astype(sinks.dtype)
    setup = _Setup(static, q, k, v, bias, traced, backward=True)
    arrays = {
        "q": setup.q(q), "k": setup.k(k), "v": setup.k(v), "dout": setup.q(dout.astype(q.dtype)),
        # what is padded has an lse so large that its exponentials are 0, whatever the bias
        "lse": setup.row(lse2, -FLOOR), "delta": setup.row(delta),
    }  # fmt: skip
    extra, sub = setup.extra(), setup.sizes.backward_sub
    by_distance = isinstance(bias, (T5Relative, Alibi))
    found = backward_keys(setup.problem, arrays, extra, setup.scalars, sub, setup.fused, by_distance)
    dq = found["dq"] if setup.fused else backward_queries(setup.problem, arrays, extra, setup.scalars, sub)
    dbias = setup.bias_gradient(found) if by_distance else None
    if isinstance(bias, Dense):
        gradient = backward_dense(setup.problem, arrays, extra, setup.scalars, bias.array.shape)
        dbias = Dense(gradient.astype(bias.array.dtype))
    dq = dq[:, :, : q.shape[1]].swapaxes(1, 2)
    dk, dv = (_of_key_heads(found[n], x) for n, x in (("dk", k), ("dv", v)))
    return dq, dk, dv, dbias, dsinks, None


_attend.defvjp(_attend_forward, _attend_backward)


def _of_key_heads(gradient_BHSN: jax.Array, like_BSKN: jax.Array) -> jax.Array:
    B, S, K, N = like_BSKN.shape
    grouped = gradient_BHSN[:, :, :S].reshape(B, K, -1, S, N)
    return (grouped[:, :, 0] if grouped.shape[2] == 1 else grouped.sum(2)).astype(like_BSKN.dtype).swapaxes(1, 2)


class _Setup:
    """A call cut into blocks."""

    def __init__(self, static: Static, q, k, v, bias, traced: Traced, backward: bool):
        B, L, H, _ = q.shape
        S, K = k.shape[1:3]
        sizes = self.sizes = static.blocks
        bq, bk = (sizes.backward_queries, sizes.backward_keys) if backward else (sizes.queries, sizes.keys)
        self.bias = bias
        self.q_offset: Any = traced.q_offset if static.q_offset is None else static.q_offset
        blocks = cut(traced.mask, L, S, self.q_offset, bq, bk, (LANES, LANES))
        kind = {T5Relative: "t5", Alibi: "alibi", Dense: "dense"}.get(type(bias), "")
        reach = bias.reach if kind == "t5" else 0
        near = find_near(blocks, reach, self.q_offset) if kind == "t5" else None
        dropout = traced.dropout
        rate = dropout.rate if dropout else 0.0
        self.problem = Problem(
            blocks, static.scale, static.soft_cap, kind, near, reach, rate,
            sizes.sums_by_matmul and not rate and q.dtype == jnp.bfloat16 and v.shape[3] % ONES == 0, H, K,
            static.interpret, sizes.vmem_bytes,
        )  # fmt: skip
        numbers = [self.q_offset, *((dropout.seed, dropout.first_row, dropout.first_head) if dropout else (0, 0, 0))]
        self.scalars = jnp.stack([jnp.asarray(x, jnp.int32) for x in [*numbers, near.first if near else 0]])
        tiles = near.count * bq * bk * 4 if near else 0
        self.fused = backward and sizes.fits_fused(L, q.shape[3], q.dtype.itemsize, tiles)

    def extra(self) -> dict[str, Operand]:
        """Operands of mask and bias."""
        return {**mask_operands(self.problem), **bias_operands(self.bias, self.problem, self.q_offset)}

    def q(self, x_BLHN: jax.Array) -> jax.Array:
        return _padded(x_BLHN.swapaxes(1, 2), self.problem.bq, 2)

    def k(self, x_BSKN: jax.Array) -> jax.Array:
        return _padded(x_BSKN.swapaxes(1, 2), self.problem.bk, 2)

    def row(self, x_BHL: jax.Array, fill: float = 0.0) -> jax.Array:
        return _padded(x_BHL[:, :, None], self.problem.bq, 3, fill)

    def bias_gradient(self, found: dict[str, jax.Array]) -> Bias:
        if isinstance(self.bias, Alibi):
            slopes = self.bias.slopes_H
            return Alibi(jnp.sum(found["slopes_gradient"], axis=(1, 2)).astype(slopes.dtype))
        table = self.bias.table_KH
        exact = dataclasses.replace(self.bias, table_KH=table.astype(jnp.float32))  # summed in float32
        _, pull = jax.vjp(lambda bias: t5_arrays(bias, self.problem, self.q_offset), exact)
        # the arrays hold the bias times log2(e), the gradients are those of the bias itself
        far = jnp.sum(found["far_gradient"], axis=2).T
        (gradient,) = pull((found["windows_gradient"] / LOG2E, far / LOG2E))
        return dataclasses.replace(gradient, table_KH=gradient.table_KH.astype(table.dtype))


def _padded(x: jax.Array, block: int, axis: int, fill: float = 0.0) -> jax.Array:
    missing = -x.shape[axis] % block
    widths = [(0, missing if n == axis else 0) for n in range(x.ndim)]
    return jnp.pad(x, widths, constant_values=fill) if missing else x
