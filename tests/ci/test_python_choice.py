"""Which Python `make` and the tests on a server take: the newest, or the oldest, that starts and is named."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STARTS, SHIM = "#!/bin/sh\nexit 0\n", "#!/bin/sh\necho 'command not found' >&2\nexit 127\n"


@pytest.fixture
def machine(tmp_path):
    """A path with nothing but what the script needs, a home folder, and a checkout that names 3.11, 3.12 and 3.13."""
    for name in ("sh", "sed", "sort", "dirname"):
        there = tmp_path / "path" / name
        there.parent.mkdir(exist_ok=True)
        there.symlink_to(shutil.which(name))
    (tmp_path / "checkout" / ".ci").mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "python", tmp_path / "checkout" / ".ci")
    shutil.copy(ROOT / "pyproject.toml", tmp_path / "checkout")
    return tmp_path


def put(machine: Path, place: str, text: str = STARTS) -> str:
    """A fake interpreter; its path."""
    file = machine / place
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(0o755)
    return str(file)


def chosen(machine: Path, which: str = "newest", **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": str(machine / "path"), "HOME": str(machine / "home")} | environment
    command = [str(machine / "checkout" / ".ci" / "python"), which]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_the_newest_and_the_oldest_of_those_on_the_path(machine):
    oldest, _, newest = (put(machine, f"path/python3.{minor}") for minor in (11, 12, 13))
    assert chosen(machine).stdout.strip() == newest
    assert chosen(machine, "oldest").stdout.strip() == oldest


def test_one_that_does_not_start_is_passed_over(machine):
    put(machine, "path/python3.13", SHIM)
    usable = put(machine, "path/python3.12")
    assert chosen(machine).stdout.strip() == usable


@pytest.mark.parametrize("place", ["versions/3.13.0/bin", "versions/3.13.12/bin"])
def test_behind_a_shim_the_folders_of_pyenv_are_looked_into(machine, place):
    put(machine, "path/python3.13", SHIM)
    put(machine, "path/python3.11")
    found = put(machine, f"home/.pyenv/{place}/python3.13")
    assert chosen(machine).stdout.strip() == found
    moved = put(machine, f"elsewhere/{place}/python3.13")
    assert chosen(machine, PYENV_ROOT=str(machine / "elsewhere")).stdout.strip() == moved


def test_the_folders_of_uv_are_looked_into(machine):
    put(machine, "path/python3.11")
    found = put(machine, "home/.local/share/uv/python/cpython-3.13.5-linux-x86_64-gnu/bin/python3.13")
    assert chosen(machine).stdout.strip() == found


def test_what_the_classifiers_do_not_name_is_not_taken(machine):
    for name in ("python3.14", "python3.10", "python3"):
        put(machine, f"path/{name}")
    put(machine, "home/.pyenv/versions/3.13.0t/bin/python3.13")  # without the global lock: few wheels
    result = chosen(machine)
    assert result.returncode == 1 and not result.stdout
    assert "looked for: 3.13 3.12 3.11" in result.stderr and "make PYTHON=" in result.stderr
    named = put(machine, "path/python3.12")
    assert chosen(machine).stdout.strip() == named


def test_make_takes_it_and_python_overrides_it(tmp_path):
    """What `make` would make the environment with; nothing is made."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".ci").mkdir()
    put(tmp_path, ".ci/python", "#!/bin/sh\necho $PWD/chosen\n")
    for name in ("chosen", "mine"):
        put(tmp_path, name, f"#!/bin/sh\necho {name} $* >> made\nexit 1\n")
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "MAKEFLAGS", "VENV")}
    for arguments in ([], ["PYTHON=./mine"]):
        made = subprocess.run(["make", "train", *arguments], cwd=tmp_path, env=environment, capture_output=True)
        assert made.returncode
    wanted = ["chosen -m venv --clear .venv", "mine -m venv --clear .venv"]
    assert (tmp_path / "made").read_text().splitlines() == wanted
