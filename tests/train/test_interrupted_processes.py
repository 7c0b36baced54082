"""A real process is interrupted by Ctrl-C, by SIGTERM and by SIGKILL, one after the other, and started again each time:
in the end its folder holds what the process that was left alone has made, bit for bit."""

from __future__ import annotations

import signal

import pytest
from tiny_runs import (
    CLI,
    assert_same_bits,
    checkpoint,
    losses,
    program,
    rows,
    run_file,
    saved_steps,
    start,
    tiny_run,
    wait_for_step,
)

from t5x_like.report.ledger import read_starts

STEPS = 1600
FAST = dict(JAX_DISABLE_MOST_OPTIMIZATIONS="1")  # compiles in a quarter of the time

pytestmark = pytest.mark.slow


def test_interrupted_three_times_and_started_again(tmp_path):
    config = run_file(tiny_run("llama", f"train.steps={STEPS}", "checkpoint.every.steps=300"))
    straight = start([*CLI, "train", config, "--directory", str(tmp_path / "straight")], **FAST)
    try:
        out, _ = straight.communicate(timeout=180)
    finally:
        straight.kill()
    assert straight.returncode == 0, out

    folder, last = tmp_path / "run", 0
    command = [*CLI, "train", config, "--directory", str(folder)]
    for number, (which, code) in enumerate(((signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGKILL, -9))):
        process = start(command, **FAST)
        try:
            wait_for_step(folder, 350 * (number + 1), process)
            process.send_signal(which)
            out, _ = process.communicate(timeout=60)
        finally:
            process.kill()
        assert process.returncode == code, out
        done = saved_steps(folder)[-1]
        assert last < done < STEPS
        if which != signal.SIGKILL:
            assert f"saved at step {done:,}; to resume: {program()} train {config} --directory {folder}" in out
            assert "tiny_llama: stopped" in out and "Traceback" not in out
            assert sorted(losses(folder)) == list(range(1, done + 1))
        if last:
            assert f"resuming from step {last:,}" in out
        last = done
    assert last == 900 and max(losses(folder)) >= 1050  # SIGKILL: back to the last checkpoint, rows beyond are dropped

    process = start(command, **FAST)
    try:
        out, _ = process.communicate(timeout=180)
    finally:
        process.kill()
    assert process.returncode == 0, out
    assert f"resuming from step {last:,}" in out
    assert [start["attempt"] for start in read_starts(folder)] == [1, 2, 3, 4]
    assert sorted(losses(folder)) == list(range(1, STEPS + 1))
    assert rows(folder) == rows(tmp_path / "straight")
    assert_same_bits(checkpoint(folder), checkpoint(tmp_path / "straight"))
