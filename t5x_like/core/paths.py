"""Files written whole or not at all. Knows nothing of what is in them."""

from __future__ import annotations

import os
from pathlib import Path

from t5x_like.core.errors import UserError


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file so that a reader, or a crash, sees the old one or the new one and nothing between."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def make_writable(path: Path, where: str) -> None:
    """Makes a folder and writes a file in it, so that a run fails at its start and not at its first checkpoint.

    Raises:
      UserError: the folder cannot be made or written.
    """
    probe = path / f".writable.{os.getpid()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise UserError(where, f"{path} cannot be written: {error.strerror}", "a writable folder") from None
