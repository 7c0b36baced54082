"""Files of a source, local or remote: found, opened, unpacked, told apart by a digest; and the units they are cut into.

Knows paths, addresses of fsspec and compressions; must not know what is inside a file. A file that is broken is
``BrokenFile``, for the reader to turn into a message about its record; one that cannot be reached is a ``UserError``.
"""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import hashlib
import io
import itertools
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.sources import remote
from t5x_like.input_pipeline.sources.messages import cannot_be_read, local_path, missing_package, not_utf8
from t5x_like.input_pipeline.sources.remote import is_remote, own_part

# Up to this many bytes a corpus is identified by its content, above it by sizes and times of change: reading 256 MB
# takes about a second, and content is the same on every host, while times of change are not.
CONTENT_DIGEST_BYTES = 256 * 2**20

# Large enough that opening a unit costs nothing beside reading it (about 3 s of tokenizing), small enough that the
# processes that share a corpus end at about the same time.
UNIT_BYTES = 16 * 2**20

# Ends of names, in small letters, of files that are unpacked.
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")

_CHUNK_BYTES = 2**18
# A file that is one of several: what is before its number, the number, how many there are, what is behind.
_SHARD = re.compile(r"(.*?)(\d{1,6})-of-(\d{1,6})(.*)", re.DOTALL)
_SHARD_HASH = re.compile(r"-[0-9a-f]{16}(?=\.)")  # which the Hugging Face Hub put behind it once


class BrokenFile(Exception):
    """A file's content ends too early or contradicts itself; the message says how."""


@dataclass(frozen=True)
class Unit:
    """A stretch of a source that is read by itself.

    Attributes:
      file: local path or fsspec address; empty where the source has no files.
      start: first byte, record or row group, whichever the format counts.
      stop: one past the last; -1: to the end.
      size: approximate bytes, to balance work.
    """

    file: str
    start: int = 0
    stop: int = -1
    size: int = 0


@dataclass(frozen=True, order=True)
class File:
    """A file that was found.

    Attributes:
      address: local path or fsspec address.
      size: bytes on disk, compressed or not.
      stamp: mark of the file system that changes with the content: a time of change, an ETag.
      key: device and number, the same for all names of a local file; empty where there is none.
    """

    address: str
    size: int
    stamp: str
    key: tuple[int, ...] = field(default=(), compare=False)

    @property
    def name(self) -> str:
        return own_part(self.address).rpartition("/")[2]


def list_files(
    paths: Iterable[str], patterns: tuple[str, ...], exclude: tuple[str, ...] = (), left_out: list[str] | None = None
) -> list[File]:
    """Every file at ``paths``, once under the first of its names, in the order of their paths, folder by folder.

    Names that begin with a dot are passed over below a folder or glob, unless the glob itself has the dot. Linked files
    are read like others. Linked folders are not: a walk through a folder passes over them; but a local glob goes where
    it matches them, also with ``**``. Of a file that also lies there compressed (``a.jsonl`` and ``a.jsonl.gz``) one is
    read: what is named itself, else the first of plain and ``COMPRESSIONS``.

    Args:
      paths: files, folders or glob patterns; local, or addresses of fsspec.
      patterns: name patterns of files that are read from folders, such as ``*.txt``; capitals count as small letters.
      exclude: names of folders and files that are skipped below a folder or glob.
      left_out: list to which what lies in a folder under another name, linked folders, and what is there twice are
        added.

    Raises:
      UserError: a path that does not exist or matches nothing, a link that leads nowhere, a remote one for which a
        package is missing, or whose file system does not tell when a file has changed.
    """
    found: dict[str | tuple[int, ...], File] = {}
    named: set[str] = set()
    twins: list[File] = []
    left_out = [] if left_out is None else left_out
    for given in paths:
        if is_remote(given):
            listed = remote.list_remote(given, _any_of(patterns), set(exclude), left_out)
            files = [File(*each, key=_key_of(each[0])) for each in listed]
        else:
            files = _local_files(Path(local_path(given)), patterns, set(exclude), left_out)
        if not files:
            wanted = f"a file, a folder with {' or '.join(patterns)}, or a glob"
            raise UserError("data.corpus.source.paths", f"nothing at {given!r}", wanted)
        if len(files) == 1 and given.endswith(files[0].name):
            named.add(files[0].address)
        for file in files:
            key = file.key or file.address
            found[key] = min(file, found.get(key, file), key=_path_order)
    chosen: dict[str, list[File]] = {}
    for file in sorted(found.values(), key=lambda file: (file.address not in named, _packing(file.address))):
        alike = chosen.setdefault(unpacked(file.address), [])
        (alike if file.address in named or not alike else twins).append(file)
    left_out += [file.address for file in twins]
    return sorted(itertools.chain(*chosen.values()), key=_path_order)


