"""Paths in a config, made absolute when a run starts, so that it can go on from any directory.

A config class names such fields in ``places``; until the run starts they stay as they were written.
"""

from __future__ import annotations

import dataclasses
import glob
import os
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


_LOCAL = ("file://", "local://")  # addresses of local files, which may be relative too


def absolute(path: str) -> str:
    """A path from the root on, as it is meant here and now: of addresses only a local end is changed."""
    first, chained, rest = path.rpartition("::") if "://" in path else ("", "", path)
    protocol = next((each for each in _LOCAL if rest.startswith(each)), "")
    rest = rest.removeprefix(protocol)
    return path if "://" in rest else first + chained + protocol + _absolute_local(rest)


def _absolute_local(path: str) -> str:
    given = Path(os.path.expanduser(path))
    found = given.absolute()
    if glob.has_magic(str(given)) and not given.is_absolute() and not os.path.lexists(found):
        return str(Path(glob.escape(os.getcwd()), given))  # brackets in the current folder's name are letters
    return str(found)


def with_absolute_paths(value: T) -> T:
    """A dataclass tree with every path in the ``places`` of its parts absolute; an empty one stays."""
    if isinstance(value, tuple):
        return tuple(map(with_absolute_paths, value))  # type: ignore[return-value]: T is a tuple here
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    before = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
    after = {name: with_absolute_paths(each) for name, each in before.items()}
    after |= {name: _absolute(after[name]) for name in getattr(value, "places", ()) if name in after}
    return value if after == before else dataclasses.replace(value, **after)


def _absolute(paths: Any) -> Any:
    if isinstance(paths, tuple):
        return tuple(map(_absolute, paths))
    return absolute(paths) if paths else paths
