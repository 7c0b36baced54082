"""What an exception in a user's own file says to its author: file, line and the nearest right name, in one message.

Knows no files by itself: ``core.loading`` says which are the user's.
"""

from __future__ import annotations

import inspect
import pkgutil
import re
import sys
import traceback
import types
from collections.abc import Collection, Iterator
from pathlib import Path

from t5x_like.core.errors import UserError, nearest

MOST_LINES = 5  # of the user's files, shown of one exception


def mistake(error: BaseException, files: Collection[str]) -> UserError | None:
    """The message for an exception that came through a user's file; None if it came through none.

    Args:
      error: the exception.
      files: paths of the user's files.
    """
    if isinstance(error, SyntaxError) and error.filename in files:
        where, line = f"{error.filename}, line {error.lineno}", (error.text or "").strip()
        return UserError(where, f"{error.msg}: {line}" if line else error.msg, "Python as it can be read")
    frames = [(frame, line) for frame, line in traceback.walk_tb(error.__traceback__) if _file(frame) in files]
    if not frames:
        return None
    frame, number = frames[-1]
    made = UserError(f"{_file(frame)}, line {number}", _said(error), *_help(error, frame))
    note_lines(made, error, files)
    return made


def note_lines(noted: BaseException, error: BaseException, files: Collection[str]) -> None:
    """Adds to ``noted`` the lines of the user's files that ``error`` came through, the one nearest to it first."""
    found = [each for each in traceback.extract_tb(error.__traceback__) if each.filename in files]
    for each in found[: -MOST_LINES - 1 : -1]:
        line = f"  at: {each.filename}, line {each.lineno}: {each.line}"
        if line not in getattr(noted, "__notes__", ()):
            noted.add_note(line)


def _file(frame: types.FrameType) -> str:
    return frame.f_code.co_filename


def _said(error: BaseException) -> str:
    """Kind and message, with Python's own guess at what was meant."""
    lines = traceback.TracebackException.from_exception(error, lookup_lines=False).format_exception_only()
    return " ".join("".join(lines).split("\n  at: ")[0].split())


def _help(error: BaseException, frame: types.FrameType) -> tuple[str, str]:
    """(what is allowed, what to try) for names that are not there."""
    text = str(error)
    call = r"(\w+)(?:\.__init__)?\(\) (?:got an unexpected keyword argument|missing .*argument\w*:) '(\w+)'"
    if (found := re.search(call, text)) and (names := _parameters(found[1], frame)):
        return f"{found[1]}({', '.join(names)})", "" if found[2] in names else nearest(found[2], names)
    if isinstance(error, ImportError) and (found := re.search(r"cannot import name '(\w+)' from '([\w.]+)'", text)):
        return f"a name of {found[2]}", nearest(found[1], dir(sys.modules.get(found[2])))
    if isinstance(error, ModuleNotFoundError) and error.name:
        holder, _, last = error.name.rpartition(".")
        if holder in sys.modules:
            package = sys.modules[holder]
            inside = [each.name for each in pkgutil.iter_modules(getattr(package, "__path__", []))]
            return f"a module of {holder}", nearest(last, inside)
        beside = Path(_file(frame)).parent / f"{error.name}.py"
        if beside.is_file():
            return "an installed package", f'{error.name} = code("{error.name}.py"), of t5x_like.config'
        return "an installed package", f"pip install {error.name.split('.')[0]}, if that is its name there"
    if isinstance(error, NameError) and error.name:
        return "", nearest(error.name, [*frame.f_locals, *frame.f_globals])
    return "", "--traceback shows all of it"


def _parameters(name: str, frame: types.FrameType) -> list[str]:
    """The parameters of a function or class that a line of code may mean by its last name."""
    for each in _named(name, frame):
        try:
            parameters = inspect.signature(each).parameters  # type: ignore[arg-type]  # what is no function raises
            return [parameter for parameter in parameters if parameter != "self"]
        except (TypeError, ValueError):
            continue
    return []


def _named(name: str, frame: types.FrameType) -> Iterator[object]:
    seen = {**frame.f_globals, **frame.f_locals}
    for holder in (seen, *(vars(each) for each in seen.values() if isinstance(each, types.ModuleType))):
        if name in holder:
            yield holder[name]
