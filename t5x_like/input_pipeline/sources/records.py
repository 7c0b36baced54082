"""Files of records: ArrayRecord and TFRecord, whose records are text, JSON objects or ``tf.train.Example`` messages.

Knows how records lie in a file and what they hold. A record that holds no text is a ``UserError`` in its place; a file
that is broken is one more, and the end of that file.
"""

from __future__ import annotations

import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, BinaryIO, ClassVar, Literal

from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.sources.files import BrokenFile, Unit, cut, is_large, open_plain, unpack_gzip
from t5x_like.input_pipeline.sources.json_lines import json_error, json_text
from t5x_like.input_pipeline.sources.messages import broken_file, missing_package, no_column, not_utf8
from t5x_like.input_pipeline.sources.remote import is_remote
from t5x_like.input_pipeline.sources.source import FileSource
from t5x_like.input_pipeline.sources.tf_example import feature_bytes, feature_names

RecordContent = Literal["text", "json", "example"]

# Records read at once from ArrayRecord, where a batch costs a fifth of as many single reads.
BATCH_RECORDS = 256
# A thread reads 1 MB ahead: measured to take half the CPU time of the default, which is 16 threads and 16 MB each.
_ARRAY_RECORD_OPTIONS = "readahead_buffer_size:1M,max_parallelism:1"


@dataclass(frozen=True)
class ArrayRecord(FileSource):
    """ArrayRecord files; one record is one document.

    Attributes:
      paths: files, folders (every ``*.array_record*`` and ``*.arrayrecord`` below them) or glob patterns.
      content: kind of a record: UTF-8 text, a JSON object, or a serialized ``tf.train.Example``.
      field: the key of the object or feature of the example that holds the text.
    """

    content: RecordContent = "text"
    field: str = "text"

    patterns: ClassVar[tuple[str, ...]] = ("*.array_record*", "*.arrayrecord")

    def units(self) -> list[Unit]:
        """Files, large local ones cut into ranges of records. A remote one is whole: it has to be copied to be read."""
        units: list[Unit] = []
        for file in self.files():
            count = 0
            if is_large(file.size) and not is_remote(file.address):
                with _array_record(file.address) as reader:
                    count = reader.num_records() if reader.ok() else 0
            units += cut(file.address, count, file.size) if count else [Unit(file.address, size=file.size)]
        return units

    def read(self, unit: Unit) -> Iterator[str | UserError]:
        return read_array_record(unit, self.content, self.field)


@dataclass(frozen=True)
class TfRecord(FileSource):
    """TFRecord files, plain or gzip-compressed; one record is one document. Read without TensorFlow.

    Attributes:
      paths: files, folders (every ``*.tfrecord*`` below them) or glob patterns.
      content: kind of a record: UTF-8 text, a JSON object, or a serialized ``tf.train.Example``.
      field: the key of the object or feature of the example that holds the text.
    """

    content: RecordContent = "example"
    field: str = "text"

    patterns: ClassVar[tuple[str, ...]] = ("*.tfrecord*",)

    def read(self, unit: Unit) -> Iterator[str | UserError]:
        return read_tf_record(unit, self.content, self.field)


def read_array_record(unit: Unit, content: RecordContent, field: str) -> Iterator[str | UserError]:
    """The texts of a range of records."""
    with _array_record(unit.file) as reader:
        if not reader.ok():  # of a file that was cut the reader says that it has 0 records, and no more
            got = "broken ArrayRecord data: its end, where the index is, is missing or damaged"
            raise broken_file(unit.file, got, "from record 1 on")
        count = reader.num_records()
        stop = count if unit.stop < 0 else min(unit.stop, count)
        for start in range(unit.start, stop, BATCH_RECORDS):
            try:
                records = reader.read(start, min(start + BATCH_RECORDS, stop))
            except (RuntimeError, IndexError) as error:
                got = f"broken ArrayRecord data: {str(error).partition(';')[0]}"
                raise broken_file(unit.file, got, f"from record {start + 1} on") from None
            for number, record in enumerate(records, start + 1):
                yield record_text(record, content, field, unit.file, number)
        if unit.stop > count:
            yield _too_few(unit, count)


