"""Messages about files and documents that cannot be read, in the same words for every format.

Knows nothing of files and formats but their names.
"""

from __future__ import annotations

import os.path
from pathlib import Path

from t5x_like.core.errors import UserError, nearest


def cannot_be_read(address: str, error: Exception) -> UserError:
    """A file that is there and yet cannot be opened or read; its content may be sound."""
    return UserError(address, f"cannot be read: {getattr(error, 'strerror', None) or error or type(error).__name__}")


def missing_package(what: str, error: Exception, extra: str) -> UserError:
    """An optional package is not installed."""
    return UserError("data.corpus.source", f"{what} cannot be read: {error}", "", f"pip install 't5x-like[{extra}]'")


class Unreadable(UserError):
    """The rest of a file cannot be read. The last error that ``Source.read`` gives, or raises."""


def broken_file(file: str, error: object, place: str) -> Unreadable:
    """A file that cannot be read beyond ``place``, such as ``after line 7``."""
    got = f"{error}, {place}: nothing beyond that is read"
    return Unreadable(file, got, "a complete file", "make or copy it again")


# How files begin that are not text in UTF-8: what they are, and what can be done.
_HEADS = {
    b"\x1f\x8b": ("compressed by gzip", "a name that ends in .gz, and it is unpacked"),
    b"BZh": ("compressed by bzip2", "a name that ends in .bz2, and it is unpacked"),
    b"\xfd7zXZ": ("compressed by xz", "a name that ends in .xz, and it is unpacked"),
    b"\x28\xb5\x2f\xfd": ("compressed by Zstandard", "a name that ends in .zst, and it is unpacked"),
    b"PK\x03\x04": ("a compressed zip archive", "zip://*::FILE as the path, with the package fsspec"),
    b"\xff\xfe\0\0": ("UTF-32", "iconv -f UTF-32 -t UTF-8 {name} > new.txt"),
    b"\xff\xfe": ("UTF-16", "iconv -f UTF-16 -t UTF-8 {name} > new.txt"),
    b"\xfe\xff": ("UTF-16", "iconv -f UTF-16 -t UTF-8 {name} > new.txt"),
    b"PAR1": ("a Parquet file", "Parquet as the source"),
}


def not_utf8(file: str, place: str, head: bytes | None = None) -> UserError:
    """Text that is not UTF-8.

    Args:
      file: name of the file.
      place: place in it, in words.
      head: first bytes of a file of text; None: the text is in a file of another format.
    """
    name = file.rpartition("/")[2]
    for begin, (kind, suggestion) in _HEADS.items() if head else ():
        if head and head.startswith(begin):
            return UserError(file, f"not UTF-8 at {place}: it is {kind}", "UTF-8 text", suggestion.format(name=name))
    how = "write the data again as UTF-8"
    if head is not None:
        how = f"iconv -f ENCODING -t UTF-8 {name} > new.txt, where ENCODING is what it was written in, as WINDOWS-1252"
    return UserError(file, f"not UTF-8 at {place}", "UTF-8 text", how)


def half_character(where: str, what: str) -> UserError:
    """Half of a pair of surrogates: no character, and UTF-8 has no bytes for it."""
    return UserError(where, f"{what} holds half of a character", "whole characters", "write the data again as UTF-8")


def is_whole(text: str) -> bool:
    """Whether ``text`` is free of half characters."""
    try:
        return text.isascii() or bool(text.encode("utf-8"))
    except UnicodeEncodeError:
        return False


def no_column(where: str, kind: str, field: str, known: list[str]) -> Unreadable:
    """A column, field or feature (``kind``) that is not among the ``known`` ones."""
    return Unreadable(where, f"no {kind} {field!r}", ", ".join(known), nearest(field, known))


def empty_file(file: str, got: str = "an empty file") -> UserError:
    """A file without anything in it that was named by the user; ``got``: or with no more than names of columns."""
    return UserError(file, got, "one document or more", "remove it, or leave it out of data.corpus.source")


def is_named(file: str, paths: tuple[str, ...]) -> bool:
    """Whether one of ``paths``, as a user wrote them, is this very file."""
    return any(file in (path, local_path(path)) for path in paths)


def local_path(path: str) -> str:
    """``path`` with its ``~`` replaced, if that user exists, and without superfluous slashes."""
    return str(Path(os.path.expanduser(path)))
