"""Folders on a disk and in a bucket: files read, written, created, listed and removed by name.

    place("/runs/t5").write("config.json", data)          place("gs://bucket/runs/t5").read("config.json")

A bucket is reached by TensorStore's drivers ``gcs`` and ``s3``, which retry what passes by itself (a cut connection,
503, too many requests). Knows nothing of what the files hold. TensorStore is imported when an address is opened.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import functools
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from t5x_like.core.buckets import DRIVERS, known, open_store, spec_of
from t5x_like.core.errors import UserError, refuse
from t5x_like.core.paths import write_atomically

T = TypeVar("T")
ALLOWED = "a folder on a disk, gs://BUCKET/FOLDER or s3://BUCKET/FOLDER"
ABSENT = b"\x02"  # what TensorStore calls the generation of an object that is not there
PROBE_NAME = ".t5x_like-probe"
PROBE = 20.0  # seconds within which a bucket that cannot be used is named
ANSWER = 120.0  # seconds for one request of a small file, its retries included
PROBE_RETRIES = {"max_retries": 4, "initial_delay": "250ms", "max_delay": "2s"}
WAITS = (0.2, 1.0)  # seconds before a file of a disk that could not be read is read again: network disks err at times


def is_address(text: str | Path) -> bool:
    """Whether a text is an address such as ``gs://bucket/folder``, supported or not, and no path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(text)) is not None


def is_folder(name: str) -> bool:
    """Whether a name is an address, or the path of a folder that is there."""
    return is_address(name) or Path(name).is_dir()


class Place(abc.ABC):
    """A folder. Names are relative, with ``/`` between folder and file; an empty name is the folder itself.

    Every method but ``read`` raises ``OSError`` where the storage refuses or does not answer.
    """

    @abc.abstractmethod
    def read(self, name: str) -> bytes:
        """The content of a file. Raises FileNotFoundError if there is none, OSError if it cannot be read."""

    @abc.abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Writes a file, whole or not at all; folders are made."""

    @abc.abstractmethod
    def create(self, name: str, data: bytes) -> bool:
        """Writes a file only if there is none: of several that try at once exactly one does. ``data`` should be unlike
        that of any other caller: what is there with equal data, not empty, counts as created here, since an answer may
        be lost."""

    @property
    def disk(self) -> Path | None:
        """The folder's path on a disk; None in a bucket."""
        return None

    def exists(self, name: str) -> bool:
        """Whether there is a file."""
        try:
            self.read(name)
        except FileNotFoundError:
            return False
        return True

    @abc.abstractmethod
    def files(self, under: str = "", without: Sequence[str] = ()) -> list[str]:
        """Names of all files below a folder, relative to it, sorted; none where there is no such folder.

        Args:
          under: the folder.
          without: names of files and folders directly in it that are not even listed.
        """

    def children(self, under: str = "") -> list[str]:
        """Names of files and folders directly in a folder, sorted. In a bucket this lists all that is below."""
        return sorted({name.split("/")[0] for name in self.files(under)})

    @abc.abstractmethod
    def remove(self, name: str) -> None:
        """Removes a file, or all that is below a folder; nothing where there is neither."""

    @abc.abstractmethod
    def at(self, name: str) -> Place:
        """The folder of a name within."""

    @abc.abstractmethod
    def spec(self, name: str = "") -> dict[str, Any]:
        """The folder as JSON of a TensorStore key-value store; its path ends in ``/``."""

    def copy_tree(self, source: str, target: str) -> None:
        """Copies all files below a folder to another, one after the other."""
        for name in self.files(source):
            self.write(f"{target}/{name}", self.read(f"{source}/{name}"))


