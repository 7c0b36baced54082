"""Which device lies where in the mesh: neighbours in the mesh are neighbours on the network. Knows chips by their
coordinates and slices; must not know what the axes are for, except that only the first two may leave a slice.

A slice is a set of TPUs with a network of their own; a job of several has the slow network of the data center between
them. Axes that are sent along often, which is the last one, stay inside a slice.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.experimental import mesh_utils

from t5x_like.core.errors import refuse
from t5x_like.sharding.config import AXES, MeshConfig


def device_grid(config: MeshConfig, devices: Sequence[Any]) -> np.ndarray:
    """Devices by their place along each of ``AXES``.

    Raises:
      UserError: sizes that do not multiply to the number of devices, or an inner axis that would leave a slice.
    """
    slices, sizes = slices_of(devices), config.sizes(len(devices))
    shape = tuple(sizes.values())
    if len(slices) == 1:
        return _within_slice(shape, devices)
    refuse(len({len(each) for each in slices}) > 1, "mesh", f"slices of {sorted(map(len, slices))} devices",
           "slices of one size")
    count, size = len(slices), len(slices[0])
    inner = max(AXES[2:], key=sizes.__getitem__)
    refuse(shape[0] * shape[1] % count != 0, f"mesh.{inner}",
           f"{sizes[inner]}, beside data {shape[0]} and fsdp {shape[1]}, leaves the {count} slices of {size} devices",
           f"data x fsdp a multiple of {count}, the number of slices: only they may use the network between slices",
           config.nearest(len(devices), slices=count).assignments())
    data = math.gcd(shape[0], count)  # as much as can be along data, which sends least often
    across = (data, count // data, *(1 for _ in shape[2:]))
    within = tuple(n // a for n, a in zip(shape, across, strict=True))
    grids = np.stack([_within_slice(within, each) for each in slices]).reshape(*across, *within)
    pairs = np.arange(2 * len(shape)).reshape(2, -1).T  # of each axis: its part across slices, its part within
    return grids.transpose(*pairs.flat).reshape(shape)


def slices_of(devices: Sequence[Any]) -> list[list[Any]]:
    """The devices of each slice; all devices in one where there are no TPUs."""
    found: dict[int, list[Any]] = {}
    for device in devices:
        number = getattr(device, "slice_index", 0) if device.platform == "tpu" else 0
        found.setdefault(number or 0, []).append(device)
    return [found[number] for number in sorted(found)]


def _within_slice(shape: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
    """The devices of one slice, each mesh axis along axes of the torus where the sizes allow it."""
    try:
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    except (AssertionError, NotImplementedError, ValueError, KeyError):
        # What jax raises for devices that it cannot arrange: two a chip, or chips that form no whole torus.
        return _by_process(shape, devices)
    return grid if rows_are_shared_evenly(grid) else _by_process(shape, devices)


def rows_are_shared_evenly(grid: np.ndarray) -> bool:
    """Whether any two processes hold the same rows of a batch split over data and fsdp, or none in common."""
    held: dict[int, set[int]] = {}
    for row, devices in enumerate(grid.reshape(grid.shape[0] * grid.shape[1], -1)):
        for device in devices:
            held.setdefault(device.process_index, set()).add(row)
    distinct = {tuple(sorted(rows)) for rows in held.values()}
    return sum(map(len, distinct)) == grid.shape[0] * grid.shape[1] and len({*map(len, distinct)}) == 1


def _by_process(shape: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
    """The devices of each process together: as much of the inner axes as fits, then rows that follow one another."""

    def place(device: Any) -> tuple[int, ...]:
        return device.process_index, *device.coords, device.core_on_chip

    ordered = np.empty(len(devices), object)
    ordered[:] = sorted(devices, key=place) if devices[0].platform == "tpu" else devices
    counts = collections.Counter(device.process_index for device in devices)
    own = min(counts.values())
    if own != max(counts.values()):
        return ordered.reshape(shape)
    inner = math.prod(shape[2:])
    columns = math.gcd(inner, own)
    rows = own // columns
    return ordered.reshape(-1, inner // columns, rows, columns).swapaxes(1, 2).reshape(shape)
