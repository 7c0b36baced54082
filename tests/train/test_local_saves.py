"""Local saves every 5 steps and permanent ones every 50, in processes of their own that are killed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny_runs import CLI, assert_same_bits, checkpoint, losses, run_file, saved_steps, start, tiny_run, wait_for_step

from t5x_like.report.ledger import read_ledger


def trained(directory: Path, *options: str, kill_at: int = 0) -> int:
    """Trains, or kills the process once the row of a step is written: the last step that has one."""
    config = run_file(tiny_run("llama", "train.steps=120", "checkpoint.every.steps=50", "train.batch_size=24"))
    process = start([*CLI, "train", config, "--directory", str(directory), *options])
    if kill_at:
        wait_for_step(directory, kill_at, process)
        process.kill()
    out, _ = process.communicate(timeout=120)
    assert process.returncode == (-9 if kill_at else 0), out
    return max(losses(directory))


@pytest.mark.slow
def test_a_killed_run_loses_no_more_than_the_interval(tmp_path):
    local, directory = tmp_path / "local", tmp_path / "run"
    options = [f"checkpoint.local.directory={local}", "checkpoint.local.every.steps=5"]
    reached = [trained(directory, *options, kill_at=84)]
    reached += [trained(directory, *options, kill_at=97)]
    (first,) = read_ledger(directory, "restore")
    assert 0 <= reached[0] - first["step"] <= 5 and first["step"] % 5 == 0 and first["bytes"] > 0
    kept = saved_steps(directory)
    assert kept in ([50], [50, 100])  # as late as the kill came
    shutil.rmtree(local)
    trained(directory, *options)
    second = read_ledger(directory, "restore")[1]
    assert 0 < reached[1] - second["step"] <= 50 and second["step"] == kept[-1]
    saves = [line for line in read_ledger(directory, "save") if line["attempt"] == 1]
    assert [line["step"] for line in saves if "local" in line][:15] == list(range(5, 80, 5))  # at 50 too: sooner there
    assert [line["step"] for line in saves if "local" not in line][:1] == [50]
    trained(tmp_path / "straight")
    assert_same_bits(checkpoint(directory), checkpoint(tmp_path / "straight"))
