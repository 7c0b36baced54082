"""Documents from a function of a Python file: run only where the user chose that file.

Must not run a file because a ``config.json`` names it: opening a folder of results runs no code.
"""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from t5x_like.core.errors import UserError, require
from t5x_like.core.loading import load_module, was_chosen
from t5x_like.input_pipeline.sources.files import Unit
from t5x_like.input_pipeline.sources.messages import half_character, is_whole, local_path
from t5x_like.input_pipeline.sources.source import Source


@dataclass(frozen=True)
class PythonGenerator(Source):
    """Documents that a function of a corpus file yields: ``PythonGenerator(__file__)`` beside ``def documents()``.

    The function is called with no arguments and yields strings, the same ones in the same order each time. The file
    is run only if the user chose it, by a run file that names it: never because a ``config.json`` does.

    Attributes:
      file: the Python file.
      function: its function's name.
      version: text to change when the documents change; the file's own content counts too, but not what it reads.
    """

    file: str
    function: str = "documents"
    version: str = ""

    places: ClassVar[tuple[str, ...]] = ("file",)

    def read(self, unit: Unit) -> Iterator[str | UserError]:
        """What the function yields.

        Raises:
          UserError: the file was not chosen by the user, has no such function, or the function fails: that is a mistake
            in the file and no bad document, which may be passed over.
        """
        file = self._file()
        if not was_chosen(file):
            got = f"its function {self.function}() is not run: no run file of this command names the file"
            allowed = "a corpus file that a run file names, as recipe('my_corpus.py')"
            raise UserError(str(file), got, allowed, "prepare the corpus through the run file: t5x-like prepare RUN.py")
        count = 0
        try:
            function = getattr(load_module(file), self.function, None)
            if not callable(function):
                raise UserError(str(file), f"has no function {self.function}()", f"def {self.function}(): yield ...")
            for count, text in enumerate(function(), 1):  # type: ignore[arg-type, var-annotated]  # it may return anything; told below
                where = f"{file}, document {count} of {self.function}()"
                if not isinstance(text, str):
                    yield UserError(where, f"a {type(text).__name__}", "a string")
                else:
                    yield text if is_whole(text) else half_character(where, "it")
        except UserError:
            raise
        except Exception as error:  # whatever a function of the user's raises
            lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
            place = f"line {lines[-1]}, " if lines else ""
            got = f"{self.function}() failed after {count} documents: {place}{type(error).__name__}: {error}"
            raise UserError(str(file), got, "a function that takes no arguments and yields strings") from error

    def digest(self) -> str:
        """Changes with the file's content, the function's name and the version; nothing is run."""
        digest = hashlib.sha256(self._file().read_bytes())
        digest.update(f"\n{self.function}\n{self.version}".encode())
        return digest.hexdigest()

    def describe(self) -> str:
        return f"{self.function}() of {self.file}"

    def _file(self) -> Path:
        file = Path(local_path(self.file))
        require(file.is_file(), "data.corpus.source.file", f"no file {self.file!r}", "a Python file", "give __file__")
        return file.resolve()
