"""TFDS data sets that are prepared on disk: splits and shards as TFDS knows them, records read by ourselves.

TFDS gives the files and records of a split; both its ArrayRecord and its TFRecord files hold ``tf.train.Example``
messages, which are read here 3 times as fast as by its own decoder, and without TensorFlow. Nothing but units needs
TFDS to be installed.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.sources.files import File, Unit, cut, folder_files, open_plain
from t5x_like.input_pipeline.sources.messages import missing_package, no_column
from t5x_like.input_pipeline.sources.records import read_array_record, read_tf_record
from t5x_like.input_pipeline.sources.remote import is_remote
from t5x_like.input_pipeline.sources.source import FolderSource

_WHERE = "data.corpus.source"
_PREPARE_AGAIN = "prepare it again with file_format='array_record'"
_AS_TEXT = "prepare the data set again with the text in a tfds.features.Text()"
_DESCRIPTIONS = ("dataset_info.json", "features.json")
# TFDS imports the module of each class that features.json names. In these there is nothing but TFDS.
_TFDS_FEATURES = "tensorflow_datasets.core.features."
# Where it names one: as written today, as protocol buffers allow it to be written, and as older versions wrote it.
_CLASS_KEYS = ("pythonClassName", "python_class_name", "type")


@dataclass(frozen=True)
class TfdsBuilder(FolderSource):
    """A TFDS data set already on disk, in ArrayRecord or TFRecord format (extra ``tfds``); read without TensorFlow.

    Attributes:
      directory: the version folder, the one that holds ``dataset_info.json``.
      split: a TFDS split, such as ``train`` or ``train[:10%]``.
      field: the feature that holds the text.
    """

    split: str = "train"

    def files(self) -> list[File]:
        """The files of the version folder.

        Raises:
          UserError: it is none.
        """
        files = folder_files(self.folder)
        if "dataset_info.json" not in {file.name for file in files}:
            allowed = "the version folder of a TFDS data set, such as ~/tensorflow_datasets/my_dataset/1.0.0"
            raise UserError(f"{_WHERE}.directory", f"{self.folder} has no dataset_info.json", allowed)
        return files

    def units(self) -> list[Unit]:
        """Ranges of records of the split's files.

        Raises:
          UserError: TFDS is missing, no such split or feature, a feature that is no plain text or that is no class of
            TFDS, another file format.
        """
        files = self.files()
        file_format = _file_format(self.folder)
        info = _builder(self.folder, files).info
        _check_feature(self.directory, self.field, info.features)
        try:
            instructions = info.splits[self.split].file_instructions
        except (ValueError, KeyError) as error:
            allowed = f"{', '.join(info.splits)}, or a part such as train[:10%]"
            raise UserError(f"{_WHERE}.split", f"{self.directory}: {error}", allowed) from None
        by_name = {file.name: file for file in files}
        units: list[Unit] = []
        for part in instructions:
            name = str(part.filename).rpartition("/")[2]
            if name not in by_name:
                raise UserError(f"{_WHERE}.directory", f"{self.folder} has no {name}", "every file of the split")
            file = by_name[name]
            size = file.size * part.take // max(1, part.examples_in_shard)
            # A TFRecord file has no index: its second half takes as long to find as to read. A remote ArrayRecord file
            # has to be copied to be read.
            can_be_cut = file_format == "array_record" and not is_remote(file.address)
            whole = Unit(file.address, part.skip, part.skip + part.take, size)
            units += cut(file.address, part.take, size, part.skip) if can_be_cut else [whole]
        return units

    def read(self, unit: Unit) -> Iterator[str | UserError]:
        """The texts of a range of records."""
        read = read_array_record if _file_format(self.folder) == "array_record" else read_tf_record
        return read(unit, "example", self.field)


def _file_format(folder: str) -> str:
    where = f"{folder}/dataset_info.json"
    try:
        with open_plain(where) as file:
            found = json.load(file).get("fileFormat") or "tfrecord"  # data sets from before it was written down
    except (ValueError, AttributeError) as error:
        raise UserError(where, f"is not JSON: {error}", "the file that TFDS wrote") from None
    if found not in ("array_record", "tfrecord"):
        lost = " (TFDS's writer of Parquet loses records without a word)" if found == "parquet" else ""
        got = f"{folder} is in the format {found!r}{lost}"
        raise UserError(f"{_WHERE}.directory", got, "array_record, tfrecord", _PREPARE_AGAIN)
    return found


def _builder(folder: str, files: list[File]) -> Any:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise missing_package("a TFDS folder", error, "tfds") from None
    _check_classes(files)
    try:
        if not is_remote(folder):
            return tfds.builder_from_directory(folder)
        with tempfile.TemporaryDirectory() as copy:  # TFDS does not know fsspec, and needs the descriptions only
            for file in files:
                if file.name in _DESCRIPTIONS:
                    with open_plain(file.address) as remote:
                        (Path(copy) / file.name).write_bytes(remote.read())
            return tfds.builder_from_directory(copy)
    except (NotImplementedError, ValueError, KeyError, FileNotFoundError) as error:
        allowed = "a data set that TFDS prepared, with its features.json"
        raise UserError(f"{_WHERE}.directory", f"{folder}: {error}", allowed, _PREPARE_AGAIN) from None


def _check_classes(files: list[File]) -> None:
    """Raises ``UserError`` if features.json names classes outside TFDS: their code is run to load them."""
    for file in (each for each in files if each.name == "features.json"):
        try:
            with open_plain(file.address) as stream:
                foreign = sorted(_foreign_classes(json.loads(stream.read())))
        except (ValueError, RecursionError) as error:
            raise UserError(file.address, f"is not JSON: {error}", "the file that TFDS wrote") from None
        if foreign:
            got = f"names {', '.join(foreign)}, whose code would be run"
            raise UserError(file.address, got, f"features of TFDS itself, {_TFDS_FEATURES}*", _AS_TEXT)


def _foreign_classes(description: Any) -> Iterator[str]:
    """Names of classes that are not of TFDS, at any depth; also in JSON within strings, as older versions wrote it."""
    if isinstance(description, str) and description.lstrip()[:1] in ("{", "["):
        with contextlib.suppress(ValueError):  # a description in words
            description = json.loads(description)
    if isinstance(description, dict):
        names = (description.get(key) for key in _CLASS_KEYS)
        yield from (name for name in names if isinstance(name, str) and not name.startswith(_TFDS_FEATURES))
        description = list(description.values())
    for each in description if isinstance(description, list) else ():
        yield from _foreign_classes(each)


def _check_feature(directory: str, field: str, features: Any) -> None:
    """Raises ``UserError`` unless the field is one that TFDS stores as it is: the bytes of one text."""
    import numpy as np

    found = features
    for part in field.split("/"):  # a feature within a dictionary: "question/text"
        known: list[str] = sorted(found.keys()) if hasattr(found, "keys") else []
        if part not in known:
            raise no_column(f"{_WHERE}.field in {directory}", "feature", field, known)
        found = found[part]
    plain = type(found).__name__ in ("Text", "Tensor", "Scalar") and found.shape == ()
    if not plain or np.dtype(found.np_dtype).kind not in "OSU":
        got = f"feature {field!r} is {found!r}, which TFDS encodes in its own way"
        raise UserError(f"{_WHERE}.field", got, "a Text feature", _AS_TEXT)
