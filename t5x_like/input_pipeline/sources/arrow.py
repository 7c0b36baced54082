"""Columns of Arrow: Parquet files (extra ``parquet``), and the texts of any column of strings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.sources import messages
from t5x_like.input_pipeline.sources.files import Unit, cut, is_large, open_plain
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
        try:
            with _opened(whole.file) as parquet:
                check_column(parquet.schema_arrow, self.field, whole.file)
                groups = list(map(parquet.metadata.row_group, range(parquet.num_row_groups)))
        except messages.Unreadable:  # ``read`` says what is wrong, once
            return [whole]
        if not groups:
            return [whole]
        paths = [groups[0].column(index).path_in_schema for index in range(groups[0].num_columns)]
        size = sum(group.column(paths.index(self.field)).total_uncompressed_size for group in groups)
        return cut(whole.file, len(groups), size)

    def read(self, unit: Unit) -> Iterator[str | UserError]:
        """The texts of a column in a range of row groups; no other column is read.

        Damage is known by the checksums of pages, which few writers store (pyarrow: ``write_page_checksum=True``).
        Without them it is found only where the compression or the encoding breaks; a changed letter of plain text is
        not.
        """
        with _opened(unit.file) as parquet:
            check_column(parquet.schema_arrow, self.field, unit.file)
            groups = list(range(unit.start, parquet.num_row_groups if unit.stop < 0 else unit.stop))
            row = sum(parquet.metadata.row_group(group).num_rows for group in range(unit.start))
            batches = parquet.iter_batches(BATCH_ROWS, groups, columns=[self.field], use_threads=False)
            try:
                for batch in batches:
                    # Not the only column where a field of a struct, or a name with a full stop, begins likewise.
                    column = batch.column(batch.schema.get_field_index(self.field))
                    yield from column_texts(column, unit.file, row)
                    row += len(batch)
            except (OSError, ValueError) as error:
                raise _broken(unit.file, error, f"after row {row}") from None


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


def check_column(schema: Any, field: str, file: str) -> None:
    """Raises ``Unreadable`` if the column ``field`` of an Arrow schema cannot be read as texts."""
    if field not in schema.names:
        raise messages.no_column(file, "column", field, schema.names)
    if (count := schema.names.count(field)) > 1:
        raise messages.Unreadable(file, f"{count} columns are named {field!r}", "one column of that name")
    if not holds_text(kind := schema.field(field).type):
        raise messages.Unreadable(file, f"column {field!r} holds {kind}", "a column of strings")


@contextmanager
def _opened(address: str) -> Iterator[Any]:
    """The open file as pyarrow has it. Raises ``Unreadable`` if it is none."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise messages.missing_package(address, error, "parquet") from None
    with open_plain(address) as stream:
        try:
            opened = parquet.ParquetFile(stream, page_checksum_verification=True)
        except (ArrowException, OSError, ValueError) as error:
            raise _broken(address, error, "at its end, where the table of contents is") from None
        yield opened


def _broken(file: str, error: Exception, place: str) -> messages.Unreadable:
    """``error`` as one about the content, or raised as one about the disk or network if it has the system's number."""
    if getattr(error, "errno", None) is not None:
        raise messages.cannot_be_read(file, error)
    return messages.broken_file(file, f"broken Parquet data: {str(error).strip()}", place)