def _path_order(file: File) -> list[str]:
    return file.address.split("/")


def missing_shards(files: Iterable[File]) -> list[str]:
    """Which files are not there of those whose names count them (``a-00001-of-00004.jsonl``), in words."""
    groups: dict[tuple[str, int], tuple[str, set[int]]] = {}
    for file in files:
        if "-of-" in file.name and (match := _SHARD.fullmatch(file.name)):
            before, number, count, after = match.groups()
            folder, pattern = file.address.removesuffix(file.name), f"{before}*-of-{count}{_SHARD_HASH.sub('', after)}"
            alike = pattern.lower()
            for end in COMPRESSIONS:  # which some of them may have
                alike = alike.removesuffix(end)
            _, numbers = groups.setdefault((folder + alike, int(count)), (folder + pattern, set()))
            numbers.add(int(number))
    lines = []
    for (_, count), (pattern, numbers) in groups.items():
        first = 1 if count in numbers else 0  # some count from 1
        if missing := sorted(set(range(first, first + count)) - numbers):
            shown = ", ".join(map(str, missing[:3])) + (", ..." if len(missing) > 3 else "")
            lines.append(f"{len(missing):,} of {count:,} shards {pattern}, which are not there: {shown}")
    return lines


def folder_files(folder: str) -> list[File]:
    """The files that lie directly in ``folder``, by name, hidden ones left out; none if there is no such folder."""
    if is_remote(folder):
        base = remote.remote_path(folder).rstrip("/")
        files = sorted(File(*found) for found in remote.list_remote(folder, re.compile(".*"), set(), []))
        return [file for file in files if remote.remote_path(file.address).rpartition("/")[0] == base]
    if not os.path.isdir(folder):
        return []
    entries = (entry for entry in Path(folder).iterdir() if entry.is_file() and not entry.name.startswith("."))
    return [_local_file(str(entry), entry.stat()) for entry in sorted(entries)]


def format_suffix(address: str) -> str:
    """The end of a name that tells the format, in small letters: ``.csv`` of ``folder/A.CSV.gz``."""
    name = Path(own_part(address).rpartition("/")[2].lower())
    return Path(name.stem).suffix if name.suffix in COMPRESSIONS else name.suffix


def is_compressed(address: str) -> bool:
    """Whether ``open_file`` unpacks the file at ``address``."""
    return own_part(address).lower().endswith(COMPRESSIONS)


def unpacked(address: str) -> str:
    """The address without the end of a compression."""
    own = own_part(address)
    return address.replace(own, own[: -len(COMPRESSIONS[place - 1])], 1) if (place := _packing(address)) else address


def _packing(address: str) -> int:
    """0 for a file that is not compressed, else the place of its compression among ``COMPRESSIONS``, from 1 on."""
    name = own_part(address).lower()
    return next((place for place, end in enumerate(COMPRESSIONS, 1) if name.endswith(end)), 0)


def packed_too(*patterns: str) -> tuple[str, ...]:
    """The patterns, and those of the same files compressed."""
    return tuple(pattern + end for pattern in patterns for end in ("", *COMPRESSIONS))


def is_large(size: int) -> bool:
    """Whether ``size`` bytes are more than one unit."""
    return size > UNIT_BYTES


