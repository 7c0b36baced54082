"""Attention by cuDNN, through ``jax.nn.dot_product_attention``: for GPUs on which the kernels of ``gpu`` do not lower.

It has less than they have: no bias, and of the masks those that cuDNN makes itself. Must not know which backend is
picked.

Letters: B batch, L queries, S keys, H query heads, K key heads, N size of a head.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from pallas_kernels.masks import And, Causal, Full, Mask, SlidingWindow

LARGEST_HEAD = 128  # 256 from Hopper on; there the kernels of jax 0.10 to 0.12 go as far


class Form(NamedTuple):
    """A mask as cuDNN has it: causal or not, and the columns before a query's own that it sees; None: all."""

    causal: bool
    left: int | None = None


def form(mask: Mask) -> Form | None:
    """None for a mask that cuDNN does not make itself."""
    if isinstance(mask, Full):
        return Form(False)
    if isinstance(mask, Causal):
        return Form(True)
    if isinstance(mask, SlidingWindow) and mask.right == 0:
        return Form(True, mask.left)
    if isinstance(mask, And):
        for one, other in ((mask.one, mask.other), (mask.other, mask.one)):
            if isinstance(one, Causal) and isinstance(other, SlidingWindow):
                return Form(True, other.left)
    return None


def refusal(q: Any, k: Any, v: Any, mask: Mask, **others: Any) -> str:
    """Why cuDNN cannot do this, naming the argument and who can; empty if it can. ``others`` are further arguments of
    ``pallas_kernels.attention`` that it has nothing of: given ones are refused."""
    head, instead = q.shape[3], "or backend='gpu' or 'xla'"
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"q: backend 'cudnn' has no {q.dtype}; allowed: bfloat16, float16, {instead}"
    if head % 8 or head > LARGEST_HEAD or v.shape[3] != head:
        sizes = f"heads of {head} and values of {v.shape[3]}"
        return f"q, v: {sizes}, which backend 'cudnn' does not have; allowed: one multiple of 8 up to {LARGEST_HEAD}"
    if (wanted := form(mask)) is None:
        name = type(mask).__name__
        return f"mask: backend 'cudnn' has no {name}; allowed: Full, Causal, Causal with SlidingWindow, {instead}"
    if wanted.left is not None and q.shape[1] != k.shape[1]:
        return f"mask: backend 'cudnn' has a window for as many queries as keys only; {instead}"
    for name, value in others.items():
        if isinstance(value, jax.Array) or value:
            return f"{name}: backend 'cudnn' has none; {instead}"
    return ""


def attention(
    q_BLHN: jax.Array,
    k_BSKN: jax.Array,
    v_BSKN: jax.Array,
    *,
    mask: Mask,
    scale: float,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:
    """[B, L, H, N], as ``pallas_kernels.attention``, which has checked the arguments.

    Args:
      implementation: ``xla`` computes the same without a GPU.
    """
    wanted = form(mask)
    assert wanted is not None
    out = jax.nn.dot_product_attention(
        q_BLHN, k_BSKN, v_BSKN, scale=scale, is_causal=wanted.causal, implementation=implementation,
        local_window_size=None if wanted.left is None else (wanted.left, 0),
    )  # fmt: skip
    return checkpoint_name(out, "attention")
