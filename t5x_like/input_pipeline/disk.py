"""Files and folders that appear whole or not at all, locks between their writers, and errors of full disks.

Must not know what is in them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import mmap
import os
import re
import secrets
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from t5x_like.core.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_BUFFER_BYTES = 2**20
_ANOTHER = "set data.cache or $T5X_LIKE_CACHE"


def temporary_name(prefix: str) -> str:
    """A new name for a file or folder that is not whole yet; it begins with a full stop."""
    return f".{prefix}-{_host()}-{os.getpid()}-{secrets.token_hex(4)}"


def is_left_behind(name: str) -> bool:
    """Whether ``name`` is a ``temporary_name`` of a process of this host that has ended, or of this very process.

    Of another host's processes nothing is known: its files may be in use.
    """
    match = re.fullmatch(rf"\..*-{_host()}-(\d+)-[0-9a-f]{{8}}(\..*)?", name)
    if not match or int(match[1]) == os.getpid():  # in a container the next process often has the number of the last
        return match is not None
    try:
        os.kill(int(match[1]), 0)
    except OSError as error:  # any other: it is somebody else's, and alive
        return isinstance(error, ProcessLookupError)
    return False


class HashedFile:
    """A new file written from front to back, its size and SHA-256 known at the end without reading it again.

    Args:
      path: path of the file.
    """

    def __init__(self, path: Path):
        self._file = path.open("wb", buffering=_BUFFER_BYTES)
        self._digest = hashlib.sha256()
        self._bytes = 0

    def write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._digest.update(data)
        self._bytes += len(data) if isinstance(data, bytes) else data.nbytes

    def close(self, durable: bool = False) -> dict:
        """Its ``bytes`` and ``sha256``. If ``durable``, returns when the disk itself has it."""
        self._file.flush()
        if durable:
            os.fsync(self._file.fileno())
        self._file.close()
        return {"bytes": self._bytes, "sha256": self._digest.hexdigest()}

    def abandon(self) -> None:
        """Closes it, whole or not."""
        with contextlib.suppress(OSError):  # the rest of the buffer may find no room
            self._file.close()


class NewFolder(contextlib.AbstractContextManager):
    """A folder of files that appears whole, by one rename. A context: at its end what is not published is removed.

    Args:
      path: path until then.
      names: names of the files.

    Attributes:
      files: the files by name, to be written.
    """

    def __init__(self, path: Path, names: Iterable[str]):
        path.mkdir()
        self._path = path
        self.files = {name: HashedFile(path / name) for name in names}

    def close(self) -> dict[str, dict]:
        """``bytes`` and ``sha256`` of each file, which the disk itself now has."""
        return {name: file.close(durable=True) for name, file in self.files.items()}

    def publish(self, final: Path, name: str, note: dict) -> bool:
        """Adds a JSON file ``name`` to the closed ones, and renames the folder.

        Returns:
          False where another process's folder of that name was first.
        """
        file = HashedFile(self._path / name)
        file.write(json.dumps(note, indent=2).encode())
        file.close(durable=True)
        return publish(self._path, final)

    def __exit__(self, *_: object) -> None:
        for file in self.files.values():
            file.abandon()
        shutil.rmtree(self._path, ignore_errors=True)


def publish(folder: Path, final: Path) -> bool:
    """Renames a finished folder, whose files have been closed durably, to its final name.

    Returns:
      False where another process's folder of that name was first; then ``folder`` is left as it is.
    """
    folder.chmod(0o755)
    _sync(folder)
    try:
        os.rename(folder, final)
    except OSError:
        if not final.is_dir():
            raise
        return False
    _sync(final.parent)
    return True


def check_files(folder: Path, files: Mapping[str, dict], by_content: bool) -> None:
    """Checks the files of a published folder against what ``NewFolder.close`` said of them: sizes, or digests too.

    Raises:
      UserError: a file that is missing or not as it was written.
    """
    for name, file in files.items():
        size = (folder / name).stat().st_size if (folder / name).is_file() else -1
        if size != file["bytes"] or (by_content and file_digest(folder / name) != file["sha256"]):
            allowed = f"{file['bytes']} bytes with SHA-256 {file['sha256'][:16]}..."
            got = "missing" if size < 0 else f"{size} bytes, not as it was written"
            raise UserError(str(folder / name), got, allowed, f"remove {folder}; it will be made again")


def file_digest(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def room_in(folder: Path) -> Iterator[None]:
    """Turns a failed write inside the ``with`` block into an error that says what is wrong with the disk.

    Raises:
      UserError: instead of any OSError.
    """
    try:
        yield
    except OSError as error:
        raise _explain(error, folder) from None


def map_array(path: Path, dtype: str) -> np.ndarray:
    """The numbers of a file, read from disk where they are touched; a plain array, sliced faster than a memmap.

    Rows of text lie all over a large file, so the system is told not to read ahead: without that each cold row would
    cost 128 kB and 2 ms (measured), with it 20 us.

    Raises:
      UserError: the file cannot be read, or does not hold whole numbers of this kind.
    """
    try:
        with path.open("rb") as file:
            if not os.fstat(file.fileno()).st_size:  # an empty file cannot be mapped
                return np.empty(0, dtype)
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if hasattr(mmap, "MADV_RANDOM"):
            mapped.madvise(mmap.MADV_RANDOM)
        return np.frombuffer(mapped, dtype)
    except (OSError, ValueError) as error:
        raise UserError(str(path), f"cannot be read: {error}", "the file as it was when the run began") from None


@contextlib.contextmanager
def held_lock(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[bool]:
    """A lock between processes that want to build the same file: one builds, the others wait.

    Only saves work: every file of the cache is put in place by an atomic rename, so two builders at once are also right
    (on a file system without locks they simply both build). Released by the system when its holder dies.

    Args:
      path: the lock file; its folder is made if it is not there.
      waiting: function called once if there is another holder to wait for.

    Yields:
      Whether there are locks here; if not, others may be inside at the same time.

    Raises:
      UserError: the folder cannot be made or written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        got = f"{path.parent} cannot be written: {error.strerror}"
        raise UserError("data.cache", got, "a folder that can be written", _ANOTHER) from None
    with file:
        yield _lock(file.fileno(), waiting)


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9]", "_", socket.gethostname())


def _explain(error: OSError, folder: Path) -> UserError:
    if error.errno not in _FULL:
        got = f"{folder}: {error.strerror or error}"
        return UserError("data.cache", got, "a folder that can be written", _ANOTHER)
    free = ""
    with contextlib.suppress(OSError):
        free = f", {shutil.disk_usage(folder).free / 1e6:,.0f} MB free"
    got = f"no room in {folder}: {error.strerror}{free}"
    allowed = "about 4 bytes per token at most, half of it only while preparing (twice that for more than 65,536 ids)"
    return UserError("data.cache", got, allowed, f"make room, or {_ANOTHER}, and run again: what is finished is kept")


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):  # some file systems have no such thing
            raise
    finally:
        os.close(descriptor)


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
