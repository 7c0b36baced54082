"""Data sets that Hugging Face ``datasets`` saved to disk; the package is the user's to install.

Knows that package's way of opening a folder; what a column holds is read as of any Arrow column.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from t5x_like.core.errors import UserError, nearest
from t5x_like.input_pipeline.sources.arrow import BATCH_ROWS, check_column, column_texts
from t5x_like.input_pipeline.sources.files import File, Unit, cut, folder_files, list_files, open_plain
from t5x_like.input_pipeline.sources.messages import Unreadable, broken_file, cannot_be_read, missing_package
from t5x_like.input_pipeline.sources.source import FolderSource

_WHERE = "data.corpus.source"


@dataclass(frozen=True)
class HuggingFaceDataset(FolderSource):
    """A data set that Hugging Face ``datasets`` saved to disk with ``save_to_disk`` (the package must be installed).

    Attributes:
      directory: the folder that ``save_to_disk`` wrote.
      split: name of the split; empty: the only one.
      field: the column that holds the text.
    """

    def files(self) -> list[File]:
        """The files that ``save_to_disk`` wrote; what programs cached beside them later, ``cache-*.arrow``, is not.

        Raises:
          UserError: no such folder, or one of another kind.
        """
        if not {"state.json", "dataset_dict.json"} & {file.name for file in folder_files(self.folder)}:
            got = f"{self.folder} has no state.json or dataset_dict.json"
            allowed = "the folder that save_to_disk of Hugging Face datasets wrote"
            raise UserError(f"{_WHERE}.directory", got, allowed, 'datasets.load_dataset("...").save_to_disk("folder")')
        return [file for file in list_files((self.folder,), ("*",)) if not file.name.startswith("cache-")]

    def units(self) -> list[Unit]:
        """Ranges of rows.

        Raises:
          UserError: the package is missing, the split or column is not there, or the column holds no text.
        """
        files = self.files()
        try:
            rows = self._open()
        except Unreadable:
            return [Unit(self.folder)]  # ``read`` says what is wrong
        if rows is None:
            return [Unit(self.folder, 0, 0)]
        check_column(rows.data.schema, self.field, f"{_WHERE}.field")
        within = f"/{self.split}/" if self.split else "/"
        return cut(self.folder, len(rows), sum(file.size for file in files if within in file.address))

    def read(self, unit: Unit) -> Iterator[str | UserError]:
        """The texts of a range of rows."""
        rows = self._open()
        if rows is None:
            return
        rows = rows.select_columns([self.field]).with_format("arrow")
        for start in range(unit.start, unit.stop, BATCH_ROWS):
            batch = rows[start : min(start + BATCH_ROWS, unit.stop)]
            yield from column_texts(batch.column(0), unit.file, start)

    def _open(self) -> Any:
        """The rows; None if there are 0 of them, which the package itself cannot open."""
        try:
            import datasets
        except ImportError as error:
            raise missing_package("a data set of Hugging Face", error, "datasets") from None
        folder = self._split_folder()
        try:
            if not self._described(f"{folder}/state.json")["_data_files"]:
                return None
            return datasets.load_from_disk(folder)
        except (OSError, ValueError, KeyError) as error:  # of pyarrow, without the system's number for an error
            if getattr(error, "errno", None) is not None:
                raise cannot_be_read(folder, error) from None
            raise broken_file(folder, f"broken Arrow data: {str(error).strip()}", "from row 1 on") from None

    def _split_folder(self) -> str:
        """The folder of the split; one that is not asked for may be empty, or damaged."""
        if "dataset_dict.json" not in {file.name for file in folder_files(self.folder)}:
            if self.split:
                raise UserError(f"{_WHERE}.split", f"{self.split!r}, of a data set without splits", "an empty text")
            return self.folder
        splits = list(map(str, self._described(f"{self.folder}/dataset_dict.json")["splits"]))
        name = self.split or (splits[0] if len(splits) == 1 else "")
        if name not in splits:
            got = f"no split {name!r}" if name else "no split is named, and there are several"
            raise UserError(f"{_WHERE}.split", got, ", ".join(splits), nearest(name, splits))
        return f"{self.folder}/{name}"

    def _described(self, file: str) -> dict[str, Any]:
        with open_plain(file) as stream:
            try:
                return json.load(stream)
            except ValueError as error:
                raise broken_file(file, f"broken JSON: {error}", "from its beginning") from None