@dataclasses.dataclass(frozen=True)
class _Disk(Place):
    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def disk(self) -> Path:
        return self.path

    def read(self, name: str) -> bytes:
        try:
            return _waited((self.path / name).read_bytes)
        except NotADirectoryError as error:
            raise FileNotFoundError(*error.args) from None

    def write(self, name: str, data: bytes) -> None:
        try:
            write_atomically(self.path / name, data)
        except UserError as error:
            raise OSError(str(error).splitlines()[0]) from error

    def create(self, name: str, data: bytes) -> bool:
        try:
            return self._create(self.path / name, data)
        except FileNotFoundError:  # the folder was removed in between by one that left it empty
            return self._create(self.path / name, data)

    def _create(self, path: Path, data: bytes) -> bool:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        try:
            temporary.write_bytes(data)
            with contextlib.suppress(FileExistsError):
                try:
                    os.link(temporary, path)
                except (FileExistsError, FileNotFoundError):
                    raise
                except OSError:  # a file system without links
                    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                    os.replace(temporary, path)
                return True
            with contextlib.suppress(OSError):
                return bool(data) and path.read_bytes() == data  # the answer to the link was lost, as NFS may
            return False
        finally:
            temporary.unlink(missing_ok=True)

    def files(self, under: str = "", without: Sequence[str] = ()) -> list[str]:
        top, found = self.path / under, []
        for folder, folders, names in os.walk(top):
            if Path(folder) == top:
                folders[:] = [name for name in folders if name not in without]
                names = [name for name in names if name not in without]
            found += [Path(folder, name).relative_to(top).as_posix() for name in names]
        return sorted(found)

    def children(self, under: str = "") -> list[str]:
        try:
            return sorted(os.listdir(self.path / under))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def remove(self, name: str) -> None:
        path = self.path / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def copy_tree(self, source: str, target: str) -> None:
        if (self.path / source).is_dir():
            shutil.copytree(self.path / source, self.path / target, dirs_exist_ok=True)

    def at(self, name: str) -> Place:
        return _Disk(self.path / name)

    def spec(self, name: str = "") -> dict[str, Any]:
        return {"driver": "file", "path": f"{(self.path / name).absolute()}/"}


@dataclasses.dataclass(frozen=True)
class _Bucket(Place):
    scheme: str
    bucket: str
    path: str  # empty, or ends in "/"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.path}".rstrip("/")

    def read(self, name: str) -> bytes:
        with self._errors(name):
            found = self._store.read(name).result(timeout=ANSWER)
        if found.state == "missing":
            raise FileNotFoundError(f"there is no {self}/{name}")
        return found.value

    def write(self, name: str, data: bytes) -> None:
        with self._errors(name):
            self._store.write(name, data).result(timeout=_patience(data))

    def create(self, name: str, data: bytes) -> bool:
        with self._errors(name):
            made = self._store.write(name, data, if_equal=ABSENT).result(timeout=_patience(data)).generation
        if made:
            return True
        with contextlib.suppress(FileNotFoundError):  # written by an attempt whose answer was lost?
            return bool(data) and self.read(name) == data
        return False

    def files(self, under: str = "", without: Sequence[str] = ()) -> list[str]:
        import tensorstore as ts

        top = f"{under.strip('/')}/" if under.strip("/") else ""
        whole, found = _below(top), []
        starts = [whole.inclusive_min, *(f"{top}{name}0".encode() for name in sorted(without))]  # "0" comes after "/"
        ends = [*(f"{top}{name}/".encode() for name in sorted(without)), whole.exclusive_max]
        with self._errors(under):
            for start, end in zip(starts, ends, strict=True):
                part = ts.KvStore.KeyRange(start, end)
                found += self._store.list(part, strip_prefix_length=len(top.encode())).result(timeout=ANSWER)
            if self.scheme == "gs":
                self._may_list(self._store, ANSWER)
        return sorted(set(key.decode() for key in found) - set(without))

    def remove(self, name: str) -> None:
        with self._errors(name):
            if name:
                self._store.write(name, None).result(timeout=ANSWER)
            self._store.delete_range(_below(f"{name}/" if name else "")).result(timeout=ANSWER)

    def at(self, name: str) -> Place:
        return dataclasses.replace(self, path=f"{self.path}{name.strip('/')}/" if name.strip("/") else self.path)

    def spec(self, name: str = "") -> dict[str, Any]:
        return spec_of(self.scheme, self.bucket, f"{self.path}{name.strip('/')}/" if name.strip("/") else self.path)

    def _may_list(self, store: Any, seconds: float) -> None:
        """Raises ValueError where a listing is refused. The driver ``gcs`` takes that for an empty one, but who may not
        list is refused the read of a missing object too; ``s3`` tells by itself."""
        if self.scheme == "gs":
            store.read(PROBE_NAME).result(timeout=seconds)
        else:
            store.list(_below(f"{PROBE_NAME}/")).result(timeout=seconds)

    @functools.cached_property
    def _store(self) -> Any:
        return open_store(self.spec())

    @contextlib.contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        """What TensorStore raises, as ``OSError`` with the object's address."""
        try:
            yield
        except TimeoutError:
            raise OSError(f"{self}/{name}: no answer within {ANSWER:.0f} s") from None
        except ValueError as error:
            raise OSError(f"{self}/{name}: {_reason(error)}") from error


