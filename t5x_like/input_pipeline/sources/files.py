"""Files of a source, local or remote: found, opened, unpacked, told apart by a digest; and the units they are cut into.

Knows paths, addresses of fsspec, gzip and Zstandard; must not know what is inside a file. A file that is broken is
``BrokenFile``, for the reader to turn into a message about its record; one that cannot be reached is a ``UserError``.
"""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import io
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.sources.messages import cannot_be_read, missing_package

# Up to this many bytes a corpus is identified by its content, above it by sizes and times of change: reading 256 MB
# takes about a second, and content is the same on every host, while times of change are not.
CONTENT_DIGEST_BYTES = 256 * 2**20

# Large enough that opening a unit costs nothing beside reading it (about 3 s of tokenizing), small enough that the
# processes that share a corpus end at about the same time.
UNIT_BYTES = 16 * 2**20

_CHUNK_BYTES = 2**18
# What a remote file system may say of a file that changes with its content, best first.
_STAMPS = (
    "ETag", "etag", "md5Hash", "checksum", "crc32c", "mtime", "LastModified", "last_modified", "updated", "created",
)  # fmt: skip


class BrokenFile(Exception):
    """A file's content ends too early or contradicts itself; the message says how."""


@dataclass(frozen=True)
class Unit:
    """A stretch of a source that is read by itself.

    Attributes:
      file: local path or fsspec address; empty where the source has no files.
      start: first byte, record or row group, whichever the format counts.
      stop: one past the last; -1: to the end.
      size: bytes, about; to balance work.
    """

    file: str
    start: int = 0
    stop: int = -1
    size: int = 0


@dataclass(frozen=True)
class File:
    """A file that was found.

    Attributes:
      address: local path or fsspec address.
      size: bytes on disk, compressed or not.
      stamp: what changes when the content does, as far as the file system says: a time of change, an ETag.
    """

    address: str
    size: int
    stamp: str

    @property
    def name(self) -> str:
        return _own_part(self.address).rpartition("/")[2]


def is_remote(address: str) -> bool:
    """Whether ``address`` is one of fsspec's and no local path."""
    return "://" in address


def list_files(paths: Iterable[str], patterns: tuple[str, ...], exclude: tuple[str, ...] = ()) -> list[File]:
    """Every file at ``paths``, once, in the order of their paths, folder by folder.

    Args:
      paths: files, folders or glob patterns; local, or addresses of fsspec.
      patterns: the names of files that are taken from folders, such as ``*.txt``.
      exclude: names of folders and files that are passed over below a folder or glob.

    Raises:
      UserError: a path that does not exist or matches nothing, or a remote one for which a package is missing.
    """
    found: dict[str, File] = {}
    for given in paths:
        files = _remote_files(given, patterns, set(exclude)) if is_remote(given) else None
        if files is None:
            files = _local_files(Path(given).expanduser(), patterns, set(exclude))
        if not files:
            wanted = f"a file, a folder with {' or '.join(patterns)}, or a glob; relative to {Path.cwd()}"
            raise UserError("data.corpus.source.paths", f"nothing at {given!r}", wanted)
        found.update((file.address, file) for file in files)
    return sorted(found.values(), key=lambda file: file.address.split("/"))


def folder_files(folder: str) -> list[File]:
    """The files that lie directly in ``folder``, by name; none if there is no such folder."""
    if is_remote(folder):
        base = _remote_path(folder)[1].rstrip("/")
        files = _remote_files(folder, ("*",), set())
        return [file for file in files if _remote_path(file.address)[1].rpartition("/")[0] == base]
    if not os.path.isdir(folder):
        return []
    entries = (entry for entry in Path(folder).iterdir() if entry.is_file())
    return [_local_file(str(entry), entry.stat()) for entry in sorted(entries)]


def format_suffix(address: str) -> str:
    """The end of a name that tells the format: ``.csv`` of ``folder/a.csv.gz``."""
    name = Path(_own_part(address).rpartition("/")[2])
    return Path(name.stem).suffix if is_compressed(address) else name.suffix


def is_compressed(address: str) -> bool:
    """Whether ``open_file`` unpacks the file at ``address``."""
    return _own_part(address).endswith((".gz", ".zst"))


def is_large(size: int) -> bool:
    """Whether so many bytes are more than one unit."""
    return size > UNIT_BYTES


