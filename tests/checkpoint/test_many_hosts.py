"""What a host opens, writes and waits for grows neither with the number of hosts nor with that of checkpoints.

A stand-in plays the other processes of a job: it counts agreements, and does the first process's work for it where this
host is another. What Orbax opens natively is not seen here: it reads and writes the shards of this process's devices.
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
import pytest

from t5x_like.checkpoint.checkpoints import Checkpoints
from t5x_like.checkpoint.config import CheckpointConfig, LocalConfig
from t5x_like.checkpoint.job import Job

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

    def first(self, make: Callable[[], Any]) -> Any:
        global seen
        self.asked["first"] += 1
        before = seen
        seen = before if self.index == 0 else None  # it is not this host that does so
        try:
            return make()
        finally:
            seen = before


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
    assert few[0]["first"] + few[0]["gather"] < 20 and 0 < sum(few[1].values()) < 80
    for count in (64, 1024):
        assert life(tmp_path / str(count), count, index, 2) == few


def test_a_host_that_is_not_the_first_touches_the_shared_folder_little(tmp_path):
    """Its own probe, the metadata of what it restores and its local saves; it lists nothing of the run's folder."""
    first, other = life(tmp_path / "first", 64, 0, 2)[1], life(tmp_path / "other", 64, 9, 2)[1]
    assert sum(other.values()) < sum(first.values())


def test_many_checkpoints_cost_no_more(tmp_path):
    assert life(tmp_path / "few", 64, 9, 2) == life(tmp_path / "many", 64, 9, 12)
