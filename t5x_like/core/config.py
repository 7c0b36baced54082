"""A run's configuration: a frozen dataclass tree, written as JSON and read again, overridden, compared.

What its fields may hold is checked by ``core.structure``; assignments are applied by ``core.override``. The public
names of both are here too. ``core.loading`` loads files.
"""

from __future__ import annotations

import json
from typing import Any, TypeVar

from t5x_like.core.errors import UserError
from t5x_like.core.override import override as override
from t5x_like.core.plain import drop_unknown as drop_unknown
from t5x_like.core.plain import flatten, to_plain
from t5x_like.core.structure import Config as Config
from t5x_like.core.structure import Unknown as Unknown
from t5x_like.core.structure import choices as choices
from t5x_like.core.structure import structure

T = TypeVar("T")


def to_json(value: Any) -> str:
    return json.dumps(to_plain(value), indent=2) + "\n"


def from_json(kind: type[T], text: str, where: str = "") -> T:
    """The dataclass tree that ``to_json`` wrote.

    Raises:
      UserError: the text is not JSON, a field is unknown, missing or of the wrong type.
    """
    return structure(kind, read_json(text, where), where)


def read_json(text: str | bytes, where: str = "") -> Any:
    """Plain values of JSON text. Raises UserError for any other text, and for two values of one name in one object."""
    try:
        return json.loads(text, object_pairs_hook=_each_once)
    except RecursionError:
        reason = "brackets too deep inside each other"
    except ValueError as error:
        reason = str(error)
    raise UserError(where or "config", f"is not JSON: {reason}", "the config.json of a run")


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if twice := next((name for place, name in enumerate(names) if name in names[:place]), None):
        values = " and ".join(repr(value) for name, value in pairs if name == twice)
        raise ValueError(f"{twice!r} is given twice, as {values}")
    return dict(pairs)


def diff(one: Any, other: Any) -> dict[str, tuple[Any, Any]]:
    """The leaves that differ: dotted name to (value in one, value in other); an absent leaf shows as ``None``."""
    left, right = flatten(one), flatten(other)
    names = list(left) + [name for name in right if name not in left]
    return {name: (left.get(name), right.get(name)) for name in names if left.get(name) != right.get(name)}
