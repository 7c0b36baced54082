"""Finds a corpus file by its path and calls its ``corpus()``: what a run file says as ``recipe("../data/sotu.py")``.

Corpus files are files that users copy and edit, not modules of an installed package, so they are loaded by path and
never through ``sys.path``. Knows nothing of what a corpus file does.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import t5x_like
from t5x_like.core.errors import UserError, nearest
from t5x_like.input_pipeline.config import Corpus


def recipe(path: str, **arguments: object) -> Corpus:
    """The ``Corpus`` that the file at ``path`` describes.

    Args:
      path: relative to the file that calls this function. Where nothing is there, the file of the same name among the
        corpus files carried with the library is taken, so that a run file works after it is copied elsewhere.
      **arguments: passed to the file's ``corpus`` function, such as ``vocab_size=4096``.

    Raises:
      UserError: no such file, no function ``corpus`` in it, an argument it does not take, or a result of another type.
    """
    caller = sys._getframe(1).f_globals.get("__file__")
    folder = Path(caller).resolve().parent if caller else Path.cwd()
    return load_recipe(_find(path, folder), **arguments)


def load_recipe(file: Path, **arguments: object) -> Corpus:
    """The ``Corpus`` that ``file`` describes; ``recipe`` without the search. Raises ``UserError`` as it does."""
    spec = importlib.util.spec_from_file_location(f"t5x_like_recipe_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise UserError(str(file), "not a Python file", "a file whose name ends in .py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, "corpus", None)
    if not callable(function):
        raise UserError(str(file), "has no function corpus()", "def corpus() -> Corpus: ...")
    try:
        corpus = function(**arguments)
    except TypeError as error:
        raise UserError(str(file), f"corpus() failed: {error}", "arguments that corpus() takes") from error
    if not isinstance(corpus, Corpus):
        raise UserError(str(file), f"corpus() returned a {type(corpus).__name__}", "a Corpus")
    return corpus


def shipped_folders() -> list[Path]:
    """Folders that hold the corpus files carried with the library: inside the wheel, or beside it in a checkout."""
    package = Path(t5x_like.__file__).resolve().parent
    return [folder for folder in (package / "_shipped" / "data", package.parent / "data") if folder.is_dir()]


def _find(path: str, folder: Path) -> Path:
    wanted = folder / Path(path).expanduser()
    if wanted.is_file():
        return wanted
    for shipped in shipped_folders():
        if (shipped / wanted.name).is_file():
            return shipped / wanted.name
    known = sorted({file.stem for shipped in shipped_folders() for file in shipped.glob("*.py")})
    raise UserError(
        "data.corpus",
        f"no file {path!r} in {folder}, nor one of that name carried with the library",
        ", ".join(known) or "a path to a corpus file",
        nearest(wanted.stem, known),
    )
