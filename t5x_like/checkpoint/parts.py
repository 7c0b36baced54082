"""Which part of an array lies where, and which process writes it. Must not know files.

A part is the range of indices that one device holds; devices may hold copies of one part.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

import jax

CHUNK = 2**25  # bytes of a chunk at most: what another mesh reads at least, and what is in memory beside the arrays
Index = tuple[tuple[int, int], ...]  # (start, end) in each dimension


@dataclasses.dataclass(frozen=True)
class Split:
    """How an array is split between processes.

    Attributes:
      chunk: shape of a chunk.
      pieces: parts that this process writes.
    """

    chunk: tuple[int, ...]
    pieces: tuple[Index, ...]


def split(shape: Sequence[int], itemsize: int, held: Mapping[Index, Sequence[int]], process: int, number: int) -> Split:
    """What a process writes of an array whose parts of equal shape are held by one or more processes each.

    A part that several processes hold is cut between them along the first dimension that their number divides; where
    none does, one of them writes it, another one for each array.

    Args:
      shape: the array's.
      itemsize: bytes of an element.
      held: each part to the processes that hold it, ascending.
      process: index of this process.
      number: of the array among those of the checkpoint.
    """
    part = tuple(end - start for start, end in next(iter(held)))
    copies = {len(processes) for processes in held.values()}
    count = copies.pop() if len(copies) == 1 else 1
    axis = next((axis for axis, size in enumerate(part) if size % count == 0), None) if count > 1 else None
    pieces = []
    for index, processes in held.items():
        if process not in processes:
            continue
        if axis is not None:
            size, rank = part[axis] // count, processes.index(process)
            start = index[axis][0] + rank * size
            pieces.append((*index[:axis], (start, start + size), *index[axis + 1 :]))
        elif processes[number % len(processes)] == process:
            pieces.append(index)
    chunk = [size // count if at == axis else size for at, size in enumerate(part)]
    for at, size in enumerate(chunk):
        rest = math.prod(chunk) // max(size, 1) * itemsize  # bytes of one index
        fits = (n for n in range(size, 0, -1) if size % n == 0 and rest * n <= CHUNK)
        chunk[at] = next(fits, 1)
    return Split(tuple(chunk), tuple(pieces))


@functools.lru_cache(4096)
def held(sharding: jax.sharding.Sharding, shape: tuple[int, ...]) -> dict[Index, list[int]]:
    """Each part of an array to the processes that hold it."""
    found: dict[Index, set[int]] = {}
    for device, index in sharding.devices_indices_map(shape).items():
        found.setdefault(bounds(index, shape), set()).add(device.process_index)
    return {index: sorted(processes) for index, processes in found.items()}


def bounds(index: Sequence[slice], shape: Sequence[int]) -> Index:
    return tuple((start, stop) for start, stop, _ in (i.indices(n) for i, n in zip(index, shape, strict=True)))


