"""Delimited text: rows of values between commas or tabs, which may be quoted and then hold line ends.

Knows dialects; must not know how files are found or unpacked. Nothing about a file is guessed unless ``sniff`` says so.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from t5x_like.core.errors import UserError, require
from t5x_like.input_pipeline.sources.files import (
    BrokenFile,
    Unit,
    format_suffix,
    not_utf8_file,
    open_file,
    packed_too,
)
from t5x_like.input_pipeline.sources.messages import Unreadable, broken_file, is_whole, no_column
from t5x_like.input_pipeline.sources.source import FileSource

_WHERE = "data.corpus.source"
_SNIFFED_CHARACTERS = 2**14


@dataclass(frozen=True)
class Csv(FileSource):
    """Values separated by commas, tabs or another character, plain or compressed; one row is one document.

    Attributes:
      paths: files, folders (every ``*.csv`` and ``*.tsv`` below them, compressed or not) or glob patterns.
      field: the column that holds the text: its name, or without a header its number from 0 on.
      delimiter: separator of columns, a tab also as ``\\t``; empty: a tab in files named ``*.tsv``, else a comma.
      quote: character around values that hold delimiters, line ends or itself; ``none``: quotation marks are letters.
        Empty: ``"``, but in files named ``*.tsv`` only where a name in the header is quoted, else none.
      escape: character that makes a letter of the one behind it, such as a backslash; empty: none.
      doubled_quotes: whether two quote characters inside a quoted value are one that is a letter.
      skip_initial_space: whether spaces behind a delimiter are left out.
      header: whether the first row holds the names of columns.
      sniff: whether to guess delimiter (comma, semicolon, tab or bar), quote and initial spaces from the beginning of
        each file, in place of the fields above; with ``escape`` also doubled quotes, which else are taken for one.
    """

    field: str = "text"
    delimiter: str = ""
    quote: str = ""
    escape: str = ""
    doubled_quotes: bool = True
    skip_initial_space: bool = False
    header: bool = True
    sniff: bool = False

    patterns: ClassVar[tuple[str, ...]] = packed_too("*.csv", "*.tsv")
    emptiness: ClassVar[str] = "no rows"

    def __post_init__(self):
        super().__post_init__()
        if self.delimiter == "\\t":  # as it is written where a tab cannot be
            object.__setattr__(self, "delimiter", "\t")
        for name, words in {"delimiter": (), "quote": ("none",), "escape": ()}.items():
            value = getattr(self, name)
            fits = value in ("", *words) or (len(value) == 1 and value not in "\r\n")
            allowed = "one character that is no line end, or empty" + (", or none" if words else "")
            require(fits, f"{_WHERE}.{name}", repr(value), allowed)
        given = [each for each in (self.delimiter, self.quote, self.escape) if each]
        require(len(set(given)) == len(given), f"{_WHERE}.quote", f"{given}", "another character for each of them")
        usable = self.header or self.field.isdecimal()
        require(usable, f"{_WHERE}.field", repr(self.field), "without a header, the number of a column from 0 on")

    def read(self, unit: Unit) -> Iterator[str | UserError]:
        """The column ``field`` of every row. A quote that is never closed ends the file: no row after it is sure."""
        csv.field_size_limit(2**31 - 1)  # the standard library's is 128 kB a value, which is for the whole process
        row_begins, rows = 1, None
        try:
            # Bytes that are not UTF-8 become half characters, so that only the row that holds them is lost.
            with io.TextIOWrapper(open_file(unit.file), "utf-8-sig", "surrogateescape", newline="") as lines:
                first = lines.read(_SNIFFED_CHARACTERS) if self.sniff else lines.readline()
                if self.sniff:
                    first += lines.readline()
                dialect = self._dialect(unit.file, first)
                rows = _reader(itertools.chain(io.StringIO(first, newline=""), lines), dialect)
                head = next((row for row in rows if row), [])
                if not head:
                    return
                column, width = self._column(head, unit.file), len(head)
                if self.header:
                    row_begins = rows.line_num + 1
                for row in rows if self.header else itertools.chain([head], rows):
                    if len(row) == width:
                        text = row[column].replace("\r\n", "\n")
                        yield text if is_whole(text) else not_utf8_file(unit.file, f"line {row_begins}")
                    elif "".join(row).strip() or len(row) > 1:  # a line of white space is no row
                        yield _wrong_width(f"{unit.file}, line {row_begins}", len(row), width, dialect)
                    row_begins = rows.line_num + 1
        except BrokenFile as error:
            raise broken_file(unit.file, error, f"after line {row_begins - 1}") from None
        except csv.Error as error:
            got = f"not CSV: {error}; which rows follow is not known, so nothing beyond that is read"
            allowed = 'quotes that are closed, and "" for one inside them'
            how = f"{_WHERE}.quote=none where quotation marks are letters, {_WHERE}.escape where they are escaped"
            raise Unreadable(f"{unit.file}, line {row_begins}", got, allowed, how) from None

    def _dialect(self, file: str, first: str) -> dict[str, Any]:
        """What ``csv.reader`` is told, of a file that begins with ``first``: the first line, or more if it sniffs."""
        delimiter, quote, doubled, skip = self.delimiter, self.quote, self.doubled_quotes, self.skip_initial_space
        is_tsv = format_suffix(file) == ".tsv"
        if self.sniff:
            try:
                found = csv.Sniffer().sniff(first, ",;\t|")
            except csv.Error:
                got, allowed = "its dialect cannot be guessed", "the fields of the dialect instead of sniff=True"
                raise Unreadable(file, got, allowed, f"{_WHERE}.delimiter") from None
            delimiter, quote, skip = found.delimiter, found.quotechar or "none", found.skipinitialspace
            doubled = found.doublequote or not self.escape  # none in the beginning does not mean none further on
        delimiter = delimiter or ("\t" if is_tsv else ",")
        if not quote:
            quoted_header = self.header and any(name.startswith('"') for name in first.split(delimiter))
            quote = '"' if quoted_header or not is_tsv else "none"
        return {
            "delimiter": delimiter, "quotechar": None if quote == "none" else quote,
            "quoting": csv.QUOTE_NONE if quote == "none" else csv.QUOTE_MINIMAL, "escapechar": self.escape or None,
            "doublequote": doubled, "skipinitialspace": skip,
        }  # fmt: skip

    def _column(self, head: list[str], file: str) -> int:
        """The place of the column, by the first row."""
        names = head if self.header else list(map(str, range(len(head))))
        if (count := names.count(self.field)) > 1:
            raise Unreadable(f"{file}, line 1", f"{count} columns are named {self.field!r}", "one column of that name")
        if not count and not all(map(is_whole, head)):
            error = not_utf8_file(file, "line 1")
            raise Unreadable(error.where, error.got, error.allowed, error.suggestion)
        if not count:
            raise no_column(f"{file}, line 1", "column", self.field, names)
        return names.index(self.field)


def _reader(lines: Iterator[str], dialect: dict[str, Any]) -> Any:
    """The reader of ``csv``. What a dialect leaves open is known only by the file, so that it may contradict itself."""
    names = ("delimiter", "quotechar", "escapechar")
    given = [dialect[name] for name in names if dialect[name]]
    if len(set(given)) < len(given) or (dialect["skipinitialspace"] and " " in given):  # older csv reads it somehow
        got = ", ".join(f"{name.removesuffix('char')} {dialect[name]!r}" for name in names if dialect[name])
        allowed = "another character for each of them, and no space with skip_initial_space"
        raise UserError(f"{_WHERE}.quote", got, allowed, "doubled_quotes, not escape, where \"\" is one \"")
    return csv.reader(lines, strict=True, **dialect)


def _wrong_width(where: str, got: int, width: int, dialect: dict[str, Any]) -> UserError:
    if dialect["quoting"] == csv.QUOTE_NONE:
        how = f"{_WHERE}.quote='\"' if values with line ends or delimiters are quoted"
    else:
        how = f'quote such a value: "a value with {dialect["delimiter"]!r} in it"'
    return UserError(where, f"{got} columns, where line 1 names {width}", "as many", how)
