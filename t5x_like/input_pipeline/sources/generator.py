"""Documents from a function of a Python file: run only where the user chose that file.

Must not run a file because a ``config.json`` names it: who opens a folder of results runs nobody's code.
"""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import Iterator
from pathlib import Path

from t5x_like.core.errors import UserError
from t5x_like.core.loading import load_module
from t5x_like.input_pipeline.recipes import was_chosen
from t5x_like.input_pipeline.source_config import PythonGenerator
from t5x_like.input_pipeline.sources.messages import half_character, is_whole, local_path


def read_generator(source: PythonGenerator) -> Iterator[str | UserError]:
    """What the function yields.

    Raises:
      UserError: the file was not chosen by the user, has no such function, or the function fails: that is a mistake in
        the file and no bad document, which may be passed over.
    """
    file = _file(source)
    if not was_chosen(file):
        raise UserError(
            str(file),
            f"its function {source.function}() is not run: no run file of this command names the file",
            "a corpus file that a run file names, as recipe('my_corpus.py')",
            "prepare the corpus through the run file: t5x-like prepare RUN.py",
        )
    count = 0
    try:
        function = getattr(load_module(file), source.function, None)
        if not callable(function):
            raise UserError(str(file), f"has no function {source.function}()", f"def {source.function}(): yield ...")
        for count, text in enumerate(function(), 1):  # type: ignore[arg-type, var-annotated]  # it may return anything; told below
            where = f"{file}, document {count} of {source.function}()"
            if not isinstance(text, str):
                yield UserError(where, f"a {type(text).__name__}", "a string")
            else:
                yield text if is_whole(text) else half_character(where, "it")
    except UserError:
        raise
    except Exception as error:  # whatever a function of the user's raises
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        place = f"line {lines[-1]}, " if lines else ""
        got = f"{source.function}() failed after {count} documents: {place}{type(error).__name__}: {error}"
        raise UserError(str(file), got, "a function that takes no arguments and yields strings") from error


def generator_digest(source: PythonGenerator) -> str:
    """Changes with the file's content, the function's name and the version; nothing is run."""
    digest = hashlib.sha256(_file(source).read_bytes())
    digest.update(f"\n{source.function}\n{source.version}".encode())
    return digest.hexdigest()


def _file(source: PythonGenerator) -> Path:
    file = Path(local_path(source.file))
    if not file.is_file():
        raise UserError("data.corpus.source.file", f"no file {source.file!r}", "a Python file", "give __file__")
    return file.resolve()
