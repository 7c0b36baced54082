"""From rows on the host to arrays on the devices. Knows batches as dicts of arrays; must not know their content."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np
from jax.sharding import NamedSharding

from t5x_like.core.batch import text_arrays
from t5x_like.core.errors import refuse
from t5x_like.input_pipeline.batches.features import Batch as HostBatch
from t5x_like.input_pipeline.batches.features import TokenCount, tokens_in
from t5x_like.plan.memory import batch_arrays
from t5x_like.sharding.mesh import Placement
from t5x_like.train.config import Run

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

    Where a mesh axis that does not split batches spans processes, several of them hold the same rows. On a torus the
    devices of a process may lie apart in the mesh: its stretch then fills their places in order, so that the rows of a
    batch come to the devices in another order.

    Raises:
      UserError: two processes share some of their rows and not all.
    """
    held: dict[int, set[tuple[int, int]]] = {}
    for device, where in placement.batch.devices_indices_map((batch_size,)).items():
        held.setdefault(device.process_index, set()).add(where[0].indices(batch_size)[:2])
    distinct = sorted({tuple(sorted(spans)) for spans in held.values()})
    rows = {sum(end - first for first, end in spans) for spans in distinct}
    refuse(rows != {batch_size // len(distinct)}, "mesh", "gives processes rows of a batch that overlap",
           "each row to one process, or to several that hold the same rows", "mesh.tensor=1")
    return distinct.index(tuple(sorted(held[jax.process_index()]))), len(distinct)


def to_devices(placement: Placement, local: Mapping[str, np.ndarray], share: tuple[int, int]) -> dict[str, jax.Array]:
    """The global batch as sharded arrays; this process contributes its ``local`` rows. Does not wait for copies."""
    arrays = {}
    for name, rows in local.items():
        count = rows.shape[0] * share[1]
        shape = (count, *rows.shape[1:])
        sharding, starts = _places(placement, name, shape)

        def take(where, rows=rows, starts=starts, count=count):
            first, end, _ = where[0].indices(count)
            return rows[(slice(starts[first], starts[first] + end - first), *where[1:])]

        arrays[name] = jax.make_array_from_callback(shape, sharding, take if share[1] > 1 else rows.__getitem__)
    return arrays


def abstract_batch(placement: Placement, run: Run) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of a whole batch as ``to_devices`` makes them, without content; the devices need not be here."""
    found = {}
    for name, array in batch_arrays(run, run.train.batch_size).items():
        sharding, _ = _places(placement, name, tuple(array.shape))
        found[name] = jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)
    return found


@functools.lru_cache(maxsize=64)
def _places(placement: Placement, name: str, shape: tuple[int, ...]) -> tuple[NamedSharding, dict[int, int]]:
    """The sharding of an array of the batch; first row of each of this process's devices in the whole batch, to that
    row's place among those of this process."""
    declared = _DECLARED.get(name)  # what is not, has its rows first
    sharding = placement.sharding(declared.axes, shape, name) if declared else placement.batch
    where = sharding.addressable_devices_indices_map(shape).values()
    spans = sorted({rows[0].indices(shape[0])[:2] for rows in where if rows})
    before = itertools.accumulate((end - first for first, end in spans), initial=0)
    return sharding, {first: place for (first, _), place in zip(spans, before, strict=False)}


class Feed:
    """Iterates over batches on the devices, one ahead of the step that needs it, and counts their tokens.

    Args:
      placement: mesh and rules of the arrays.
      reader: iterator of (step, this process's rows).
      share: this process's share of each batch.
      first: function that is given this process's rows of the first batch.
    """

    def __init__(
        self, placement: Placement, reader: Iterator[tuple[int, HostBatch]], share: tuple[int, int],
        first: Callable[[HostBatch], object] = lambda rows: None,
    ):  # fmt: skip
        self._placement, self._reader, self._share = placement, _told(reader, first), share
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


def _told(
    reader: Iterator[tuple[int, HostBatch]], first: Callable[[HostBatch], object]
) -> Iterator[tuple[int, HostBatch]]:
    for number, (step, rows) in enumerate(reader):
        if not number:
            first(rows)
        yield step, rows
