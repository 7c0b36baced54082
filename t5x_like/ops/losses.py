"""Cross-entropy of a vocabulary projection, with its gradient computed beside it.

The softmax is computed once: the forward pass of the gradient already forms the gradient of the logits, multiplies it
back through the projection, and keeps only what has the size of activations and weights. Over chunks of the sequence
the logits of a large vocabulary are never whole in memory. Targets are never one-hot arrays, and what counts is said
by explicit weights: no target id is special.

Letters: B batch, L positions, D model width, V vocabulary.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from t5x_like.sharding.mesh import constrain, split


class Head(NamedTuple):
    """A vocabulary projection: logits = cap(scale * x W^T + bias)."""

    kernel_VD: jax.Array
    bias_V: jax.Array | None = None
    scale: float = 1.0
    soft_cap: float = 0.0

    def logits(self, x: jax.Array) -> jax.Array:
        """[..., V] in float32 from [..., D], accumulated in float32."""
        rows, kernel = x.reshape(-1, x.shape[-1]), self.kernel_VD.astype(x.dtype)
        out = jax.lax.dot_general(rows, kernel, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
        out = out * self.scale if self.scale != 1.0 else out
        out = out if self.bias_V is None else out + self.bias_V.astype(jnp.float32)
        out = out.reshape(*x.shape[:-1], -1)
        return self.soft_cap * jnp.tanh(out / self.soft_cap) if self.soft_cap else out


class LossSums(NamedTuple):
    """Sums over the targets, each to be divided by ``weight``; float32 scalars. Only ``loss`` has a gradient."""

    loss: jax.Array  # what is minimized: nll with label smoothing, plus the z-loss
    nll: jax.Array  # -log p(target)
    z_loss: jax.Array
    correct: jax.Array  # the target was the most likely token
    weight: jax.Array


class LossConfig(NamedTuple):
    """z_loss: factor of log(Z)^2 (PaLM section 5, T5X). label_smoothing: share of the target spread evenly over the
    vocabulary. chunk: positions whose logits are in memory at a time; 0 is all."""

    z_loss: float = 0.0
    label_smoothing: float = 0.0
    chunk: int = 0


PLAIN = LossConfig()


def cross_entropy(
    x_BLD: jax.Array, head: Head, targets_BL: jax.Array, weights_BL: jax.Array, config: LossConfig = PLAIN
) -> LossSums:
    """Sums of weighted cross-entropy.

    Args:
      x_BLD: activations before the projection.
      head: projection to the vocabulary.
      targets_BL: int32 in [0, V); any where the weight is 0.
      weights_BL: float32 weights of the targets; 0 where nothing is predicted.
      config: z-loss, label smoothing, chunk.

    Returns:
      LossSums; dividing ``loss`` by ``weight`` is left to the caller, who may have more batches to add.
    """
    arrays = (x_BLD, head.kernel_VD, head.bias_V)
    return _sums(arrays, targets_BL, weights_BL, (head.scale, head.soft_cap, config))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _sums(arrays, targets_BL, weights_BL, static):
    return _over_chunks(arrays, targets_BL, weights_BL, static, with_gradient=False)[0]


def _sums_backward(static, gradients, cotangents: LossSums):
    scaled = jax.tree.map(lambda g: (g.astype(jnp.float32) * cotangents.loss).astype(g.dtype), gradients)
    return scaled, None, None


def _over_chunks(arrays, targets_BL, weights_BL, static, with_gradient):
    """(sums, gradients of ``arrays``), adding over chunks of the sequence."""
    x_BLD, kernel_VD, bias_V = arrays
    B, L, D = x_BLD.shape
    chunk = static[2].chunk
    if not 0 < chunk < L:
        sums, (dx, dw_DV, db_V) = _one_chunk(x_BLD, kernel_VD, bias_V, targets_BL, weights_BL, static, with_gradient)
        return sums, (dx, _turned(dw_DV), db_V)
    count = -(-L // chunk)

    def cut(a):  # [B, L, ...] -> [count, B, chunk, ...]; what is added at the end has weight 0
        a = jnp.pad(a, ((0, 0), (0, count * chunk - L)) + ((0, 0),) * (a.ndim - 2))
        return jnp.moveaxis(a.reshape(B, count, chunk, *a.shape[2:]), 1, 0)

    def step(total, part):
        sums, gradients = _one_chunk(part[0], kernel_VD, bias_V, part[1], part[2], static, with_gradient)
        dx, *dweights = gradients
        return jax.tree.map(jnp.add, total, (sums, tuple(dweights))), dx

    nothing = LossSums(*(jnp.zeros((), jnp.float32) for _ in LossSums._fields))
    zeros = jax.tree.map(jnp.zeros_like, (kernel_VD.T, bias_V)) if with_gradient else (None, None)
    (sums, (dw_DV, db_V)), dx = jax.lax.scan(step, (nothing, zeros), (cut(x_BLD), cut(targets_BL), cut(weights_BL)))
    if dx is not None:
        dx = jnp.moveaxis(dx, 0, 1).reshape(B, count * chunk, D)[:, :L]
    return sums, (dx, _turned(dw_DV), db_V)


_sums.defvjp(functools.partial(_over_chunks, with_gradient=True), _sums_backward)


def _turned(dw_DV: jax.Array | None) -> jax.Array | None:
    """[V, D]. The barrier keeps XLA from putting the turn into the product again, where it costs most."""
    return None if dw_DV is None else jax.lax.optimization_barrier(dw_DV).T


def _one_chunk(x_BLD, kernel_VD, bias_V, targets_BL, weights_BL, static, with_gradient):
    scale, soft_cap, config = static
    V = kernel_VD.shape[0]
    logits_BLV = constrain(Head(kernel_VD, bias_V, scale, soft_cap).logits(x_BLD), "batch", "length", "vocab")
    peak_BL1 = jnp.max(logits_BLV, axis=-1, keepdims=True)
    exp_BLV = jnp.exp(logits_BLV - peak_BL1)
    total_BL1 = jnp.sum(exp_BLV, axis=-1, keepdims=True)
    lse_BL = (peak_BL1 + jnp.log(total_BL1))[..., 0]
    is_target = jnp.arange(V, dtype=targets_BL.dtype) == targets_BL[..., None]  # fused where it is used, never stored
    if split(V, "vocab"):  # each device has the logits of its own part: a sum, where taking would gather them
        target_BL = jnp.sum(jnp.where(is_target, logits_BLV, 0.0), axis=-1)
    else:
        target_BL = jnp.take_along_axis(logits_BLV, targets_BL[..., None], axis=-1)[..., 0]
    target_BL = jnp.where(weights_BL != 0, target_BL, 0.0)  # an id outside the vocabulary gives NaN, if it counts
    nll_BL = lse_BL - target_BL
    smooth = config.label_smoothing
    loss_BL = nll_BL
    if smooth:
        loss_BL = lse_BL - (1 - smooth) * target_BL - smooth * jnp.mean(logits_BLV, axis=-1)
    z_BL = config.z_loss * jnp.square(lse_BL)
    sums = LossSums(
        loss=jnp.sum((loss_BL + z_BL) * weights_BL),
        nll=jnp.sum(nll_BL * weights_BL),
        z_loss=jnp.sum(z_BL * weights_BL),
        correct=jnp.sum(jnp.where(target_BL >= peak_BL1[..., 0], weights_BL, 0.0)),
        weight=jnp.sum(weights_BL),
    )
    if not with_gradient:
        return sums, (None, None, None)
    factor_BL1 = ((1 + 2 * config.z_loss * lse_BL) * weights_BL)[..., None] / total_BL1
    d_BLV = exp_BLV * factor_BL1 - jnp.where(is_target, (1 - smooth) * weights_BL[..., None], 0.0)
    if smooth:
        d_BLV = d_BLV - (smooth / V) * weights_BL[..., None]
    if soft_cap:
        d_BLV = d_BLV * (1 - jnp.square(logits_BLV / soft_cap))
    d_BLV = constrain(d_BLV, "batch", "length", "vocab")
    db_V = None if bias_V is None else jnp.sum(d_BLV, axis=(0, 1)).astype(bias_V.dtype)
    d_MV = (d_BLV * scale if scale != 1.0 else d_BLV).astype(x_BLD.dtype).reshape(-1, V)
    x_MD = x_BLD.reshape(-1, x_BLD.shape[-1])
    dx = jax.lax.dot_general(
        d_MV, kernel_VD.astype(x_BLD.dtype), (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32
    )
    # As [D, V], turned at the end: with the larger dimension last a CPU takes half the time.
    dw_DV = jax.lax.dot_general(x_MD, d_MV, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
    return sums, (dx.reshape(x_BLD.shape).astype(x_BLD.dtype), dw_DV.astype(kernel_VD.dtype), db_V)
