"""Lets the tests of this folder import ``definition``: the folder cannot be a package, as its name is the library's."""

from __future__ import annotations

import sys
from pathlib import Path

if (_here := str(Path(__file__).parent)) not in sys.path:
    sys.path.append(_here)
