"""Attention behind one call, whatever computes it. A kernel takes its seat in ``attention``, before the reference.

Letters: B batch, L queries, S keys, H query heads, K key heads, G = H / K queries a key head serves, N size of a head.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from t5x_like.ops.biases import Bias
from t5x_like.ops.masks import Full, Mask

MASKED = -1e30  # a finite floor: the difference of two of them is 0, where infinities would give NaN


def attention(
    q_BLHN: jax.Array,
    k_BSKN: jax.Array,
    v_BSKN: jax.Array,
    *,
    mask: Mask,
    bias: Bias | None = None,
    scale: float = 1.0,
    soft_cap: float = 0.0,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    query_offset: jax.Array | int = 0,
) -> jax.Array:
    """softmax(soft_cap(scale * q k^T) + bias, over the keys the mask allows) v.

    Args:
      q_BLHN, k_BSKN, v_BSKN: queries, keys, values; K divides H, and head h reads key head h // (H // K).
      mask: who may attend to whom.
      bias: added to the scores by distance, or None.
      scale: of the scores; 1 for T5, 1 / sqrt(N) for most others.
      soft_cap: scores become cap * tanh(scores / cap); 0 is off.
      dropout_rate: of the attention probabilities, where ``dropout_key`` is given.
      query_offset: the column of the first query: 0, or the position reached while decoding.

    Returns:
      [B, L, H, N] in the dtype of q. A query without any allowed key gives 0.

    Raises:
      ValueError: the heads do not divide.
    """
    if q_BLHN.shape[2] % k_BSKN.shape[2]:
        raise ValueError(f"{k_BSKN.shape[2]} key heads do not divide {q_BLHN.shape[2]} query heads")
    rate = dropout_rate if dropout_key is not None else 0.0
    return reference(q_BLHN, k_BSKN, v_BSKN, mask, bias, scale, soft_cap, rate, dropout_key, query_offset)


def reference(q_BLHN, k_BSKN, v_BSKN, mask, bias, scale, soft_cap, dropout_rate, dropout_key, query_offset):
    """Attention in plain XLA, for every device: the definition that kernels are held to.

    Batched products over [batch, heads] with the division after the product with the values: on a CPU they are the
    fast form, on other devices XLA lays them out as it likes.
    """
    B, L, H, N = q_BLHN.shape
    S, K = k_BSKN.shape[1:3]
    G = H // K
    dtype = q_BLHN.dtype
    # The queries of one key head go behind one another, so that grouped heads stay one batched product.
    q_BKMN = (q_BLHN * jnp.asarray(scale, dtype)).reshape(B, L, K, G, N).transpose(0, 2, 3, 1, 4)
    q_BKMN = q_BKMN.reshape(B, K, G * L, N)
    k_BKSN, v_BKSN = k_BSKN.transpose(0, 2, 1, 3), v_BSKN.transpose(0, 2, 1, 3)
    scores_BHLS = jax.lax.dot_general(
        q_BKMN, k_BKSN, (((3,), (3,)), ((0, 1), (0, 1))), preferred_element_type=jnp.float32
    ).reshape(B, H, L, S)
    if soft_cap:
        scores_BHLS = soft_cap * jnp.tanh(scores_BHLS / soft_cap)
    query_L, key_S = jnp.arange(L, dtype=jnp.int32) + query_offset, jnp.arange(S, dtype=jnp.int32)
    if bias is not None:
        scores_BHLS = scores_BHLS + bias.expand(query_offset, L, S).astype(jnp.float32)[None]
    allowed = None
    if not isinstance(mask, Full):
        allowed = mask.allowed(query_L, key_S)[:, None]
        scores_BHLS = jnp.where(allowed, scores_BHLS, MASKED)
    peak_BHL1 = jax.lax.stop_gradient(jnp.max(scores_BHLS, axis=-1, keepdims=True))
    p_BHLS = jnp.exp(scores_BHLS - peak_BHL1)
    if allowed is not None and mask.may_empty_a_row:
        p_BHLS = jnp.where(allowed, p_BHLS, 0.0)
    total_BHL1 = jnp.sum(p_BHLS, axis=-1, keepdims=True)
    if allowed is not None and mask.may_empty_a_row:
        total_BHL1 = jnp.maximum(total_BHL1, 1e-30)
    if dropout_rate:
        kept = jax.random.bernoulli(dropout_key, 1.0 - dropout_rate, p_BHLS.shape)
        p_BHLS = jnp.where(kept, p_BHLS / (1.0 - dropout_rate), 0.0)
    out_BKMN = jax.lax.dot_general(
        p_BHLS.astype(dtype).reshape(B, K, G * L, S),
        v_BKSN,
        (((3,), (2,)), ((0, 1), (0, 1))),
        preferred_element_type=jnp.float32,
    )
    out_BHLN = out_BKMN.reshape(B, H, L, -1) / total_BHL1
    return out_BHLN.transpose(0, 2, 1, 3).astype(dtype)


def attention_scale(head_size: int, scaled: bool) -> float:
    """1 / sqrt(head size) (Vaswani et al. 2017, equation 1), or 1 where the initialization has it (T5)."""
    return 1.0 / math.sqrt(head_size) if scaled else 1.0
