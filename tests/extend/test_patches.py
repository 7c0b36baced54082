"""Changes of the package that are kept as patches, to show that few files need to be touched for them: each still
applies to the tree as it is, and the patched copy does on 8 virtual devices what the patch is for.

They are demonstrations, not features: what each leaves out is said in docs/own_code.md. A patch that no longer applies
is made anew by hand: apply it to a copy with `git apply --reject`, mend, `git diff --no-index --no-prefix a b`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import ROOT, environment

PATCHES = Path(__file__).parent / "patches"
AT_MOST = {"ring_attention": 2, "pipeline_stages": 2, "expert_axis": 3}  # files touched


def patched(name: str, folder: Path) -> None:
    """Makes a copy of the packages in ``folder`` and applies a patch to it."""
    for package in ("t5x_like", "pallas_kernels"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    command = ["git", "apply", "--whitespace=error", str(PATCHES / f"{name}.patch")]
    no_repository = environment(GIT_CEILING_DIRECTORIES=str(folder.parent))
    applied = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=no_repository)
    assert applied.returncode == 0, applied.stderr


@pytest.mark.parametrize("name", AT_MOST)
def test_the_patch_is_small_and_still_applies(name, tmp_path):
    patch = (PATCHES / f"{name}.patch").read_text()
    files = re.findall(r"^\+\+\+ b/(\S+)", patch, re.M)
    assert 1 <= len(files) <= AT_MOST[name], files
    assert len(re.findall(r"^[+-](?![+-]{2} )", patch, re.M)) <= 150
    patched(name, tmp_path)
    assert all((tmp_path / file).read_text() != (ROOT / file).read_text() for file in files if (ROOT / file).exists())


@pytest.mark.slow
@pytest.mark.parametrize("name", AT_MOST)
def test_the_patch_does_what_it_is_for(name, tmp_path):
    patched(name, tmp_path)
    done = subprocess.run(
        [sys.executable, str(PATCHES / f"{name}.py")], cwd=tmp_path, capture_output=True, text=True, timeout=240,
        env=environment(8, PYTHONPATH=f"{tmp_path}:{ROOT / 'tests'}", JAX_DISABLE_MOST_OPTIMIZATIONS="1"),
    )  # fmt: skip
    assert done.returncode == 0 and "equal" in done.stdout, done.stdout + done.stderr
