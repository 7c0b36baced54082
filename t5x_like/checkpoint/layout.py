"""Versions of the names in a checkpoint, so that those of older versions can be read. Must not know files.

A change of names raises ``LAYOUT`` and adds its renames, which apply to checkpoints of all layouts before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from t5x_like.core.errors import refuse

LAYOUT = 1
"""Layout that is written. Checkpoints without a number have 1."""

RENAMES: dict[int, dict[str, str]] = {}
"""Layout to the renames that made it: a regular expression of whole old paths to the new path, with \\1 for groups."""


def renamed(paths: Iterable[str], layout: int) -> dict[str, str]:
    """Path in a checkpoint of ``layout`` to the path that this version has for it.

    Raises:
      UserError: the layout is of a later version.
    """
    refuse(layout > LAYOUT, "checkpoints", f"the checkpoint has layout {layout}, written by a later version",
           f"layouts up to {LAYOUT}", "the version of t5x-like that wrote it, or a newer one")
    found = {}
    for old in paths:
        new = old
        for version in range(layout + 1, LAYOUT + 1):
            for pattern, replacement in RENAMES.get(version, {}).items():
                if match := re.fullmatch(pattern, new):
                    new = match.expand(replacement)
                    break
        found[old] = new
    return found
