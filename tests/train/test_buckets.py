"""Whole runs in buckets on loopback: two processes without a common folder train, are killed, and go on elsewhere to
the same bits; a second training is refused; what fails once is tried again."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from buckets import google, storage
from gcs_server import Fault
from tiny_runs import ROOT, run_file, tiny_run

from t5x_like.checkpoint.checkpoints import Checkpoints
from t5x_like.checkpoint.folder import Folder
from t5x_like.cli.main import main
from t5x_like.core.storage import place
from t5x_like.report.ledger import read_starts
from t5x_like.train import working

STEPS, EVERY = 12, 4
RANK = """
import os, sys, time
from t5x_like.cli.main import main
from t5x_like.train import run
compiling = run.compile_step
def compile_step(setup, placement):
    step = compiling(setup, placement)
    def stepped(state, batch):
        with open(os.environ["RECORD"], "a") as file:
            file.write("x")
        time.sleep(float(os.environ["PAUSE"]))
        return step(state, batch)
    return stepped
run.compile_step = compile_step
sys.exit(main())
"""


def port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Job:
    """Two processes with nothing in common but the bucket: each has a home, a cache and temporary files of its own."""

    def __init__(self, config: str, address: str, where: Path, pause: float = 0.0, *fields: str):
        at, self.record = port(), where / "machine0" / "steps"
        where.mkdir()
        self.processes = []
        for n in range(2):
            home = where / f"machine{n}"
            (home / "tmp").mkdir(parents=True)
            more = {
                "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2", "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{at}",
                "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(n), "HOME": str(home), "TMPDIR": str(home / "tmp"),
                "RECORD": str(home / "steps"), "PAUSE": str(pause), "PYTHONPATH": str(ROOT),
                "T5X_LIKE_CACHE": str(home / "cache"), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            }  # fmt: skip
            command = [sys.executable, "-c", RANK, "train", config, "--directory", address, *fields]
            self.processes.append(subprocess.Popen(command, env=os.environ | more, stdout=subprocess.PIPE,
                                                   stderr=subprocess.STDOUT, text=True, cwd=ROOT))  # fmt: skip

    def wait_for(self, step: int) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if self.record.is_file() and self.record.stat().st_size >= step:
                return
            assert all(each.poll() is None for each in self.processes), self.end()
            time.sleep(0.05)
        raise AssertionError(f"step {step} did not come: {self.end()}")

    def kill(self) -> None:
        for each in self.processes:
            each.kill()
            each.communicate()

    def end(self) -> str:
        """Waits for both; what they said."""
        try:
            said = [each.communicate(timeout=150)[0] for each in self.processes]
        finally:
            for each in self.processes:
                each.kill()
        return "\n".join(said)

    @property
    def codes(self) -> list[int | None]:
        return [each.returncode for each in self.processes]


@contextlib.contextmanager
def bucket(kind: str, tmp_path: Path, monkeypatch):
    with storage(kind, f"runs{time.time_ns()}", tmp_path) as (where, environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("T5X_LIKE_CACHE", str(tmp_path / "cache"))
        yield where


def losses(address: str) -> dict[int, float]:
    rows = [json.loads(line) for line in place(address).read("metrics.jsonl").splitlines()]
    found = {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}
    assert len(found) == len([row for row in rows if "train/loss" in row])
    return found


def digests(address: str, step: int) -> dict[str, str]:
    with Checkpoints(f"{address}/checkpoints", read_only=True) as checkpoints:
        assert checkpoints.verify(step) == ""
        return checkpoints.digests(step)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gs", "s3"])
def test_killed_and_gone_on_with_elsewhere_to_the_same_bits(kind, tmp_path, monkeypatch, capsys):
    with bucket(kind, tmp_path, monkeypatch) as top:
        config = run_file(tiny_run("llama", f"train.steps={STEPS}", f"checkpoint.every.steps={EVERY}", "mesh.data=4",
                                   f"data.cache={top}/cache", "job.heartbeat_timeout=10"))  # fmt: skip
        straight = Job(config, f"{top}/straight", tmp_path / "straight")
        said = straight.end()
        assert straight.codes == [0, 0], said
        first = Job(config, f"{top}/run", tmp_path / "first", 0.4)
        first.wait_for(EVERY + 2)
        assert main(["train", config, "--directory", f"{top}/run", "mesh.data=-1"]) == 2
        refused = capsys.readouterr().err
        assert f"{top}/run: another training is running in this folder: process {first.processes[0].pid} on" in refused
        first.kill()
        there = place(f"{top}/run")
        assert Folder(f"{top}/run/checkpoints").steps() == [EVERY]
        assert set(range(1, EVERY + 1)) <= set(losses(f"{top}/run"))  # sent before the checkpoint was whole
        if kind == "gs":
            reads = lambda method, name: method == "GET" and f"/run/checkpoints/{EVERY}/" in name  # noqa: E731
            google().faults = [Fault("cut", 1, reads), Fault("503", 1, reads)]
        second = Job(config, f"{top}/run", tmp_path / "second")
        said = second.end()
        assert second.codes == [0, 0], said
        assert "resuming from step 4" in said and (kind == "s3" or not any(f.times for f in google().faults))
        assert digests(f"{top}/run", STEPS) == digests(f"{top}/straight", STEPS)
        assert losses(f"{top}/run") == losses(f"{top}/straight") and len(losses(f"{top}/run")) == STEPS
        # That of the second process, 1-1, is there if it was sent in the seconds before the kill.
        assert {*there.files("ledger"), "1-1.jsonl"} == {"1-0.jsonl", "1-1.jsonl", "2-0.jsonl", "2-1.jsonl"}
        assert [start["step"] for start in read_starts(working.opened(f"{top}/run"))] == [0, EVERY]
        assert not [name for name in there.files() if ".lock" in name or "writable" in name]
        for n in range(2):  # nothing is left behind
            machine = tmp_path / "second" / f"machine{n}"
            assert not list((machine / "cache" / "runs").iterdir()) and not list((machine / "tmp").glob("t5x*"))
