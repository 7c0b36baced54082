"""Attention of models: the kernels of ``pallas_kernels`` on the mesh in force, and the masks and biases that they take.

The one place that imports them. Each device computes its own rows and heads: partitioners cannot look into a kernel, so
that is said here (``shard_map``), for every backend alike. Must not know layers.

Letters: B batch, L queries, S keys, H query heads, K key heads, N size of a head.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import jax
from jax.sharding import PartitionSpec

import pallas_kernels
from pallas_kernels import Bias, Choice, Dropout, Mask, biases, choose, masks
from t5x_like.sharding.mesh import Placement, by_device, current_placement, first_row, place_along

__all__ = ["Backend", "Bias", "Choice", "Mask", "attention", "attention_scale", "biases", "choose", "masks"]

Backend = Literal["auto", "tpu", "gpu", "cudnn", "xla"]


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
    placement, dropout = current_placement(), None
    if dropout_rate and dropout_key is not None:
        dropout = dataclasses.replace(Dropout.from_key(dropout_rate, dropout_key), first_row=first_row(q_BLHN.shape[0]))

    def local(q, k, v, mask, bias, dropout, query_offset) -> Any:
        return pallas_kernels.attention(  # not return_lse: one array
            q, k, v, mask=mask, bias=bias, scale=scale, soft_cap=soft_cap, dropout=dropout, q_offset=query_offset,
            backend=backend, interpret=interpret, device=placement and placement.device,
        )  # fmt: skip

    if placement is None or placement.alone:
        return local(q_BLHN, k_BSKN, v_BSKN, mask, bias, dropout, query_offset)
    return _on_mesh(placement, local, q_BLHN, k_BSKN, v_BSKN, mask, bias, dropout, query_offset)


def _on_mesh(placement: Placement, local: Any, q, k, v, mask, bias, dropout: Dropout | None, query_offset) -> jax.Array:
    """Each device's rows and heads, as far as the mesh divides them; what it does not divide is computed by all."""
    rows, heads = placement.splitting("batch", q.shape[0]), placement.splitting("heads", q.shape[2], k.shape[2])

    def spec(array: jax.Array, axes: tuple[str, ...]) -> PartitionSpec:
        """As a mask or bias names the dimensions; one of size 1 is for all rows or heads."""
        split = {"batch": rows, "heads": heads}
        return PartitionSpec(*(split.get(axis) if n > 1 else None for axis, n in zip(axes, array.shape, strict=True)))

    traced = isinstance(query_offset, jax.Array)
    activations = PartitionSpec(rows, None, heads, None)
    arrays = (q, k, v, mask, bias, dropout, query_offset if traced else None)
    specs = (
        activations, activations, activations, jax.tree.map(spec, mask, mask.axes()),
        None if bias is None else jax.tree.map(spec, bias, bias.axes()),
        jax.tree.map(lambda _: PartitionSpec(), dropout), PartitionSpec() if traced else None,
    )  # fmt: skip

    def shard(q, k, v, mask, bias, dropout, offset):
        if dropout is not None:
            first_row = dropout.first_row + place_along(rows) * q.shape[0]
            dropout = Dropout(dropout.rate, dropout.seed, first_row, place_along(heads) * q.shape[2])
        return local(q, k, v, mask, bias, dropout, offset if traced else query_offset)

    return by_device(shard, specs, activations)(*arrays)


def attention_scale(head_size: int, scaled: bool) -> float:
    """1 / sqrt(head size) (Vaswani et al. 2017, equation 1), or 1 where the initialization has it (T5)."""
    return 1.0 / math.sqrt(head_size) if scaled else 1.0
