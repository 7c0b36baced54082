"""Faults injected into real jobs at random moments from a fixed seed: each ends as ``kinds`` says it must.

Eight in the default tests; five of each kind, and forty flipped bits, in ``make faults``, which keeps each result and
writes the table in docs/faults.md (``results``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
import random
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from faults.jobs import EVERY, STEPS, Job
from faults.kinds import KINDS, SMALL_DISK, Fault, flip_array, small_disk
from faults.results import kept, share
from tiny_runs import assert_same_bits, scratch

from t5x_like.arrays.trees import unflatten
from t5x_like.checkpoint.checkpoints import Checkpoints

FAST = (
    "SIGTERM to a rank", "SIGKILL of a worker", "SIGKILL of process 0", "an exception on one rank", "kill in a save",
    "a flipped bit in array data", "a second trainer", "every checkpoint damaged",
)  # fmt: skip
BY_NAME = {fault.name: fault for fault in KINDS}
HUNDRED = [f"{number:03} {KINDS[number % len(KINDS)].name}" for number in range(5 * len(KINDS))]


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of one fault: seconds until all processes of that attempt were down, and from then to the first step
    of the next; updates made twice."""

    noticed: float | None
    recovered: float | None
    lost: int


@functools.lru_cache(maxsize=4)
def undisturbed(processes: int, devices: int) -> tuple[dict[str, np.ndarray], dict[tuple[int, int], set[str]]]:
    """State and stream of batches of a job that is left alone."""
    job = Job(scratch() / f"undisturbed_{processes}_{devices}", processes, devices)
    job.start(pause=0.0)
    assert job.wait() == 0, job.said
    assert job.lost() == 0 and len(job.stream()) == STEPS * processes
    return job.arrays(), job.stream()


def must_be_as_undisturbed(job: Job, spoilt: int = 0) -> None:
    state, stream = undisturbed(job.processes, job.devices)
    assert_same_bits(job.arrays(), state)
    assert job.stream() == stream, "another stream of batches"
    for before, after in itertools.pairwise(job.attempts()):
        good = [0] * (spoilt + 1) + sorted({*after.whole})
        assert after.first >= good[-1 - spoilt], f"went on from step {after.first}, and {after.whole} were whole"
        # the next save may be being written: in one interval more it is, as a save waits for the one before
        assert before.end - after.first < (2 + spoilt) * EVERY, f"{before.end - after.first} steps lost"
    assert not job.leftovers(), job.leftovers()


def tried(fault: Fault, seed: int, folder: Path) -> Result:
    draw, before = random.Random(f"{fault.name} {seed}"), {*Path("/tmp").iterdir()}
    with contextlib.ExitStack() as exits:
        directory = Path()
        if fault.name in SMALL_DISK:
            directory = exits.enter_context(small_disk(folder / "disk", 12)) / "run"
        job = Job(folder, draw.choice((2, 2, 3)), draw.choice((1, 2)), directory)
        exits.callback(job.end)
        happened = fault.inject(job, draw)
        began = happened or time.time()
        pids = {line["pid"] for line in job.record() if line["time"] < began} or set(job.working())
        noticed = None
        if happened:  # until all processes of that attempt are down
            while pids & set(job.living()):
                assert time.time() < happened + 120, f"not noticed:\n{job.text()[-6000:]}"
                time.sleep(0.02)
            noticed = time.time() - happened
        if fault.end == "refused":
            code = job.wait()
            noticed = time.time() - began
            assert code in (1, 2) and fault.says in job.said, f"exit code {code}\n{job.said[-6000:]}"
            assert "Traceback" not in job.said and "*** Check failure" not in job.said, job.said[-6000:]
            last = job.said.rpartition("\nstarting again")[2]
            errors = [line for line in last.splitlines() if line.startswith("error: ")]
            assert len(errors) == 1, errors
            fault.mend(job)
        if fault.end != "goes_on":
            job.start()
        assert job.wait() == 0, job.said[-6000:]
        must_be_as_undisturbed(job, fault.spoilt)
        lost, recovered = job.lost(), None
        if happened and noticed and fault.end == "goes_on":
            steps = [line["time"] - happened - noticed for line in job.record() if "dispatched" in line]
            recovered = min((seconds for seconds in steps if seconds > 0), default=None)
    new = {path.name for path in {*Path("/tmp").iterdir()} - before if "jax" in path.name or "orbax" in path.name}
    assert not new, f"left in /tmp: {new}"
    return Result(noticed, recovered, lost)


def skip_without_root(fault: Fault) -> None:
    if fault.name in SMALL_DISK and (os.geteuid() or shutil.which("mount") is None):
        pytest.skip("only root can make a small disk")


@pytest.mark.slow
@pytest.mark.parametrize("name", FAST)
def test_a_fault_ends_as_it_must(name, tmp_path):
    tried(BY_NAME[name], 0, tmp_path / "job")


@pytest.mark.proof
@pytest.mark.parametrize("name", share(HUNDRED))
def test_a_hundred_faults(name, tmp_path):
    number, _, kind = name.partition(" ")
    skip_without_root(BY_NAME[kind])
    kept(name, lambda: dataclasses.asdict(tried(BY_NAME[kind], int(number), tmp_path / "job")))


@pytest.mark.proof
@pytest.mark.parametrize("name", share([f"{number:03} one flipped bit, restored here" for number in range(40)]))
def test_forty_flipped_bits(name, tmp_path, monkeypatch):
    """In the arrays of the latest checkpoint of a job of two processes: never restored."""
    monkeypatch.setattr("t5x_like.checkpoint.folder.WAITS", (0.0, 0.0))
    kept(name, lambda: flipped(tmp_path / "checkpoints", random.Random(name)))


def flipped(folder: Path, draw: random.Random) -> dict[str, object]:
    undisturbed(2, 2)
    shutil.copytree(scratch() / "undisturbed_2_2" / "run" / "checkpoints", folder)
    flip_array(folder / str(STEPS) / "x", draw)
    with Checkpoints(folder, read_only=True, say=lambda message: None) as checkpoints:
        said = checkpoints.verify(STEPS)
        _, metadata = checkpoints.restore(unflatten(checkpoints.arrays(STEPS)))
    assert said and metadata["step"] == STEPS - EVERY, f"restored from step {metadata['step']}: {said}"
    return {"said": said}
