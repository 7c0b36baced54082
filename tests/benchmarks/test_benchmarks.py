"""The benchmarks run and write what they promise; their figures are not judged here."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import run_file, tiny_run

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"


def run(tmp_path: Path, script: str, *arguments: str) -> tuple[dict[str, dict], subprocess.CompletedProcess[str]]:
    """(the points that a benchmark writes, by name; the process)."""
    file = tmp_path / "points.json"
    command = [sys.executable, str(BENCHMARKS / script), "--smoke", *arguments, "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    points = json.loads(file.read_text())
    assert all(set(point) == {"point", "figure", "goal", "met"} for point in points)
    return {point["point"]: point for point in points}, done


@pytest.mark.slow
def test_the_step_benchmark_shows_agreement_and_writes_every_point(tmp_path):
    by_name, done = run(tmp_path, "step.py", "--forms", "unrolled")
    assert "plain unrolled" in done.stdout and "ours unrolled" in done.stdout
    assert all(isinstance(point["figure"], float) for point in by_name.values())
    assert all((point["goal"] is None) == (point["met"] is None) for point in by_name.values())
    # That both compute the same thing does not hang on the machine; that ours is fast does.
    for steps in ("the first step", "5 steps"):
        assert by_name[f"loss of {steps}, |ours - plain|"]["met"]
    assert by_name["tokens/s, ours / plain, unrolled"]["goal"] == ">= 1.6"


@pytest.mark.slow
def test_the_step_benchmark_of_t5_agrees_with_transformers_where_that_is_installed(tmp_path):
    by_name, done = run(tmp_path, "step.py", "--family", "t5")
    assert by_name["tokens/s, ours"]["figure"] > 0
    if "transformers is left out" not in done.stderr:
        assert by_name["loss of 5 steps, |transformers - ours|"]["met"]
        assert by_name["tokens/s, ours / transformers"]["goal"] == ">= 1"


@pytest.mark.slow
def test_the_input_benchmark_runs_and_writes_every_point(tmp_path):
    by_name, done = run(tmp_path, "input.py")
    goals = {name: point["goal"] for name, point in by_name.items()}
    assert goals["cached and packed, M tokens per CPU s"] == ">= 5"
    assert goals["packed / Grain's first fit from RAM"] == ">= 4"
    assert goals["order of 100,000 documents, packed, MB of memory of its own"] == "<= 1000"
    assert "Grain's best fit, from RAM" in done.stdout and "UL2, joined" in done.stdout


@pytest.mark.slow
def test_the_start_benchmark_ends_with_the_first_step_and_writes_every_point(tmp_path):
    by_name, _ = run(tmp_path, "start.py", "--config", run_file(tiny_run()))
    point = by_name["CPU s to the end of step 1, programs kept"]
    assert point["goal"] == "<= 8" and 0 < point["figure"] < by_name["s to the end of step 1, again"]["figure"] * 16
    assert by_name["CPU s to the end of step 1, first start"]["figure"] > 0


@pytest.mark.slow
def test_the_checkpoint_benchmark_runs_and_writes_every_point(tmp_path):
    by_name, _ = run(tmp_path, "checkpoint.py", "--against", str(BENCHMARKS.parent))
    goals = {name: point["goal"] for name, point in by_name.items()}
    assert goals["async save: seconds blocked / seconds of a save"] == "<= 0.1"
    assert goals["restore with verification / Orbax's own, seconds"] == "<= 1.15"
    assert goals["restore, CPU seconds, ours / the other checkout's"] == "<= 0.5"
    assert all(point["figure"] > 0 for point in by_name.values())


@pytest.mark.slow
def test_the_attention_benchmark_shows_agreement_and_writes_every_point(tmp_path):
    by_name, _ = run(tmp_path, "attention_cpu.py")
    assert by_name["largest difference of results, forward + backward, causal, T 64"]["met"]


@pytest.mark.parametrize(
    "script",
    [
        "step.py", "input.py", "install.py", "checkpoint.py", "attention_cpu.py", "kernels_static.py", "kernels_gpu.py",
        "on_device.py", "all.py",
    ],
)  # fmt: skip
def test_every_benchmark_says_how_it_is_run(script):
    command = [sys.executable, str(BENCHMARKS / script), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--json" in done.stdout


def test_steps_to_a_loss_lie_on_lines_between_evaluations(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    optimizers = importlib.import_module("optimizers")
    curve = [(100, 6.0), (200, 5.0), (300, 5.5), (400, 4.0)]
    assert optimizers.steps_to(curve, 5.25) == 175 and optimizers.steps_to(curve, 4.5) == 300 + 100 * 1.0 / 1.5
    assert optimizers.steps_to(curve, 7.0) == 100 and optimizers.steps_to(curve, 3.9) == float("inf")