def place(where: str | Path, field: str = "directory") -> Place:
    """The folder at a path or an address; a bucket is asked whether it may be read. Makes nothing.

    Of Google a bucket that does not exist looks like an empty one as long as nothing is written: ``make_writable``.

    Args:
      where: a path, ``gs://BUCKET/FOLDER`` or ``s3://BUCKET/FOLDER``.
      field: name of what was given, for the error.

    Raises:
      UserError: an address of another kind, without a bucket, or of a bucket that is not there or refuses.
    """
    if not is_address(where):
        return _Disk(Path(where))
    scheme, _, rest = str(where).partition(":")
    refuse(scheme not in DRIVERS, field, f"{where}: there is no support for {scheme}://", ALLOWED,
           "a bucket mounted as a folder: /mnt/bucket/run" if scheme not in ("http", "https", "hf") else "")
    bucket, _, folder = rest.removeprefix("//").partition("/")
    refuse(not rest.startswith("//") or not bucket, field, f"{where} names no bucket", f"{scheme}://BUCKET/FOLDER")
    folder = "/".join(part for part in folder.split("/") if part)
    found = _Bucket(scheme, bucket, f"{folder}/" if folder else "")
    try:
        store = open_store(found.spec() | {f"{DRIVERS[scheme]}_request_retries": PROBE_RETRIES})
        found._may_list(store, PROBE)
    except TimeoutError:
        raise UserError(field, f"{where}: no answer within {PROBE:.0f} s", known(scheme)) from None
    except ValueError as error:
        raise UserError(field, f"{where} cannot be read: {_reason(error)}", f"{ALLOWED}, in a bucket that is there and "
                        "may be read", known(scheme)) from error
    return found


def make_writable(where: Place, field: str) -> None:
    """Writes a file and removes it again, so that a run fails at its start and not at its first checkpoint.

    Raises:
      UserError: nothing can be written there.
    """
    name = f".writable.{os.getpid()}.{secrets.token_hex(4)}"
    try:
        where.create(name, b"")
        where.remove(name)
    except OSError as error:
        reason = error.strerror or str(error).removeprefix(f"{where}/{name}: ")
        asked = known(where.scheme) if isinstance(where, _Bucket) else ""
        raise UserError(field, f"{where} cannot be written: {reason}", "a writable folder", asked) from None


def _below(prefix: str) -> Any:
    """The range of all keys that begin with a prefix, which is empty or ends in ``/``."""
    import tensorstore as ts

    return ts.KvStore.KeyRange(prefix, f"{prefix[:-1]}0" if prefix else "")  # "0" is the character after "/"


def _patience(data: bytes) -> float:
    return ANSWER + len(data) / 1e6  # 1 MB/s at least


def _reason(error: Exception) -> str:
    """The cause in TensorStore's error, without the server's answer in full."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0].split(" [")[0]
    return first if len(first) <= 300 else first[:300] + "..."


def _waited(read: Callable[[], T]) -> T:
    """``read()``, called again after each of ``WAITS`` while it raises an OSError that may pass."""
    for seconds in WAITS:
        try:
            return read()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError):
            raise
        except OSError:
            time.sleep(seconds)
    return read()
