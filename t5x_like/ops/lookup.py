"""Rows of a table by number, also where the table's rows are split over devices.

Letters: V rows of the table, D width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from t5x_like.sharding.mesh import by_device, constrain, place_along, split


def lookup(table_VD: jax.Array, ids: jax.Array, axis: str) -> jax.Array:
    """[..., D] for ids [...] in [0, V); ``axis`` is the logical axis of the table's rows.

    Where the mesh splits the rows, each device looks up those that it has, and the results are added. Left to the
    partitioner, a gather along a split dimension aborts the process on meshes of three axes (XLA of jax 0.12).
    """
    # Not split along the width, as activations are not: else the partitioner replicates the looked-up rows.
    table_VD = constrain(table_VD, axis, "activation")
    over = split(table_VD.shape[0], axis)
    if not over:
        return jnp.take(table_VD, ids, axis=0)
    rows = PartitionSpec(split(ids.shape[0], "batch"))

    def own(table_VD, ids):
        local = ids - place_along(over) * table_VD.shape[0]
        here = (local >= 0) & (local < table_VD.shape[0])
        elsewhere = table_VD.shape[0]  # filled with 0, and without a gradient
        return jnp.take(table_VD, jnp.where(here, local, elsewhere), axis=0, mode="fill", fill_value=0)[None]

    return by_device(own, (PartitionSpec(over), rows), PartitionSpec(over, *rows))(table_VD, ids).sum(0)
