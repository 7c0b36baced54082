"""Comma- or tab-separated values: a line of column names, then rows, whose quoted values may hold line ends."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from t5x_like.core.errors import UserError, require
from t5x_like.input_pipeline.sources.files import BrokenFile, Unit, format_suffix, open_file
from t5x_like.input_pipeline.sources.messages import broken_file, is_whole, no_column, not_utf8
from t5x_like.input_pipeline.sources.source import FileSource


@dataclass(frozen=True)
class Csv(FileSource):
    """Comma-separated values with a line of column names, plain or compressed; one row is one document.

    Attributes:
      paths: files, folders (every ``*.csv`` and ``*.tsv`` below them, compressed or not) or glob patterns.
      field: the column that holds the text.
      delimiter: separator of columns; empty: a tab in files named ``*.tsv``, else a comma.
    """

    field: str = "text"
    delimiter: str = ""

    patterns: ClassVar[tuple[str, ...]] = ("*.csv", "*.csv.gz", "*.csv.zst", "*.tsv", "*.tsv.gz", "*.tsv.zst")
    emptiness: ClassVar[str] = "no rows"

    def __post_init__(self):
        super().__post_init__()
        fits = len(self.delimiter) <= 1
        require(fits, "data.corpus.source.delimiter", repr(self.delimiter), "one character, or empty")

    def read(self, unit: Unit) -> Iterator[str | UserError]:
        """The column ``field`` of every row. A quote that is never closed ends the file: no row after it is sure."""
        csv.field_size_limit(2**31 - 1)  # the standard library's is 128 kB a value, which is for the whole process
        delimiter = self.delimiter or ("\t" if format_suffix(unit.file) == ".tsv" else ",")
        # Bytes that are not UTF-8 become half characters, so that only the row that holds them is lost.
        with io.TextIOWrapper(open_file(unit.file), "utf-8", "surrogateescape", newline="") as lines:
            rows = csv.reader(lines, delimiter=delimiter, strict=True)
            row_begins = 1
            try:
                names = next(rows, [])
                names[:1] = [name.removeprefix("\ufeff") for name in names[:1]]
                if self.field not in names:
                    if names:
                        shown = [name.encode("utf-8", "replace").decode() for name in names]
                        yield no_column(f"{unit.file}, line 1", "column", self.field, shown)
                    return
                column, width = names.index(self.field), len(names)
                row_begins = rows.line_num + 1
                for row in rows:
                    if len(row) == width:
                        text = row[column].replace("\r\n", "\n")
                        yield text if is_whole(text) else not_utf8(unit.file, f"line {row_begins}")
                    elif row:  # an empty line is no row
                        got = f"{len(row)} columns, where line 1 names {width}"
                        how = f'quote such a value: "a value with {delimiter!r} in it"'
                        yield UserError(f"{unit.file}, line {row_begins}", got, "as many", how)
                    row_begins = rows.line_num + 1
            except BrokenFile as error:
                yield broken_file(unit.file, error, f"after line {row_begins - 1}")
            except csv.Error as error:
                got = f"not CSV: {error}; which rows follow is not known, so nothing beyond that is read"
                allowed = 'quotes that are closed, and "" for one inside them'
                yield UserError(f"{unit.file}, line {row_begins}", got, allowed)
