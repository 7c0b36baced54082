"""The repository keeps its own rules: lint, types, direction of imports, and a README whose commands exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_ruff():
    result = run(sys.executable, "-m", "ruff", "check", ".")
    assert result.returncode == 0, result.stdout


@pytest.mark.slow
def test_types():
    result = run(sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable)
    assert result.returncode == 0, result.stdout


def test_imports_go_one_way():
    result = run(str(Path(sys.executable).with_name("lint-imports")), "--no-cache")
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_reading_path_to_the_train_step_is_short():
    """What a reader of the README's reading path has to read: at most 800 lines."""
    readme = (ROOT / "README.md").read_text()
    path = readme.split("## Where to look")[1].split("\n|")[0]
    files = re.findall(r"\]\((t5x_like/[\w/]+\.py)\)", path)
    assert "t5x_like/train/step.py" in files
    lines = sum(len((ROOT / file).read_text().splitlines()) for file in files)
    assert lines <= 800, lines


def test_links_and_commands_of_the_documents():
    """Every local link leads somewhere, every make target and every t5x-like command named exists."""
    sys.path.insert(0, str(ROOT))
    from t5x_like.cli.arguments import parser

    commands = set(parser()._subparsers._group_actions[0].choices)  # type: ignore[union-attr]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    documents = ["README.md", "AGENTS.md", "CONTRIBUTING.md", "benchmarks/README.md", "pallas_kernels/README.md"]
    for document in (*documents, *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").glob("*.md")))):
        text = (ROOT / document).read_text()
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
            there = ((ROOT / document).parent / link).exists()
            assert link.startswith("http") or there, f"{document}: {link}"
        for target in re.findall(r"\bmake ([a-z-]+)", text):
            assert target in targets, f"{document}: make {target}"
        for command in re.findall(r"`?t5x-like ([a-z]+)", text):
            assert command in commands, f"{document}: t5x-like {command}"


def test_nothing_private_of_dependencies_is_imported():
    for file in [*ROOT.glob("t5x_like/**/*.py"), *ROOT.glob("pallas_kernels/*.py"), *ROOT.glob("benchmarks/*.py")]:
        text = file.read_text()
        assert not re.search(r"(jax|orbax\.checkpoint)\._src", text), file
        assert not re.search(r"^\s*(exec|eval)\(|\bpickle\b.*load", text, re.M), file
