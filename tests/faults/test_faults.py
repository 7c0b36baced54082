"""Faults injected into real jobs at random moments from a fixed seed: each ends as ``kinds`` says it must.

Eight in the default tests, a hundred in ``make faults``, which writes the table in docs/faults.md.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import random
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from faults.jobs import EVERY, ROOT, STEPS, Job
from faults.kinds import KINDS, SMALL_DISK, Fault, small_disk
from tiny_runs import assert_same_bits, scratch

FAST = (
    "SIGTERM to a rank", "SIGKILL of a worker", "SIGKILL of process 0", "an exception on one rank", "kill in a save",
    "a flipped bit in array data", "a second trainer", "every checkpoint damaged",
)  # fmt: skip
BY_NAME = {fault.name: fault for fault in KINDS}
NUMBER = 5 * len(KINDS)
TABLE = ROOT / "docs" / "faults.md"
RESULTS = ROOT / ".faults.jsonl"  # of `make faults`; one that is there is not tried again


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of one fault: seconds until all processes of that attempt were down, and from then to the first step
    of the next; updates made twice, the end, the commit."""

    number: int
    fault: str
    noticed: float | None
    recovered: float | None
    lost: int
    end: str
    commit: str


@functools.lru_cache(maxsize=4)
def undisturbed(processes: int, devices: int) -> tuple[dict[str, np.ndarray], dict[tuple[int, int], set[str]]]:
    """State and stream of batches of a job that is left alone."""
    job = Job(scratch() / f"undisturbed_{processes}_{devices}", processes, devices)
    job.start(pause=0.0)
    assert job.wait() == 0, job.said
    assert job.lost() == 0 and len(job.stream()) == STEPS * processes
    return job.arrays(), job.stream()


def must_be_as_undisturbed(job: Job) -> None:
    state, stream = undisturbed(job.processes, job.devices)
    assert_same_bits(job.arrays(), state)
    assert job.stream() == stream, "another stream of batches"
    assert job.lost() < 2 * EVERY, f"{job.lost()} steps lost"  # a save is written while the next steps are made
    assert not job.leftovers(), job.leftovers()


def tried(fault: Fault, number: int, folder: Path) -> Result:
    draw, before = random.Random(f"{fault.name} {number}"), {*Path("/tmp").iterdir()}
    with contextlib.ExitStack() as exits:
        directory = Path()
        if fault.name in SMALL_DISK:
            directory = exits.enter_context(small_disk(folder / "disk", 12)) / "run"
        job = Job(folder, draw.choice((2, 2, 3)), draw.choice((1, 2)), directory)
        exits.callback(job.end)
        happened = fault.inject(job, draw)
        pids, began = set(job.working()), happened or time.time()
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
            fault.mend(job)
        if fault.end != "goes_on":
            job.start()
        assert job.wait() == 0, job.said[-6000:]
        must_be_as_undisturbed(job)
        lost, recovered = job.lost(), None
        if happened and noticed and fault.end == "goes_on":
            steps = [line["time"] - happened - noticed for line in job.record() if "dispatched" in line]
            recovered = min(seconds for seconds in steps if seconds > 0)
    new = {path.name for path in {*Path("/tmp").iterdir()} - before if "jax" in path.name or "orbax" in path.name}
    assert not new, f"left in /tmp: {new}"
    return Result(number, fault.name, noticed, recovered, lost, "as it must", commit())


def skip_without_root(fault: Fault) -> None:
    if fault.name in SMALL_DISK and (os.geteuid() or shutil.which("mount") is None):
        pytest.skip("only root can make a small disk")


@pytest.mark.slow
@pytest.mark.parametrize("name", FAST)
def test_a_fault_ends_as_it_must(name, tmp_path):
    tried(BY_NAME[name], 0, tmp_path / "job")


@pytest.mark.proof
@pytest.mark.parametrize("number", range(NUMBER))
def test_a_hundred_faults(number, tmp_path):
    fault = KINDS[number % len(KINDS)]
    skip_without_root(fault)
    if number in (there := results()) and there[number].end == "as it must":
        pytest.skip(f"done at {there[number].commit}")
    try:
        note(tried(fault, number, tmp_path / "job"))
    except Exception:
        note(Result(number, fault.name, None, None, 0, "NOT as it must", commit()))
        raise


def note(result: Result) -> None:
    with RESULTS.open("a") as file:
        file.write(json.dumps(dataclasses.asdict(result)) + "\n")
    write_table(list(results().values()))


def results() -> dict[int, Result]:
    """The last result of each number that was tried."""
    lines = RESULTS.read_text().splitlines() if RESULTS.is_file() else []
    found = [Result(**json.loads(line)) for line in lines]
    return {each.number: each for each in found}


@functools.cache
def commit() -> str:
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "no commit"


def write_table(found: list[Result]) -> None:
    """One row per kind: how often, noticed after, steps lost, how many ended as they must."""
    heading = "| fault | its end | tried | all down after | first step after that | steps lost, most | as it must |"
    lines = [heading, "|---" * 7 + "|"]
    for fault in KINDS:
        of = [each for each in found if each.fault == fault.name]
        if of:
            noticed = middle_and_most([each.noticed for each in of])
            recovered = middle_and_most([each.recovered for each in of])
            lost, end = max(each.lost for each in of), fault.end.replace("_", " ")
            row = (fault.name, end, len(of), noticed, recovered, lost, good(of))
            lines.append(f"| {' | '.join(map(str, row))} |")
    lost = max(each.lost for each in found)
    lines += ["", f"{good(found)} of {len(found)} as they must; at most {lost} steps lost, a save every {EVERY}. "
                  f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, "
                  f"commits {', '.join(dict.fromkeys(each.commit for each in found))}."]  # fmt: skip
    mark = "<!-- table -->"
    page = TABLE.read_text() if TABLE.is_file() else f"# Faults\n\n{mark}\n"
    TABLE.write_text("\n".join([page.partition(mark)[0] + mark, "", *lines, ""]))


def middle_and_most(seconds: list[float | None]) -> str:
    known = sorted(each for each in seconds if each is not None)
    return f"{known[len(known) // 2]:.1f} s, at most {known[-1]:.1f}" if known else ""


def good(results: list[Result]) -> int:
    return sum(each.end == "as it must" for each in results)
