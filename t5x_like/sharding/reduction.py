"""One sum of the gradients a step over the mesh axes that split rows and replicate parameters.

Left to itself the partitioner sums a gradient where it is computed: in every layer of every micro-batch. Here the
function that computes gradients sees one part of such an axis only (``shard_map``, manual over that axis; the other
axes stay the partitioner's), so that nothing is sent along it until the one sum at the end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

from t5x_like.sharding.mesh import Placement, use


def copying_axes(placement: Placement) -> tuple[str, ...]:
    """The mesh axes of more than one device over which rows are split and no parameter is: ``data``."""
    splitting = {name for axis, names in placement.rules if axis != "batch" for name in names}
    batch = dict(placement.rules)["batch"]
    return tuple(name for name in batch if name not in splitting and placement.mesh.shape[name] > 1)


def data_parallel_gradient(function: Callable[..., Any], placement: Placement | None) -> Callable[..., Any]:
    """``function``, computed by each part of these axes for its own rows, its results added up once at the end.

    Args:
      function: (params, batch, key) to a tree of sums over the batch's rows, such as (sums of losses, gradient). Inside
        it ``constrain`` leaves out these axes, and ``first_row`` numbers the rows as in the whole batch.
      placement: mesh and rules of it. Without such an axis, or with ``reduce`` "per_layer", ``function`` is returned
        as it is.
    """
    if placement is None or placement.reduce != "once" or not (axes := copying_axes(placement)):
        return function
    alone = [name for name, size in placement.mesh.shape.items() if size == 1]  # a kernel wants no axis left over
    inside = dataclasses.replace(placement, manual=(*axes, *alone))

    def local(params, batch, key):
        with use(inside):
            return jax.lax.psum(function(params, batch, key), axes)

    whole, rows = PartitionSpec(), PartitionSpec(axes)
    return jax.shard_map(
        local, mesh=placement.mesh, axis_names=set(inside.manual), in_specs=(whole, rows, whole), out_specs=whole,
        check_vma=False,  # or the transposes would sum each gradient at once
    )  # fmt: skip
