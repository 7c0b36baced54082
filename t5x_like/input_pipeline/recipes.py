"""Finds a corpus file by its path and calls its ``corpus()``: what a run file says as ``recipe("../data/sotu.py")``.

Corpus files are files that users copy and edit, not modules of an installed package, so they are loaded by path and
never through ``sys.path``. Knows nothing of what a corpus file does.
"""

from __future__ import annotations

import sys
from pathlib import Path

from t5x_like.core.errors import UserError, nearest
from t5x_like.core.loading import made_by, shipped
from t5x_like.input_pipeline.config import Corpus, Mixture


def recipe(path: str, **arguments: object) -> Corpus | Mixture:
    """The ``Corpus``, or the ``Mixture`` of several, that the file at ``path`` describes.

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


def load_recipe(file: Path, **arguments: object) -> Corpus | Mixture:
    """What ``file`` describes; ``recipe`` without the search. Raises ``UserError`` as it does."""
    return made_by(file, "corpus", Corpus, Mixture, **arguments)


def _find(path: str, folder: Path) -> Path:
    wanted = folder / Path(path).expanduser()
    for file in (wanted, shipped("data") / wanted.name):
        if file.is_file():
            return file
    known = sorted(file.stem for file in shipped("data").glob("*.py"))
    got = f"no file {path!r} in {folder}, nor one of that name carried with the library"
    raise UserError("data.corpus", got, ", ".join(known) or "a path to a corpus file", nearest(wanted.stem, known))
