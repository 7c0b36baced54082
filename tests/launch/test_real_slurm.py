"""A real Slurm, two slurmd on this machine, and launch/slurm.py: a job that is preempted, requeued, loses a rank to
SIGKILL and is requeued again ends with the bits of an undisturbed run; one that is cancelled saves first. Only where
Slurm is installed (``make slurm``), and as root."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import slurm_cluster
from tiny_runs import ROOT, assert_same_bits, checkpoint, losses, run_file, saved_steps, tiny_run

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(slurm_cluster.why_not()), reason=slurm_cluster.why_not())]

STEPS = 40
# The program, but no step takes less than 0.15 s, so that there is time to disturb it.
PACED = f"""#!{sys.executable}
import sys, time
import t5x_like.train.feed as feeding
from t5x_like.cli.main import main

original = feeding.to_devices
feeding.to_devices = lambda *arguments: time.sleep(0.15) or original(*arguments)
sys.exit(main())
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[dict[str, str]]:
    folder = tmp_path_factory.mktemp("slurm")
    with slurm_cluster.slurm(folder) as environment:
        yield environment | {
            "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        }  # fmt: skip


def until(seen: Callable[[], object], seconds: float = 120.0):
    deadline = time.monotonic() + seconds
    while not (found := seen()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
    return found


def slurm(environment: dict[str, str], *words: str) -> str:
    command = [sys.executable, str(ROOT / "launch" / "slurm.py"), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Submitted:
    """A run of two processes on two nodes, and its job."""

    def __init__(self, folder: Path, environment: dict[str, str]):
        self.folder, self.environment = folder, environment
        config = run_file(tiny_run("llama", f"train.steps={STEPS}", "mesh.fsdp=2", "checkpoint.every.steps=20"))
        program = folder.parent / "t5x-like"
        program.write_text(PACED)
        program.chmod(0o755)
        self.words = [str(program), "train", config, "--directory", str(folder)]
        options = ["--no-check", "--nodes", "2", "--partition", "low", "--sbatch=--exclusive"]
        self.slurm(*options, "--go", "--", *self.words)

    def slurm(self, *words: str) -> str:
        return slurm(self.environment, *words)

    def step(self) -> int:
        return max(losses(self.folder), default=0) if (self.folder / "metrics.jsonl").exists() else 0

    def log(self) -> str:
        return "".join(path.read_text() for path in (self.folder / "launch").glob("slurm-*.log"))

    def process(self, index: int) -> int:
        """The number of the Python process of a rank."""
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (path / "cmdline").read_bytes().split(b"\0")
                mine = f"JAX_PROCESS_ID={index}".encode() in (path / "environ").read_bytes().split(b"\0")
                if mine and words[0] == sys.executable.encode() and str(self.folder).encode() in words:
                    return int(path.name)
        raise AssertionError(f"no process {index}")


def test_preempted_and_with_a_lost_rank_it_ends_with_the_bits_of_an_undisturbed_run(tmp_path, cluster):
    began = time.monotonic()
    job = Submitted(tmp_path / "run", cluster)
    follower = subprocess.Popen(
        [sys.executable, str(ROOT / "launch" / "slurm.py"), "follow", str(tmp_path / "run")], env=cluster,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    local = [sys.executable, str(ROOT / "launch" / "local.py"), "--processes", "2", "--devices", "2", "--"]
    undisturbed = [*local, sys.executable, "-m", "t5x_like", *job.words[1:-1], str(tmp_path / "alone")]
    alone = None
    try:
        until(lambda: job.step() > 3)
        assert ": RUNNING, " in job.slurm("status", str(tmp_path / "run"))
        other = ["sbatch", "--partition=high", "--exclusive", "--nodes=2", "--output=/dev/null", "--wrap=sleep 1"]
        subprocess.run(other, env=cluster, check=True, capture_output=True)
        until(lambda: ": saved" in job.log())
        # While the job waits to be started again:
        alone = subprocess.Popen(undisturbed, env=cluster, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        stopped = saved_steps(tmp_path / "run")[-1]
        assert 3 < stopped < STEPS
        until(lambda: job.step() > stopped + 3)
        os.kill(job.process(1), signal.SIGKILL)
        until(lambda: "ended with 137, failure 1 of at most 3" in job.log())
        out, _ = follower.communicate(timeout=120)
        said, _ = alone.communicate(timeout=120)
    finally:
        for process in filter(None, (follower, alone)):
            process.kill()
    assert follower.returncode == 0 and "COMPLETED (0)" in out
    assert re.findall(r"job \d+, start (\d), 2 processes on slurmn\[1-2\]", out) == ["1", "2", "3"]
    assert f"resuming from step {stopped}" in out
    print(f"{time.monotonic() - began:.0f} s until the job was complete", file=sys.stderr)

    assert alone.returncode == 0, said
    assert saved_steps(tmp_path / "alone")[-1] == STEPS
    assert_same_bits(checkpoint(tmp_path / "run"), checkpoint(tmp_path / "alone"))
    print(f"{time.monotonic() - began:.0f} s in all", file=sys.stderr)


def test_cancelled_it_saves_first_and_is_not_requeued(tmp_path, cluster):
    job = Submitted(tmp_path / "run", cluster)
    until(lambda: job.step() > 3)
    assert "saves and ends" in job.slurm("cancel", str(tmp_path / "run"))
    until(lambda: ": saved" in job.log())
    until(lambda: "RUNNING" not in job.slurm("status", str(tmp_path / "run")))
    assert saved_steps(tmp_path / "run")[-1] > 3
    assert "has left the queue" in job.slurm("cancel", str(tmp_path / "run"))


STUB = """#!/bin/bash
folder=${@: -1}
mkdir -p "$folder"
echo "$JAX_PROCESS_ID" >>"$folder/starts"
case $(grep -c "^$JAX_PROCESS_ID$" "$folder/starts") in
1) [ "$JAX_PROCESS_ID" = 0 ] && sleep 3 && touch "$folder/saved"; exit 75 ;;  # one of them is still saving
2) [ "$JAX_PROCESS_ID" = 0 ] && sleep 60; exit 1 ;;
3) exit 0 ;;
esac
"""


def test_an_array_saves_fails_and_ends_each_job_for_itself(tmp_path, cluster):
    """No JAX: what srun and requeue do with the exit codes of two processes, in folders with difficult names."""
    program, folder = tmp_path / "t5x-like", tmp_path / "it's a run"
    program.write_text(STUB)
    program.chmod(0o755)
    options = ["--no-check", "--nodes", "2", "--partition", "high", "--sweep", "train.seed=0,1", "--at-once", "1"]
    words = [str(program), "train", "t5_sotu", "--directory", str(folder)]
    slurm(cluster, *options, "--go", "--", *words)
    until(lambda: "RUNNING" not in (said := slurm(cluster, "status", str(folder))) and "PENDING" not in said)
    for seed in (0, 1):
        assert sorted((folder / f"seed={seed}" / "starts").read_text().split()) == ["0"] * 3 + ["1"] * 3
        assert (folder / f"seed={seed}" / "saved").exists()  # it was not ended by the end of the other one
        (log,) = (folder / "launch").glob(f"slurm-*_{seed}.log")
        assert log.read_text().count(": saved") == 1
        assert log.read_text().count("ended with 1, failure 1 of at most 3") == 1
    assert "COMPLETED (0), COMPLETED (0)" in slurm(cluster, "status", str(folder))
