"""Help is instant: it loads neither jax nor numpy."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys

import pytest
from tiny_runs import CLI, ROOT

from t5x_like import __version__


def test_help_takes_less_than_a_second():
    """Seconds of the processor, which a busy machine does not stretch as it does those on the wall."""
    taken = []
    for _ in range(3):
        before = os.times()
        shown = subprocess.run([*CLI, "--help"], capture_output=True, text=True, cwd=ROOT)
        after = os.times()
        taken.append(after.children_user + after.children_system - before.children_user - before.children_system)
        assert shown.returncode == 0
    assert statistics.median(taken) < 1.0
    for command in ("train", "eval", "generate", "inspect", "diff", "tokenizer", "optimizer.learning_rate=6e-3"):
        assert command in shown.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["inspect", "config", "t5_sotu"]])
def test_what_needs_no_arrays_loads_no_jax_and_no_numpy(arguments):
    command = [sys.executable, "-X", "importtime", "-m", "t5x_like", *arguments]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert shown.returncode == 0, shown.stderr[-2000:]
    loaded = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in shown.stderr.splitlines() if "|" in line}
    assert "t5x_like" in loaded and "argparse" in loaded
    assert not loaded & {"jax", "jaxlib", "flax", "orbax", "grain", "matplotlib", "sentencepiece", "tensorboardX"}
    if arguments[0] != "inspect":
        assert "numpy" not in loaded


def test_version():
    shown = subprocess.run([*CLI, "--version"], capture_output=True, text=True, cwd=ROOT)
    assert shown.stdout == f"t5x-like {__version__}\n"
