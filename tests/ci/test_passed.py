"""`make proof` run again passes over what has passed with the same code, and over nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import os
def test_one(): pass
def test_two(): assert not os.environ.get("FAIL")
"""


@pytest.mark.slow
def test_only_what_has_passed_with_the_same_code_is_passed_over(tmp_path):
    shutil.copy(Path(__file__).resolve().parents[1] / "conftest.py", tmp_path)
    (tmp_path / "test_some.py").write_text(TESTS)
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.com"]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "tests"]):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)

    outside = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}

    def closing_line(**environment: str) -> str:
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", "2", "--passed", ".proof"]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=outside | environment)
        return result.stdout.strip().splitlines()[-1]

    assert "1 failed, 1 passed" in closing_line(FAIL="1")
    assert "1 passed" in (line := closing_line()) and "failed" not in line  # the other one is not run again
    assert "no tests ran" in closing_line() or "deselected" in closing_line()
    with (tmp_path / "test_some.py").open("a") as file:
        file.write("# other code\n")
    assert "2 passed" in closing_line()
