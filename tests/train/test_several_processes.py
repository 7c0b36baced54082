"""Two real processes of four devices, started by launch/local.py: what they train is what one process trains; told to
stop they all save one step; one process goes on from there, on another mesh."""

from __future__ import annotations

import contextlib
import signal
import sys

import jax
import pytest
from tiny_runs import (
    ROOT,
    assert_close,
    assert_same_bits,
    checkpoint,
    losses,
    record_batches,
    recorded,
    recorder,
    run_file,
    saved_steps,
    start,
    tiny_run,
    wait_for_step,
)

from t5x_like.cli.main import main
from t5x_like.report.ledger import read_ledger, read_starts
from t5x_like.train.directory import locked

pytestmark = [pytest.mark.slow, pytest.mark.skipif(len(jax.devices()) < 8, reason="needs 8 devices")]


def launch(*arguments: str, record) -> list:
    command = [sys.executable, str(ROOT / "launch" / "local.py"), "--processes", "2", "--devices", "4", "--"]
    return start([*command, *recorder(), *arguments], RECORD=str(record), JAX_DISABLE_MOST_OPTIMIZATIONS="1")


def test_two_processes_are_one_and_one_goes_on(tmp_path, monkeypatch, capsys):
    config = run_file(tiny_run("llama", "train.steps=100_000", "mesh.fsdp=2", "data.corpus.heldout=0.3"))
    folder, alone = tmp_path / "two", tmp_path / "one"
    process = launch("train", config, "--directory", str(folder), record=tmp_path / "record")
    try:
        wait_for_step(folder, 4, process)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=90)
    finally:
        process.kill()
    assert process.returncode == 75, out
    done = saved_steps(folder)[-1]
    assert done >= 4 and out.count(f"saved at step {done}; to resume: ") == 1, out
    assert "8 x cpu in 2 processes" in out and "[Gloo]" not in out
    present = read_ledger(folder, "start")
    assert sorted((s["attempt"], s["process"], "config" in s) for s in present) == [(1, 0, True), (1, 1, False)]
    assert sorted(losses(folder)) == list(range(1, done + 1))

    # one process, straight through, and then the two processes' folder gone on with by one on another mesh
    total = done + 3
    fed = record_batches(monkeypatch)
    command = ["train", config, f"train.steps={total}", f"checkpoint.every.steps={done}"]
    assert main([*command, "--directory", str(alone)]) == 0
    together = recorded(tmp_path / "record")
    assert len(together) >= done and all(len(batch) == 8 for batch in together)
    assert together[:done] == fed[:done]  # the batches themselves
    assert losses(folder) == pytest.approx({n: loss for n, loss in losses(alone).items() if n <= done}, abs=1e-5)
    assert_close(checkpoint(folder, done), checkpoint(alone, done))

    straight = fed[done:total]
    fed.clear()
    assert main([*command, "mesh.fsdp=1", "mesh.tensor=2", "--directory", str(folder)]) == 0
    assert fed[:3] == straight
    assert losses(folder) == pytest.approx(losses(alone), abs=1e-5)
    found = [(start["step"], start["devices"]) for start in read_starts(folder)]
    assert found == [(0, "8 x cpu in 2 processes"), (done, "8 x cpu")]
    before = checkpoint(folder)
    capsys.readouterr()

    # complete: two processes say so, and evaluate as one does
    finished = launch(*command, "--directory", str(folder), record=tmp_path / "again")
    try:
        out, _ = finished.communicate(timeout=90)
    finally:
        finished.kill()
    assert finished.returncode == 0 and "is complete: all" in out, out
    assert_same_bits(checkpoint(folder), before)


def test_a_mistake_is_told_once_and_a_folder_in_use_is_refused_by_all(tmp_path):
    config, folder = run_file(tiny_run("llama")), tmp_path / "run"
    for change, said in (("train.batch_size=3", "train.batch_size: 3 rows"), ("train.steps=1", "another training")):
        with locked(folder) if said.startswith("another") else contextlib.nullcontext():
            process = launch("train", config, change, "--directory", str(folder), record=tmp_path / "record")
            try:
                out, _ = process.communicate(timeout=90)
            finally:
                process.kill()
        first, _, out = out.partition("\n")
        assert first.startswith("job: process 0 of 2, process 0 at 127.0.0.1:") and "JAX_COORDINATOR_ADDRESS" in first
        assert process.returncode == 2 and out.startswith("error: ") and out.count("error: ") == 1, out
        assert said in out and len(out.splitlines()) < 5, out
    assert not folder.exists()
