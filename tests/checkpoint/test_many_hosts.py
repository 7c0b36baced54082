"""What a host opens, writes and waits for grows neither with the number of hosts nor with that of checkpoints.

A stand-in plays the other processes of a job: it counts agreements, does the first process's work for it where this
host is another, and leaves what the others leave in a save. What TensorStore opens is not seen: its bytes are those of
the pieces, which ``split`` gives a host.
"""

from __future__ import annotations

import collections
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_like.checkpoint import arrays
from t5x_like.checkpoint.checkpoints import Checkpoints
from t5x_like.checkpoint.config import CheckpointConfig, LocalConfig
from t5x_like.checkpoint.job import Job
from t5x_like.checkpoint.parts import split

EVENTS = ("open", "os.listdir", "os.scandir", "os.rename", "os.remove", "os.mkdir")
seen: list[tuple[str, str]] | None = None  # (event, file) while a host is watched


def watch(event: str, arguments: tuple) -> None:
    if seen is not None and event in EVENTS and isinstance(arguments[0], str | Path):
        seen.append((event, str(arguments[0])))


sys.addaudithook(watch)


@dataclasses.dataclass(frozen=True)
class Many(Job):
    """One host of many; the others do as it does."""

    asked: collections.Counter = dataclasses.field(default_factory=collections.Counter)

    def gather(self, number: int) -> list[int]:
        self.asked["gather"] += 1
        return [number] * self.count

    def collect(self, numbers: np.ndarray) -> np.ndarray:
        self.asked["collect"] += 1
        return np.stack([numbers, *[np.zeros_like(numbers)] * (self.count - 1)])  # digests: the others hold copies

    def first(self, make: Callable[[], Any]) -> Any:
        global seen
        self.asked["first"] += 1
        before = seen
        seen = before if self.index == 0 else None  # it is not this host that does so
        try:
            return make()
        finally:
            seen = before


@pytest.fixture(autouse=True)
def others(monkeypatch):
    """Before the first process merges, the others are done."""
    merge = arrays.merge

    def merged(place, paths, processes, seconds):
        global seen
        before, seen = seen, None
        for process in range(1, processes):
            arrays.write(place, [], process, False)
        seen = before
        merge(place, paths, processes, seconds)

    monkeypatch.setattr(arrays, "merge", merged)


def life(folder: Path, count: int, index: int, earlier: int) -> tuple[dict, dict]:
    """(agreements, file events) of one host that opens a folder of checkpoints, restores, saves twice, once locally."""
    global seen
    state = {"x": jnp.arange(4096.0), "step": jnp.int32(earlier)}
    template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    with Checkpoints(folder / "checkpoints", CheckpointConfig(keep_last=0)) as checkpoints:
        for step in range(1, earlier + 1):
            checkpoints.save(step, state, {})
    job, seen = Many(count, index), []
    config = CheckpointConfig(keep_last=0, local=LocalConfig(str(folder / "local")))
    try:
        with Checkpoints(folder / "checkpoints", config, job=job) as checkpoints:
            checkpoints.restore(template)
            for _ in range(100):  # steps
                checkpoints.check()
                checkpoints.latest()
            before = len(seen)
            for _ in range(1000):
                checkpoints.check()
                checkpoints.latest()
            assert len(seen) == before, "a step touches no file"
            checkpoints.save(earlier + 1, state, {})
            checkpoints.save_locally(earlier + 2, state, {})
        events = collections.Counter(event for event, path in seen if str(folder) in path)
    finally:
        seen = None
    return dict(job.asked), dict(events)


@pytest.mark.parametrize("index", [0, 3])
def test_a_host_of_many(tmp_path, index):
    few = life(tmp_path / "4", 4, index, 2)
    assert few[0]["first"] + few[0]["gather"] + few[0]["collect"] < 20 and 0 < sum(few[1].values()) < 80
    for count in (64, 1024):
        assert life(tmp_path / str(count), count, index, 2) == few


def test_a_host_that_is_not_the_first_touches_the_shared_folder_little(tmp_path):
    """Its own probe, the metadata of what it restores and its local saves; it lists nothing of the run's folder."""
    first, other = life(tmp_path / "first", 64, 0, 2)[1], life(tmp_path / "other", 64, 9, 2)[1]
    assert sum(other.values()) < sum(first.values())


def test_many_checkpoints_cost_no_more(tmp_path):
    assert life(tmp_path / "few", 64, 9, 2) == life(tmp_path / "many", 64, 9, 12)


SHAPES = {"table": (32128, 512), "stacked": (12, 512, 2048), "scale": (12, 512), "odd": (7, 3), "step": ()}


@pytest.mark.parametrize("hosts", [4, 64, 1024])
@pytest.mark.parametrize("ways", [1, 2, 4])
def test_a_host_writes_its_share(hosts, ways):
    """Arrays are cut ``ways`` ways along their last dimension, and hosts hold copies otherwise: together they write
    every element once, and none writes more than its share and what cannot be cut."""
    written, uneven = np.zeros(hosts), 0
    for number, shape in enumerate(SHAPES.values()):
        cut = ways if shape and shape[-1] % ways == 0 else 1
        size = shape[-1] // cut if shape else 0
        whole = [(0, n) for n in shape[:-1]]
        held = {(*whole, (i * size, (i + 1) * size)) if shape else (): range(i * hosts // cut, (i + 1) * hosts // cut)
                for i in range(cut)}  # fmt: skip
        count = np.zeros(shape, np.int8)
        for host in range(hosts):
            its = split(shape, 4, held, host, number)
            for piece in its.pieces:
                count[tuple(slice(a, b) for a, b in piece)] += 1
                written[host] += np.prod([b - a for a, b in piece])
                assert all((b - a) % c == 0 and a % c == 0 for (a, b), c in zip(piece, its.chunk, strict=True))
        assert (count == 1).all()
        if not any(n % (hosts // cut) == 0 for n in (*shape[:-1], size)):
            uneven = max(uneven, np.prod(shape, dtype=int) // cut)
    assert written.max() <= sum(np.prod(shape, dtype=int) for shape in SHAPES.values()) / hosts + 2 * uneven + 1
