"""Where devices lie in the mesh: on every topology of TPUs and in jobs of several slices, every mesh that divides
works, or is refused with the nearest that does."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import jax
import numpy as np
import pytest
from tpu_grids import TOPOLOGIES, wrong

from t5x_like.core.errors import UserError
from t5x_like.sharding.config import MeshConfig
from t5x_like.sharding.device_grid import device_grid, rows_are_shared_evenly
from t5x_like.sharding.mesh import make_placement
from t5x_like.train import feed

SCRIPT = Path(__file__).parents[1] / "tpu_grids.py"
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None and not (Path(sys.prefix) / "libtpu").is_dir(),
    reason="libtpu is not installed; see benchmarks/install_libtpu.py",
)


@pytest.mark.slow
@needs_libtpu
def test_every_mesh_of_every_topology():
    process = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr[-2000:]
    found = json.loads(process.stdout.splitlines()[-1])
    assert len({name.split()[0] for name in found}) == len(TOPOLOGIES) >= 30
    assert {name: bad for name, (_, bad) in found.items() if bad} == {}
    assert sum(count for count, _ in found.values()) > 3000


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device as JAX describes one that is not there."""

    id: int
    coords: tuple[int, int, int]
    process_index: int
    slice_index: int = 0
    core_on_chip: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v5"


