"""Whether the TPU kernels compile for chips that are not there: the short form of benchmarks/kernels_aot.py.

libtpu compiles on a CPU machine, in a process of its own: it must not meet the eight CPU devices of the other tests.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent.parent / "benchmarks" / "kernels_aot.py"
QUICK = ("T5 causal and segments of GQA", "sinks soft cap and dropout", "BigBird", "head size 80 and ragged")
LONG = ("T 131072", "T 65536", "T 16384", "T 8192")  # with blocks so small they take minutes, or too many

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None and not (Path(sys.prefix) / "libtpu").is_dir(),
    reason="libtpu is not installed; see benchmarks/install_libtpu.py",
)


def compiled(folder: Path, chips: str, features: str) -> list[str]:
    """What compiles, forward and backward, with blocks of 256; fails with the compiler's messages if something does
    not."""
    file = folder / "points.json"
    command = [sys.executable, str(SCRIPT), "--block", "256", "--chips", chips, "--json", str(file)]
    process = subprocess.run([*command, "--features", features], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    return [point["point"] for point in json.loads(file.read_text())]


@needs_libtpu
@pytest.mark.parametrize("chip", ["v5e", "v6e"])
def test_what_is_most_likely_to_be_refused_compiles(tmp_path, chip):
    found = compiled(tmp_path, chip, ",".join(QUICK))
    assert {point.split(f", {chip}")[0] for point in found} == set(QUICK)


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("chip", ["v4", "tpu7x"])  # the oldest and the newest
def test_every_feature_compiles(tmp_path, chip):
    names = [name for name in _every_feature() if not any(length in name for length in LONG)]
    assert len(compiled(tmp_path, chip, ",".join(names))) >= len(names) > 30


def _every_feature() -> list[str]:
    command = [sys.executable, str(SCRIPT), "--names"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def test_it_says_so_where_libtpu_is_missing():
    code = (
        "import importlib.util, runpy, sys; real = importlib.util.find_spec;"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'libtpu' else real(name, *rest);"
        f"sys.argv = [{str(SCRIPT)!r}]; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode == 3
    assert "libtpu is not installed; try: python benchmarks/install_libtpu.py" in process.stderr
