"""Files written whole or not at all. Knows nothing of their contents."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from t5x_like.core.errors import UserError


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file so that ``path`` is at every moment absent, the old file, or the whole new one.

    Args:
      path: the file; its folder is made if it is not there.
      content: text (written as UTF-8) or bytes.

    Raises:
      UserError: the folder cannot be made or written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(str(path), f"cannot be written: {error.strerror}", "a folder that can be written") from None


def cache_folder() -> Path:
    """The user's folder of what can be made again: ``$T5X_LIKE_CACHE``, else ``~/.cache/t5x-like``; on this machine,
    so the latter too where the former is an address."""
    named = os.environ.get("T5X_LIKE_CACHE", "")
    return Path(named if named and "://" not in named else "~/.cache/t5x-like").expanduser()


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