def pod(x: int, y: int, z: int, slices: int = 1, cores: int = 1, kind: str = "TPU v5") -> list[Chip]:
    """Chips of a torus in processes of 2 x 2 chips."""
    chips = []
    for number, (s, c, b, a, core) in enumerate(itertools.product(*map(range, (slices, z, y, x, cores)))):
        process = s * (x * y * z) + (c * (y // 2 or 1) + b // 2) * (x // 2 or 1) + a // 2
        chips.append(Chip(number, (a, b, c), process, s, core, device_kind=kind))
    return chips


PODS = {
    "4x4x8": pod(4, 4, 8),
    "two slices": pod(2, 2, 4, slices=2),
    "three slices": pod(4, 4, 1, slices=3, kind="TPU v5 lite"),
    "two devices a chip": pod(4, 4, 4, cores=2, kind="TPU v4"),
    "rows that would overlap": pod(12, 4, 1),
}


@pytest.mark.parametrize("chips", PODS.values(), ids=PODS)
def test_every_mesh_of_made_up_pods(chips):
    divisors = [n for n in range(1, len(chips) + 1) if len(chips) % n == 0]
    sizes = [(d, f, len(chips) // (d * f)) for d in divisors for f in divisors if len(chips) % (d * f) == 0]
    assert {each: said for each in sizes if (said := wrong(each, chips))} == {}


def test_neighbours_in_the_mesh_are_neighbours_on_the_torus():
    grid = device_grid(MeshConfig(data=1, fsdp=64, tensor=2), pod(4, 4, 8))  # a raw error of JAX's make_mesh
    for pair in grid.reshape(-1, 2):
        apart = [abs(a - b) for a, b in zip(pair[0].coords, pair[1].coords, strict=True)]
        assert sorted(min(n, size - n) for n, size in zip(apart, (4, 4, 8), strict=True))[:2] == [0, 0]


def test_slices_lie_along_data_and_then_along_fsdp():
    chips = pod(2, 2, 1, slices=4)
    numbers = np.vectorize(lambda chip: chip.slice_index)
    found = numbers(device_grid(MeshConfig(data=4, fsdp=2, tensor=2), chips))
    assert found[:, 0, 0].tolist() == [0, 1, 2, 3]
    found = numbers(device_grid(MeshConfig(data=2, fsdp=4, tensor=2), chips))
    assert found[:, :, 0].tolist() == [[0, 0, 1, 1], [2, 2, 3, 3]]


def test_a_tensor_axis_does_not_leave_its_slice():
    with pytest.raises(UserError) as error:
        device_grid(MeshConfig(data=1, fsdp=1, tensor=8), pod(2, 2, 1, slices=2))
    assert error.value.where == "mesh.tensor" and "2 slices of 4 devices" in error.value.got
    assert error.value.suggestion == "mesh.data=2 mesh.fsdp=1 mesh.tensor=4"
    with pytest.raises(UserError, match=r"slices of \[4, 8\] devices"):
        device_grid(MeshConfig(), [*pod(2, 2, 2), *(dataclasses.replace(c, slice_index=1) for c in pod(2, 2, 1))])


def test_processes_of_different_sizes_are_no_raw_error():
    chips = [dataclasses.replace(chip, process_index=int(chip.id > 2)) for chip in pod(2, 2, 2)]
    assert device_grid(MeshConfig(data=2, fsdp=2, tensor=2), chips).shape == (2, 2, 2)


def test_the_nearest_mesh_is_near():
    for fields, near in (
        (dict(data=3), "mesh.data=8 mesh.fsdp=1 mesh.tensor=1"),
        (dict(fsdp=3), "mesh.data=2 mesh.fsdp=4 mesh.tensor=1"),
        (dict(tensor=16), "mesh.data=1 mesh.fsdp=1 mesh.tensor=8"),
    ):
        with pytest.raises(UserError) as error:
            MeshConfig(**fields).sizes(8)
        assert error.value.suggestion == near


def test_devices_that_are_here_are_in_their_own_order():
    assert [d.id for d in make_placement(MeshConfig()).mesh.devices.flat] == [d.id for d in jax.devices()]


class Split:
    """A batch sharding over devices of several processes: [rows] of each device."""

    def __init__(self, chips: np.ndarray):
        self.rows = {chip: row for row, group in enumerate(chips.reshape(-1, chips.shape[2])) for chip in group}
        self.count = chips.shape[0] * chips.shape[1]

    def devices_indices_map(self, shape):
        each = shape[0] // self.count
        return {chip: (slice(row * each, (row + 1) * each),) for chip, row in self.rows.items()}

    def addressable_devices_indices_map(self, shape):
        found = self.devices_indices_map(shape)
        return {chip: where for chip, where in found.items() if chip.process_index == jax.process_index()}


@pytest.mark.parametrize("sizes", [(1, 16, 1), (4, 4, 1), (2, 2, 4), (1, 2, 8), (16, 1, 1), (1, 1, 16)])
def test_each_process_reads_a_stretch_that_fills_its_places_in_order(monkeypatch, sizes):
    """Rows of a process that lie apart, as on a torus of 4 x 4 chips, were refused."""
    chips = pod(4, 4, 1, kind="TPU v5 lite")
    split = Split(device_grid(MeshConfig(*sizes), chips))
    taken: dict[int, np.ndarray] = {}

    def make(shape, sharding, take):
        for chip, where in sharding.addressable_devices_indices_map(shape).items():
            rows = split.rows[chip]
            assert rows not in taken or (taken[rows] == take(where)).all()  # copies hold the same
            taken[rows] = take(where)
        return shape

    monkeypatch.setattr(jax, "make_array_from_callback", make)
    batch = np.arange(32)
    for process in sorted({chip.process_index for chip in chips}):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        placement: Any = Mock(batch=split)
        index, count = feed.local_share(placement, 32)
        local = batch[index * (32 // count) : (index + 1) * (32 // count)]
        assert feed.to_devices(placement, {"rows": local}, (index, count)) == {"rows": (32,)}
    assert sorted(np.concatenate(list(taken.values())).tolist()) == batch.tolist()  # each row once, whoever has it
    assert len(taken) == math.prod(sizes[:2])


def test_processes_whose_rows_overlap_are_refused(monkeypatch):
    a, b = (Chip(n, (n, 0, 0), n) for n in range(2))
    grid = np.array([[[a]], [[a]], [[b]], [[b]]], dtype=object)
    assert rows_are_shared_evenly(grid)
    grid = np.array([[[a, b]], [[a, a]], [[b, b]]], dtype=object)
    assert not rows_are_shared_evenly(grid)
    split = Split(grid)
    split.devices_indices_map = lambda shape: {a: (slice(0, 2),), b: (slice(1, 3),)}
    with pytest.raises(UserError, match="rows of a batch that overlap"):
        feed.local_share(SimpleNamespace(batch=split), 3)
