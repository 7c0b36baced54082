"""The pages of docs/ about clusters: their command lines are understood by the launchers, their options exist; and the
Dockerfile copies and installs what is there."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest
from stand_ins import StandIns

ROOT = Path(__file__).resolve().parents[2]
PAGES = {"launch_kubernetes.md": "jobset.py", "launch_tpu_vm.md": "tpu_vm.py", "launch_skypilot.md": "skypilot.py"}


@pytest.mark.parametrize("page, launcher", PAGES.items())
def test_command_lines_of_a_page_are_understood(tmp_path, page, launcher):
    text = (ROOT / "docs" / page).read_text()
    lines = [line for block in re.findall(r"^```\n(.*?)^```", text, re.S | re.M) for line in block.splitlines()]
    commands = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith(f"python launch/{launcher}")]
    assert len(commands) >= 4
    nothing = StandIns(tmp_path / "bin")
    for _, *words in commands:
        done = nothing.run(ROOT / "launch" / launcher, *[word for word in words if word != "--go"], cwd=tmp_path)
        acts = {"status", "follow", "cancel"} & {*words}
        if "--name" in words:
            assert "kubectl: no such command" in done.stderr
        elif acts:
            assert done.returncode == 2 and "from here" in done.stderr, done.stderr
        else:
            assert done.returncode == 0, (words, done.stderr)


@pytest.mark.parametrize("page, launcher", PAGES.items())
def test_options_of_a_page_exist(tmp_path, page, launcher):
    known = StandIns(tmp_path / "bin").run(ROOT / "launch" / launcher, "--help", cwd=tmp_path).stdout
    rows = re.findall(r"^\| (`--.*?) \|", (ROOT / "docs" / page).read_text(), re.M)
    named = [option for row in rows for option in re.findall(r"`(--[\w-]+)", row)]
    assert len(named) > 5 and not [option for option in named if option not in known]


def test_the_dockerfile_copies_and_installs_what_is_there():
    text = (ROOT / "Dockerfile").read_text()
    copied = [word for line in re.findall(r"^COPY (.*) \S+$", text, re.M) for word in line.split()]
    assert copied and all((ROOT / path).exists() for path in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = {extra for found in re.findall(r"EXTRAS=([\w,]+)", text) for extra in found.split(",")}
    assert extras == {"tpu", "cuda", "quickstart"} <= project["project"]["optional-dependencies"].keys()
    python = re.search(r"python:([\d.]+)-", text)
    assert python and any(line.endswith(python[1]) for line in project["project"]["classifiers"])
    ignored = (ROOT / ".dockerignore").read_text().split()
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert not {*ignored} & {*wheel["packages"], *wheel["force-include"]}