def cut(file: str, total: int, size: int, start: int = 0) -> list[Unit]:
    """``[start, start + total)`` of a file in about equal units of at most ``UNIT_BYTES`` of its ``size`` bytes."""
    parts = max(1, min(total, -(-size // UNIT_BYTES)))
    borders = [(start + total * part // parts, size * part // parts) for part in range(parts + 1)]
    return [Unit(file, a, b, after - before) for (a, before), (b, after) in itertools.pairwise(borders)]


def line_units(files: list[File]) -> list[Unit]:
    """Units of files that can be read from any line on: large plain ones are cut into ranges of bytes."""
    units: list[Unit] = []
    for file in files:
        whole = is_compressed(file.address) or not is_large(file.size)
        units += [Unit(file.address, size=file.size)] if whole else cut(file.address, file.size, file.size)
    return units


def open_plain(address: str) -> BinaryIO:
    """The bytes of a file as they are stored; can be sought in.

    Raises:
      UserError: it cannot be opened.
    """
    try:
        if not is_remote(address):
            return open(address, "rb")
        return cast(BinaryIO, io.BufferedReader(remote.RemoteFile(address), _CHUNK_BYTES))
    except OSError as error:
        raise cannot_be_read(address, error) from None


def open_file(address: str) -> BinaryIO:
    """The bytes of a file, unpacked if its name ends in one of ``COMPRESSIONS``.

    Raises:
      UserError: it cannot be opened, or the package for its compression is missing.
      BrokenFile: while it is read: the compressed data is broken. What was unpacked up to there has been given.
    """
    plain = open_plain(address)
    name = own_part(address).lower()
    if name.endswith(".gz"):
        return unpack_gzip(plain)
    if name.endswith(".bz2"):
        import bz2

        return _unpack(plain, "bzip2", bz2.BZ2Decompressor)
    if name.endswith(".xz"):
        import lzma

        return _unpack(plain, "xz", lzma.LZMADecompressor)
    if name.endswith(".zst"):
        return _unpack(plain, "Zstandard", _zstandard_decoder(plain, address))
    return plain


def not_utf8_file(address: str, place: str) -> UserError:
    """Text that is not UTF-8 in a file of text; what the file's first bytes say it is instead."""
    head = b""
    with contextlib.suppress(BrokenFile, UserError, OSError), open_file(address) as file:
        head = file.read(8)
    return not_utf8(address, place, head)


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
        # On Linux a name is bytes, and those that are not UTF-8 are half characters here.
        digest.update(f"\n{file.name}\n{file.size}\n".encode("utf-8", "surrogateescape"))
        read = by_content and not is_remote(file.address)
        digest.update(_content_digest(file) if read else file.stamp.encode("utf-8", "surrogateescape"))
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
    return File(path, status.st_size, str(status.st_mtime_ns), _key(status))


def _key(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino) if status.st_ino else ()


def _key_of(address: str) -> tuple[int, ...]:
    """``File.key`` of a local file that is named by an address."""
    protocol, _, path = address.partition("://")
    return _key(os.stat(path)) if protocol in ("file", "local") and "::" not in address else ()


def _local_files(path: Path, patterns: tuple[str, ...], excluded: set[str], left_out: list[str]) -> list[File]:
    try:
        if path.is_file():
            return [_local_file(str(path), path.stat())]  # named by the user: whatever it is called
        if path.is_dir():
            return list(_walk(str(path), _any_of(patterns), excluded, left_out))
        # A name above the first wildcard is the user's choice here: only what lies below it can be excluded.
        base = len(Path(remote.above_wildcards(str(path))).parts)
        found = []
        for name in glob.glob(str(path), recursive=True):
            if not excluded.intersection(Path(name).parts[base:]):
                status = os.stat(name)
                if stat.S_ISREG(status.st_mode):
                    found.append(_local_file(name, status))
        return found
    except OSError as error:  # to pass over it would lose documents without a word
        raise cannot_be_read(error.filename or str(path), error) from None


def _walk(folder: str, wanted: re.Pattern[str], excluded: set[str], left_out: list[str]) -> Iterator[File]:
    """Files below ``folder``, as ``list_files`` says. One system call a file: there may be a million."""
    folders = [folder]
    while folders:
        folder = folders.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name in excluded or entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif wanted.fullmatch(entry.name) and (entry.is_file() or entry.is_symlink()):
                    status = entry.stat()  # fails for a link that leads nowhere
                    if stat.S_ISREG(status.st_mode):
                        yield _local_file(entry.path, status)
                    else:
                        left_out.append(entry.path)
                else:
                    left_out.append(entry.path)


def _any_of(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(fnmatch.translate, patterns)), re.IGNORECASE)


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
