"""A lock between processes that want to build the same file, so that one builds and the others wait.

Only saves work: every file of the cache is put in place by an atomic rename, so two builders at once are also right
(on a file system without locks they simply both build). Released by the system when its holder dies.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from t5x_like.core.errors import UserError


@contextlib.contextmanager
def held_lock(path: Path) -> Iterator[None]:
    """Holds the lock file ``path`` inside the ``with`` block, waiting for another holder on this file system.

    Raises:
      UserError: the folder cannot be made or written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise UserError(
            "data.cache",
            f"{path.parent} cannot be written: {error.strerror}",
            "a folder that can be written",
            "set data.cache or $T5X_LIKE_CACHE",
        ) from None
    with file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        except (ImportError, OSError):  # no locks here: the atomic rename alone decides
            pass
        yield