def read_tf_record(unit: Unit, content: RecordContent, field: str) -> Iterator[str | UserError]:
    """The texts of a range of records."""
    number = 0
    try:
        with _open_tf_record(unit.file) as stream:
            for number, (record, sum_stored) in enumerate(_framed(stream), 1):
                if number <= unit.start:
                    continue
                if masked_crc32c(record) != sum_stored:
                    where = f"{unit.file}, record {number}"
                    yield UserError(where, "its checksum is wrong", "a sound file", "make or copy it again")
                else:
                    yield record_text(record, content, field, unit.file, number)
                if number == unit.stop:
                    return
    except BrokenFile as error:
        raise broken_file(unit.file, error, f"after record {number}") from None
    if unit.stop >= 0:
        yield _too_few(unit, number)


def _too_few(unit: Unit, count: int) -> UserError:
    got = f"{count} records, where its description says {unit.stop} or more"
    return UserError(unit.file, got, "as many as described", "make or copy the data set again")


def record_text(record: bytes, content: RecordContent, field: str, file: str, number: int) -> str | UserError:
    """The text of one record; ``number`` counts from 1 within its file and is for the message."""
    where = f"{file}, record {number}"
    try:
        if content == "text":
            return record.decode("utf-8")
        if content == "json":
            decoded = record.decode("utf-8")
            text = json_text(decoded, field)
            return text if text is not None else json_error(where, decoded, field)
        values = feature_bytes(record, field.encode())
        if len(values) > 1:
            return UserError(where, f"feature {field!r} holds {len(values)} texts", "one text for each record")
        return values[0].decode("utf-8") if values else ""
    except UnicodeDecodeError:
        return not_utf8(file, f"record {number}")
    except KeyError:
        return no_column(where, "feature", field, feature_names(record))
    except TypeError as error:
        return UserError(where, f"feature {field!r} holds {error}", "bytes that are UTF-8 text")
    except ValueError as error:
        return UserError(where, str(error), "a record as data.corpus.source.content says", "content='text' or 'json'")


@contextmanager
def _array_record(address: str) -> Iterator[Any]:
    """An open reader; of a remote file, on a copy that lives as long."""
    from array_record.python.array_record_module import ArrayRecordReader

    with tempfile.NamedTemporaryFile(suffix=".array_record") if is_remote(address) else open_plain(address) as local:
        if is_remote(address):
            with open_plain(address) as remote:
                shutil.copyfileobj(remote, local, 2**20)
            local.flush()
        reader = ArrayRecordReader(local.name, _ARRAY_RECORD_OPTIONS)
        try:
            yield reader
        finally:
            if reader.ok():
                reader.close()


def _open_tf_record(address: str) -> BinaryIO:
    """The records' bytes; gzip is known by the first bytes, because the names of such files do not tell."""
    stream = open_plain(address)
    header = stream.read(12)
    stream.seek(0)
    if header[:2] == b"\x1f\x8b" and not _is_record_header(header):
        return unpack_gzip(stream)
    return stream


@lru_cache(maxsize=1)
def _crc32c() -> Callable[[bytes], int]:
    try:
        from google_crc32c import value
    except ImportError as error:
        raise missing_package("a TFRecord file", error, "tfrecord") from None
    return value


def masked_crc32c(data: bytes) -> int:
    """As TFRecord files store it: rotated by 15 bits, plus a constant, so that a CRC of CRCs is sound."""
    crc = _crc32c()(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@lru_cache(maxsize=4096)  # short records have few lengths
def _is_record_header(header: bytes) -> bool:
    return len(header) == 12 and masked_crc32c(header[:8]) == struct.unpack_from("<I", header, 8)[0]


def _framed(stream: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Each record with its stored checksum, which is for the caller to compare.

    A record is its length (8 bytes, little-endian), the masked CRC32C of these 8 bytes (4 bytes), the data, and the
    masked CRC32C of the data (4 bytes): tensorflow/core/lib/io/record_writer.h.
    """
    read: Callable[[int], bytes] = stream.read
    unpack = struct.Struct("<I").unpack
    while header := read(12):
        if len(header) < 12:
            raise BrokenFile("broken TFRecord data: the file ends within a record")
        if not _is_record_header(header):
            raise BrokenFile("broken TFRecord data: the checksum of a length is wrong")
        length = int.from_bytes(header[:8], "little")
        body = read(length + 4)
        if len(body) < length + 4:
            raise BrokenFile("broken TFRecord data: the file ends within a record")
        yield body[:length], unpack(body[length:])[0]
