"""Text files, and the lines of any file: read in blocks, decoded, numbered, from any byte on.

Knows UTF-8 and line ends. What is done to a line is the business of the format.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import BinaryIO

from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.sources.config import PackageText, TextFiles
from t5x_like.input_pipeline.sources.files import (
    BrokenFile,
    File,
    Unit,
    cut,
    is_compressed,
    is_large,
    open_file,
    open_plain,
)
from t5x_like.input_pipeline.sources.messages import broken_file, empty_file, is_named, not_utf8

TEXT_PATTERNS = ("*.txt", "*.txt.gz", "*.txt.zst")
_BLOCK_BYTES = 2**20


def text_units(source: TextFiles | PackageText, files: list[File]) -> list[Unit]:
    """A unit for each file; large ones whose documents are lines are cut."""
    if isinstance(source, TextFiles) and source.documents == "line":
        return line_units(files)
    return [Unit(file.address, size=file.size) for file in files]


def line_units(files: list[File]) -> list[Unit]:
    """Units of files that can be read from any line on: large plain ones are cut into ranges of bytes."""
    units = []
    for file in files:
        if is_compressed(file.address) or not is_large(file.size):
            units.append(Unit(file.address, size=file.size))
        else:
            stretches = cut(file.size, file.size)
            units += [Unit(file.address, start, stop, stop - start) for start, stop in stretches]
    return units


def read_text(source: TextFiles | PackageText, unit: Unit) -> Iterator[str | UserError]:
    """The documents of one text file, or of a range of its lines."""
    if isinstance(source, PackageText) or source.documents == "file":
        yield _whole_file(source, unit)
    elif source.documents == "line":
        yield from (line for _, line in Lines(unit).filled())
    else:
        yield from _read_paragraphs(unit)


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
    """Line ends in the first ``stop`` bytes; only errors need it, of which one file may have many."""
    count = 0
    with open_plain(file) as stream:
        while stop > 0 and (chunk := stream.read(min(_BLOCK_BYTES, stop))):
            count += chunk.count(b"\n")
            stop -= len(chunk)
    return count


def _whole_file(source: TextFiles | PackageText, unit: Unit) -> str | UserError:
    try:
        with open_file(unit.file) as stream:
            text = stream.read().decode("utf-8")
    except UnicodeDecodeError as error:
        return not_utf8(unit.file, f"byte {error.start}")
    except BrokenFile as error:
        return broken_file(unit.file, error, "in its only document")
    if not text.strip() and isinstance(source, TextFiles) and is_named(unit.file, source.paths):
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
    except BrokenFile as error:  # the paragraph may go on in what is lost
        yield broken_file(unit.file, error, f"after {lines.place(lines.count - 1)}")
        return
    if paragraph or bad >= 0:
        yield "\n".join(paragraph) if bad < 0 else not_utf8(unit.file, lines.place(bad))
