"""From rows on the host to arrays on the devices. Knows batches as dicts of arrays, not what is in them."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np

from t5x_like.core.errors import UserError
from t5x_like.sharding.mesh import Placement


def check_batch_size(placement: Placement, batch_size: int, micro_batches: int) -> None:
    """Raises UserError unless the devices can share the rows of every micro-batch evenly."""
    ways = placement.batch_ways
    if (batch_size // micro_batches) % ways:
        raise UserError(
            "train.batch_size",
            f"{batch_size} rows in {micro_batches} micro-batches cannot be shared evenly among {ways} devices "
            "(mesh.data x mesh.fsdp)",
            f"a multiple of {micro_batches * ways}",
            f"train.batch_size={-(-batch_size // (micro_batches * ways)) * micro_batches * ways}",
        )


def local_share(placement: Placement, batch_size: int) -> tuple[int, int]:
    """(index, count): this process holds the index-th of count equal runs of the rows of every batch.

    Where a mesh axis that does not split batches spans processes, several of them hold the same rows.

    Raises:
      UserError: this process's rows are not one run of rows.
    """
    indices = placement.batch.addressable_devices_indices_map((batch_size,)).values()
    spans = {(s[0].start or 0, s[0].stop if s[0].stop is not None else batch_size) for s in indices if s is not None}
    start, stop = min(a for a, _ in spans), max(b for _, b in spans)
    if sum(b - a for a, b in spans) != stop - start or batch_size % (stop - start) or start % (stop - start):
        raise UserError("mesh", f"gives this process rows {sorted(spans)} of a batch", "one run of rows per process")
    return start // (stop - start), batch_size // (stop - start)


def to_devices(placement: Placement, local: Mapping[str, np.ndarray], share: tuple[int, int]) -> dict[str, jax.Array]:
    """The global batch as sharded arrays, of which this process gives its ``local`` rows. Does not wait for copies."""
    index, count = share
    arrays = {}
    for name, rows in local.items():
        first = index * rows.shape[0]

        def take(where, rows=rows, first=first):
            a, b = where[0].start or 0, where[0].stop
            return rows[a - first : None if b is None else b - first]

        shape = (rows.shape[0] * count, *rows.shape[1:])
        arrays[name] = jax.make_array_from_callback(shape, placement.batch, take)
    return arrays
