"""Pages of docs/ that are made by a script say what the code says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_every_config_field_stands_in_its_page():
    """In a process of its own: classes that other tests define are choices here."""
    checked = subprocess.run([sys.executable, str(DOCS / "config_page.py"), "--check"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
