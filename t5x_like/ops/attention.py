"""Attention of models: the kernels of ``pallas_kernels`` on the mesh in force, and the masks and biases that they take.

The one place that imports them. Each device computes its own rows and heads: partitioners cannot look into a kernel, so
that is said here (``shard_map``), for every backend alike. Must not know layers.

Letters: B batch, L queries, S keys, H query heads, K key heads, N size of a head.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

import pallas_kernels
from pallas_kernels import (
    Alibi,
    Bias,
    Causal,
    Choice,
    Dense,
    Dropout,
    Full,
    Mask,
    Ordered,
    Prefix,
    Segments,
    SlidingWindow,
    T5Relative,
    alibi_slopes,
    choose,
    relative_buckets,
)
from t5x_like.sharding.mesh import Placement, current_placement

__all__ = [
    "Alibi", "Backend", "Bias", "Causal", "Choice", "Dense", "Full", "Mask", "Ordered", "Prefix", "Segments",
    "SlidingWindow", "T5Relative", "alibi_slopes", "attention", "attention_scale", "choose", "relative_buckets",
]  # fmt: skip

Backend = Literal["auto", "tpu", "gpu", "xla"]


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
    backend: Backend = "auto",
    interpret: bool = False,
) -> jax.Array:
    """softmax(soft_cap(scale * q k^T) + bias, over the keys the mask allows) v.

    Args:
      q_BLHN, k_BSKN, v_BSKN: queries, keys, values; K divides H, and head h reads key head h // (H // K).
      mask: allowed pairs of query and key.
      bias: added to the scores, or None.
      scale: factor of the scores; 1 for T5, 1 / sqrt(N) for most others.
      soft_cap: scores become cap * tanh(scores / cap); 0 is off.
      dropout_rate: dropout of the attention probabilities, where ``dropout_key`` is given; the same bits on any mesh.
      query_offset: column of the first query: 0, or the column reached while decoding.
      backend, interpret: as for ``pallas_kernels.attention``.

    Returns:
      [B, L, H, N] in the dtype of q. A query without any allowed key gives 0.

    Raises:
      ValueError: as ``pallas_kernels.attention``.
    """
    dropout = None
    if dropout_rate and dropout_key is not None:
        dropout = Dropout.from_key(dropout_rate, dropout_key)

    def local(q, k, v, mask, bias, dropout, query_offset) -> Any:
        return pallas_kernels.attention(  # not return_lse: one array
            q, k, v, mask=mask, bias=bias, scale=scale, soft_cap=soft_cap, dropout=dropout, q_offset=query_offset,
            backend=backend, interpret=interpret,
        )  # fmt: skip

    placement = current_placement()
    if placement is None or placement.mesh.size == 1:
        return local(q_BLHN, k_BSKN, v_BSKN, mask, bias, dropout, query_offset)
    return _on_mesh(placement, local, q_BLHN, k_BSKN, v_BSKN, mask, bias, dropout, query_offset)


def _on_mesh(placement: Placement, local: Any, q, k, v, mask, bias, dropout: Dropout | None, query_offset) -> jax.Array:
    """Each device's rows and heads, as far as the mesh divides them; what it does not divide is computed by all."""
    rules, B = dict(placement.rules), q.shape[0]
    rows = _splitting(placement, rules["batch"], B)
    heads = _splitting(placement, rules["heads"], q.shape[2], k.shape[2])

    def first_is_batch(array: jax.Array) -> PartitionSpec:
        return PartitionSpec(rows if array.ndim and array.shape[0] == B else None)

    of_bias = {
        T5Relative: lambda table: PartitionSpec(None, heads),
        Alibi: lambda slopes: PartitionSpec(heads),
        Dense: lambda a: PartitionSpec(rows if a.shape[0] > 1 else None, heads if a.shape[1] > 1 else None),
    }
    traced = isinstance(query_offset, jax.Array)
    arrays = (q, k, v, mask, bias, dropout, query_offset if traced else None)
    activations = PartitionSpec(rows, None, heads, None)
    specs = (
        activations, activations, activations, jax.tree.map(first_is_batch, mask),
        None if bias is None else jax.tree.map(of_bias[type(bias)], bias),
        jax.tree.map(lambda _: PartitionSpec(), dropout), PartitionSpec() if traced else None,
    )  # fmt: skip

    def shard(q, k, v, mask, bias, dropout, offset):
        if dropout is not None:
            first_row = _place(placement, rows) * q.shape[0]
            first_head = _place(placement, heads) * q.shape[2]
            dropout = Dropout(dropout.rate, dropout.seed, first_row, first_head)
        return local(q, k, v, mask, bias, dropout, offset if traced else query_offset)

    return jax.shard_map(shard, mesh=placement.mesh, in_specs=specs, out_specs=activations, check_vma=False)(*arrays)


def _splitting(placement: Placement, names: tuple[str, ...], *sizes: int) -> tuple[str, ...]:
    """The mesh axes, if they divide all sizes; none otherwise."""
    names = tuple(name for name in names if placement.mesh.shape[name] > 1)
    ways = math.prod(placement.mesh.shape[name] for name in names)
    return names if all(size % ways == 0 for size in sizes) else ()


def _place(placement: Placement, names: tuple[str, ...]) -> jax.Array:
    """This device's number along mesh axes, the first one slowest."""
    place = jnp.int32(0)
    for name in names:
        place = place * placement.mesh.shape[name] + jax.lax.axis_index(name)
    return place


def attention_scale(head_size: int, scaled: bool) -> float:
    """1 / sqrt(head size) (Vaswani et al. 2017, equation 1), or 1 where the initialization has it (T5)."""
    return 1.0 / math.sqrt(head_size) if scaled else 1.0
