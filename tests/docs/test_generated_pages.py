"""Pages of docs/ that are made by a script say what the code says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


def check(script: str, *arguments: str) -> None:
    """In a process of its own: classes that other tests define are choices here."""
    command = [sys.executable, str(DOCS / script), "--check", *arguments]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


def test_every_config_field_stands_in_its_page():
    check("config_page.py")


@pytest.mark.slow
def test_typical_mistakes_print_what_their_page_says():
    check("mistakes_page.py", "8")
