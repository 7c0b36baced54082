"""A lock between processes that want to build the same file, so that one builds and the others wait.

Only saves work: every file of the cache is put in place by an atomic rename, so two builders at once are also right
(on a file system without locks they simply both build). Released by the system when its holder dies.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from t5x_like.core.errors import UserError


@contextlib.contextmanager
def held_lock(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[bool]:
    """Holds the lock file ``path`` inside the ``with`` block, waiting for another holder on this file system.

    Args:
      path: the lock file; its folder is made if it is not there.
      waiting: called once if there is another holder to wait for.

    Yields:
      Whether there are locks here; if not, others may be inside at the same time.

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
        yield _lock(file.fileno(), waiting)


def _lock(descriptor: int, waiting: Callable[[], None] | None) -> bool:
    try:
        import fcntl

        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is not None:
                waiting()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    except (ImportError, OSError):  # no locks here: the atomic rename alone decides
        return False
    return True
