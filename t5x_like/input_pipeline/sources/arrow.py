"""Columns of Arrow: Parquet files (extra ``parquet``), and the texts of any column of strings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.sources import messages
from t5x_like.input_pipeline.sources.files import Unit, is_large, open_plain
from t5x_like.input_pipeline.sources.source import FileSource

# Rows at a time: documents can be long, and a batch of them is in memory twice.
BATCH_ROWS = 256


@dataclass(frozen=True)
class Parquet(FileSource):
    """Parquet files (extra ``parquet``); one row is one document.

    Attributes:
      paths: files, folders (every ``*.parquet`` below them) or glob patterns.
      field: the column that holds the text.
    """

    field: str = "text"

    patterns: ClassVar[tuple[str, ...]] = ("*.parquet",)
    emptiness: ClassVar[str] = "no rows"

    def units(self) -> list[Unit]:
        """Files, large ones cut between row groups so that a unit has about 16 MB of the column."""
        units: list[Unit] = []
        for whole in super().units():
            units += self._row_groups(whole) if is_large(whole.size) else [whole]
        return units

    def _row_groups(self, whole: Unit) -> list[Unit]:
        with _opened(whole.file) as parquet:
            if isinstance(parquet, UserError) or column_error(parquet.schema_arrow, self.field, whole.file):
                return [whole]  # ``read`` says what is wrong, once
            metadata = parquet.metadata
            paths = [metadata.schema.column(index).path for index in range(metadata.num_columns)]
            column = next(index for index, path in enumerate(paths) if path == self.field)
            units, start, size = [], 0, 0
            for group in range(metadata.num_row_groups):
                size += metadata.row_group(group).column(column).total_uncompressed_size
                if is_large(size) or group == metadata.num_row_groups - 1:
                    units.append(Unit(whole.file, start, group + 1, size))
                    start, size = group + 1, 0
            return units or [whole]

    def read(self, unit: Unit) -> Iterator[str | UserError]:
        """The texts of a column in a range of row groups; no other column is read.

        Damage is known by the checksums of pages, which few writers store (pyarrow: ``write_page_checksum=True``).
        Without them it is found only where the compression or the encoding breaks; a changed letter of plain text is
        not.
        """
        with _opened(unit.file) as parquet:
            if isinstance(parquet, UserError):
                yield parquet
                return
            if error := column_error(parquet.schema_arrow, self.field, unit.file):
                yield error
                return
            groups = list(range(unit.start, parquet.num_row_groups if unit.stop < 0 else unit.stop))
            row = sum(parquet.metadata.row_group(group).num_rows for group in range(unit.start))
            batches = parquet.iter_batches(BATCH_ROWS, groups, columns=[self.field], use_threads=False)
            try:
                for batch in batches:
                    yield from column_texts(batch.column(0), unit.file, row)
                    row += len(batch)
            except (OSError, ValueError) as error:
                yield _broken(unit.file, error, f"after row {row}")


def column_texts(column: Any, file: str, first_row: int) -> Iterator[str | UserError]:
    """The texts of an Arrow array of strings or bytes; null is an empty one. Rows are numbered from 1 in messages."""
    try:
        values = column.to_pylist()
    except UnicodeDecodeError:  # a writer put other bytes into a column of strings
        import pyarrow

        values = column.cast(pyarrow.large_binary()).to_pylist()
    for row, value in enumerate(values, first_row + 1):
        try:
            yield value.decode("utf-8") if isinstance(value, bytes) else value or ""
        except UnicodeDecodeError:
            yield messages.not_utf8(file, f"row {row}")


def holds_text(kind: Any) -> bool:
    """Whether an Arrow type is text, or bytes that may be text."""
    import pyarrow

    types = pyarrow.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind) or types.is_null(kind)
    return text or types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def column_error(schema: Any, field: str, file: str) -> UserError | None:
    """Why the column ``field`` of an Arrow schema cannot be read as texts; None if it can."""
    if field not in schema.names:
        return messages.no_column(file, "column", field, schema.names)
    if (count := schema.names.count(field)) > 1:
        return UserError(file, f"{count} columns are named {field!r}", "one column of that name")
    if not holds_text(kind := schema.field(field).type):
        return UserError(file, f"column {field!r} holds {kind}", "a column of strings")
    return None


@contextmanager
def _opened(address: str) -> Iterator[Any]:
    """The open file as pyarrow has it, or a ``UserError`` that says what is wrong with its content."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise messages.missing_package(address, error, "parquet") from None
    with open_plain(address) as stream:
        opened: Any
        try:
            opened = parquet.ParquetFile(stream, page_checksum_verification=True)
        except (ArrowException, OSError, ValueError) as error:
            opened = _broken(address, error, "at its end, where the table of contents is")
        yield opened


def _broken(file: str, error: Exception, place: str) -> UserError:
    """``error`` as one about the content, or raised as one about the disk or network if it has the system's number."""
    if getattr(error, "errno", None) is not None:
        raise messages.cannot_be_read(file, error)
    return messages.broken_file(file, f"broken Parquet data: {str(error).strip()}", place)
