"""From rows on the host to arrays on the devices. Knows batches as dicts of arrays; must not know their content."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from jax.sharding import NamedSharding

from t5x_like.core.batch import text_arrays
from t5x_like.core.errors import refuse
from t5x_like.input_pipeline.batches.features import Batch as HostBatch
from t5x_like.input_pipeline.batches.features import TokenCount, tokens_in
from t5x_like.sharding.mesh import Placement

_DECLARED = text_arrays(encoder=True, decoder=True)


def check_batch_size(placement: Placement, batch_size: int, micro_batches: int) -> None:
    """Raises UserError unless the devices can share the rows of every micro-batch evenly."""
    ways = placement.batch_ways
    each = micro_batches * ways
    refuse((batch_size // micro_batches) % ways > 0, "train.batch_size",
           f"{batch_size} rows in {micro_batches} micro-batches cannot be shared evenly among {ways} devices "
           "(mesh.data x mesh.fsdp)", f"a multiple of {each}", f"train.batch_size={-(-batch_size // each) * each}")


def local_share(placement: Placement, batch_size: int) -> tuple[int, int]:
    """(index, count): this process holds the index-th of ``count`` equal stretches of the rows of every batch.

    Where a mesh axis that does not split batches spans processes, several of them hold the same rows.

    Raises:
      UserError: this process's rows are not contiguous.
    """
    indices = placement.batch.addressable_devices_indices_map((batch_size,)).values()
    spans = {(s[0].start or 0, s[0].stop if s[0].stop is not None else batch_size) for s in indices if s is not None}
    start, stop = min(a for a, _ in spans), max(b for _, b in spans)
    rows = stop - start
    refuse(sum(b - a for a, b in spans) != rows or batch_size % rows + start % rows > 0, "mesh",
           f"gives this process rows {sorted(spans)} of a batch", "one run of rows per process")
    return start // rows, batch_size // rows


def to_devices(placement: Placement, local: Mapping[str, np.ndarray], share: tuple[int, int]) -> dict[str, jax.Array]:
    """The global batch as sharded arrays; this process contributes its ``local`` rows. Does not wait for copies."""
    index, count = share
    arrays = {}
    for name, rows in local.items():
        first = index * rows.shape[0]

        def take(where, rows=rows, first=first):
            a, b = where[0].start or 0, where[0].stop
            return rows[(slice(a - first, None if b is None else b - first), *where[1:])]

        shape = (rows.shape[0] * count, *rows.shape[1:])
        arrays[name] = jax.make_array_from_callback(shape, _sharding(placement, name, shape), take)
    return arrays


@functools.lru_cache(maxsize=64)
def _sharding(placement: Placement, name: str, shape: tuple[int, ...]) -> NamedSharding:
    declared = _DECLARED.get(name)  # what is not, has its rows first
    return placement.sharding(declared.axes, shape, name) if declared else placement.batch


class Feed:
    """Iterates over batches on the devices, one ahead of the step that needs it, and counts their tokens.

    Args:
      placement: mesh and rules of the arrays.
      reader: iterator of (step, this process's rows).
      share: this process's share of each batch.
    """

    def __init__(self, placement: Placement, reader: Iterator[tuple[int, HostBatch]], share: tuple[int, int]):
        self._placement, self._reader, self._share = placement, reader, share
        self._tokens = self._slots = 0

    @property
    def fill(self) -> float:
        """The share of places that held a token, in all batches given out so far."""
        return self._tokens / max(self._slots, 1)

    def __iter__(self) -> Iterator[dict[str, jax.Array]]:
        placed = ((to_devices(self._placement, rows, self._share), tokens_in(rows)) for _, rows in self._reader)
        end = {}, TokenCount(0, 0, 0)
        for (batch, count), _ in itertools.pairwise(itertools.chain(placed, [end])):  # the second is one ahead
            self._tokens, self._slots = self._tokens + count.tokens, self._slots + count.slots
            yield batch
