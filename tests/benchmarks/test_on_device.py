"""benchmarks/on_device.py where there is no device: it runs its smallest case, and says what it could not do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent.parent / "benchmarks" / "on_device.py"
# What may be missing on a machine with a device; run by Python at its start, as it is on the path.
BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("sentencepiece", "grain", "tensorboardX", "matplotlib", "array_record", "torch"):
            raise ModuleNotFoundError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
"""


def on_device(folder: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], dict]:
    (folder / "sitecustomize.py").write_text(BLOCKED)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(folder)}
    command = [sys.executable, str(SCRIPT), "--json", "found.json", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return done, json.loads((folder / "found.json").read_text())


@pytest.mark.slow
def test_the_smallest_case_runs_without_anything_but_jax_and_flax(tmp_path):
    done, found = on_device(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not found["failures"]
    kernels = [row for row in found["rows"] if row.get("kind") == "kernels"]
    assert len({row["row"] for row in kernels}) == 3 and {row["by"] for row in kernels} == {"ours (xla)", "jax.nn, XLA"}
    assert all(0 < row["error"] < 2e-2 and 0 < row["error_of_gradients"] < 2e-2 for row in kernels)  # bfloat16
    steps = {(row["part"], row["by"]): row for row in found["rows"] if row.get("kind") == "steps"}
    for part in ("t5 ours auto", "gpt ours auto"):
        assert steps[part, "t5x_like, auto"]["tokens_s"] > 0
    assert "not installed" in steps["t5 torch", "PyTorch"]["note"]
    assert "causal, segments" in done.stdout and "PyTorch is left out" in done.stdout


def test_the_table_is_printed_also_where_a_part_fails(tmp_path):
    done, found = on_device(tmp_path, "--seconds", "0.05", "--parts", "device", "t5 torch")
    assert done.returncode == 1
    assert "not done after" in found["failures"]["device"]
    assert found["failures"]["t5 torch"] == "no time was left"
    assert "device: FAILED: not done after" in done.stdout and "s in all" in done.stdout


def test_what_a_part_said_before_it_died_is_kept(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import on_device as script

    dies = """print('{"row": "one"}', flush=True); raise SystemExit('out of luck')"""
    (tmp_path / "device_parts.py").write_text(dies)
    monkeypatch.setattr(script, "HERE", tmp_path)
    assert script.run("device", 30) == ([{"row": "one"}], "exit code 1: out of luck")