def cut(total: int, size: int, start: int = 0) -> list[tuple[int, int]]:
    """``[start, start + total)`` in about equal stretches of at most ``UNIT_BYTES`` of its ``size`` bytes."""
    parts = max(1, min(total, -(-size // UNIT_BYTES)))
    return [(start + total * part // parts, start + total * (part + 1) // parts) for part in range(parts)]


def open_plain(address: str) -> BinaryIO:
    """The bytes of a file as they are stored; can be sought in.

    Raises:
      UserError: it cannot be opened.
    """
    try:
        if not is_remote(address):
            return open(address, "rb")
        return cast(BinaryIO, io.BufferedReader(_RemoteFile(address), _CHUNK_BYTES))
    except OSError as error:
        raise cannot_be_read(address, error) from None


def open_file(address: str) -> BinaryIO:
    """The bytes of a file, unpacked if its name ends in ``.gz`` or ``.zst``.

    Raises:
      UserError: it cannot be opened, or the package for its compression is missing.
      BrokenFile: while it is read: the compressed data is broken. What was unpacked up to there has been given.
    """
    plain = open_plain(address)
    name = _own_part(address)
    if name.endswith(".gz"):
        return unpack_gzip(plain)
    if name.endswith(".zst"):
        return _unpack(plain, "Zstandard", _zstandard_decoder(plain, address))
    return plain


def unpack_gzip(plain: BinaryIO) -> BinaryIO:
    """``plain`` without its gzip compression; closing it closes ``plain``."""
    return _unpack(plain, "gzip", lambda: zlib.decompressobj(wbits=31))


def digest_files(files: Iterable[File]) -> str:
    """A digest that changes when a file changes, appears or goes: 64 hexadecimal digits.

    Names count without their folder, so that the same files on another host have the same digest. Remote files count
    by size and what their file system says of their content, never by reading them.
    """
    files = list(files)
    by_content = sum(file.size for file in files if not is_remote(file.address)) <= CONTENT_DIGEST_BYTES
    digest = hashlib.sha256(b"content" if by_content else b"times")
    for file in files:
        digest.update(f"\n{file.name}\n{file.size}\n".encode())
        read = by_content and not is_remote(file.address)
        digest.update(_content_digest(file) if read else file.stamp.encode())
    return digest.hexdigest()


def _content_digest(file: File) -> bytes:
    try:
        with open(file.address, "rb", buffering=0) as content:
            if file.size <= _CHUNK_BYTES:  # half the time of file_digest; folders may have many
                return hashlib.sha256(content.read()).digest()
            return hashlib.file_digest(content, "sha256").digest()
    except OSError as error:
        raise cannot_be_read(file.address, error) from None


def _local_file(path: str, status: os.stat_result) -> File:
    return File(path, status.st_size, str(status.st_mtime_ns))


def _local_files(path: Path, patterns: tuple[str, ...], excluded: set[str]) -> list[File]:
    if path.is_file():
        return [_local_file(str(path), path.stat())]  # named by the user: whatever it is called
    if path.is_dir():
        return list(_walk(str(path), _any_of(patterns), excluded))
    # A name above the first wildcard is the user's choice here: only what lies below it can be excluded.
    base = len(Path(str(path).split("*")[0]).parts)
    found = []
    for name in glob.glob(str(path), recursive=True):
        if not excluded.intersection(Path(name).parts[base:]):
            status = os.stat(name)
            if stat.S_ISREG(status.st_mode):
                found.append(_local_file(name, status))
    return found


def _walk(folder: str, wanted: re.Pattern[str], excluded: set[str]) -> Iterator[File]:
    """Files below ``folder``; links to folders are not followed. One system call a file: there may be a million."""
    folders = [folder]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name in excluded:
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    elif wanted.fullmatch(entry.name) and entry.is_file():
                        yield _local_file(entry.path, entry.stat())
        except OSError as error:  # to pass over it would lose documents without a word
            raise cannot_be_read(folder, error) from None


def _any_of(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(fnmatch.translate, patterns)))


def _remote_files(address: str, patterns: tuple[str, ...], excluded: set[str]) -> list[File]:
    """Files at an address of fsspec, chained ones (``zip://*.txt::gs://bucket/a.zip``) included."""
    first, chained, rest = address.partition("::")
    if chained and "://" not in first:  # a cache in front of a file system: the names are that file system's
        return [File(f"{first}::{f.address}", f.size, f.stamp) for f in _remote_files(rest, patterns, excluded)]
    system, path = _remote_path(address)
    base = len(path.split("*")[0].rstrip("/").split("/"))
    try:
        if glob.has_magic(path):
            listed = system.glob(path, detail=True)
        else:
            information = system.info(path)
            if information["type"] == "directory":
                wanted = _any_of(patterns)
                listed = system.find(path, detail=True)
                listed = {name: each for name, each in listed.items() if wanted.fullmatch(name.rpartition("/")[2])}
            else:
                listed = {path: information}
    except FileNotFoundError:
        return []
    except Exception as error:  # each file system has exceptions of its own: no access, no such bucket, no network
        got = f"cannot be listed: {type(error).__name__}: {error}"
        raise UserError(address, got, "an address that can be read from here") from error
    return [
        File(
            system.unstrip_protocol(name) + chained + rest,
            int(each.get("size") or 0),
            next((str(each[key]) for key in _STAMPS if each.get(key)), ""),
        )
        for name, each in listed.items()
        if each["type"] == "file" and not excluded.intersection(name.split("/")[base:])
    ]


def _own_part(address: str) -> str:
    """Of a chained address (``zip://a.txt::gs://bucket/a.zip``, ``simplecache::gs://a.txt``) what names the file."""
    return next((part for part in address.split("::") if is_remote(part)), address)


def _remote_path(address: str) -> tuple[Any, str]:
    """The file system of fsspec for ``address`` and the path in it."""
    try:
        import fsspec
    except ImportError as error:
        raise missing_package(address, error, "remote") from None
    try:
        return fsspec.core.url_to_fs(address)
    except ImportError as error:
        raise UserError(address, f"a package is missing: {error}", "", _how_to_install(address)) from None
    except ValueError as error:
        raise UserError(address, str(error), "a local path, gs://, s3:// or another protocol of fsspec") from None


def _how_to_install(address: str) -> str:
    packages = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "s3a": "s3fs", "az": "adlfs", "abfs": "adlfs"}
    protocol = address.rpartition("::")[2].partition("://")[0]
    return f"pip install {packages.get(protocol, f'fsspec[{protocol}]')}"


class _RemoteFile(io.RawIOBase):
    """A file of fsspec, whose every failure is a ``UserError``: each file system has exceptions of its own."""

    def __init__(self, address: str):
        self._address = address
        # Kept as long as the file: an archive is closed with its file system.
        self._system, path = _remote_path(address)
        self._file = self._told(self._system.open, path, "rb")

    def _told(self, function: Callable, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except UserError:
            raise
        except Exception as error:
            raise cannot_be_read(self._address, error) from error

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._told(self._file.readinto, buffer)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._told(self._file.seek, offset, whence)

    def tell(self) -> int:
        return self._told(self._file.tell)

    def close(self) -> None:
        if not self.closed and hasattr(self, "_file"):
            self._file.close()
        super().close()


class _Unpacked(io.RawIOBase):
    """Reads compressed data, several frames one after the other included.

    The readers of the standard library and of ``zstandard`` either lose what they unpacked just before a break or take
    a file that was cut for a whole one.
    """

    def __init__(self, plain: BinaryIO, name: str, new_decoder: Callable[[], Any]):
        self._plain, self._name, self._new_decoder = plain, name, new_decoder
        self._decoder: Any = new_decoder()  # a file of no bytes is a broken one, as it is for gunzip
        self._packed, self._ready = b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._plain.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            packed = self._packed or self._plain.read(_CHUNK_BYTES)
            self._packed = b""
            if self._decoder is None:
                packed = packed.lstrip(b"\0")  # tapes and block devices pad with zeros
            if not packed:
                if self._decoder is None:
                    return 0
                raise BrokenFile(f"broken {self._name} data: the file ends too early")
            self._decode(packed)
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _decode(self, packed: bytes) -> None:
        if self._decoder is None:
            self._decoder = self._new_decoder()
        try:
            self._ready = memoryview(self._decoder.decompress(packed))
        except Exception as error:  # zlib.error; ZstdError, whose package is imported only where it is needed
            raise BrokenFile(f"broken {self._name} data: {error}") from None
        if self._decoder.eof:
            self._packed, self._decoder = self._decoder.unused_data, None


def _unpack(plain: BinaryIO, name: str, new_decoder: Callable[[], Any]) -> BinaryIO:
    return cast(BinaryIO, io.BufferedReader(_Unpacked(plain, name, new_decoder), _CHUNK_BYTES))


def _zstandard_decoder(plain: BinaryIO, address: str) -> Callable[[], Any]:
    try:
        import zstandard
    except ImportError as error:
        plain.close()
        raise missing_package(address, error, "zstd") from None
    # Files made with --long need a larger window than the default of 128 MB.
    return lambda: zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()
