"""What each field of a config means and allows: read from its class's docstring and type hints."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any

from t5x_like.core.spelling import spell, spelled_name
from t5x_like.core.structure import TYPE_KEY, class_of, defaults, describe_type, element, init_fields, type_hints


@dataclasses.dataclass(frozen=True)
class Field:
    """What is known of one field.

    Attributes:
      name: its name.
      allowed: allowed values, in words.
      default: its default as on the command line; empty: it has none.
      meaning: what its class's docstring says of it.
    """

    name: str
    allowed: str
    default: str
    meaning: str


def fields_of(kind: type) -> dict[str, Field]:
    """Every field of a config dataclass, by name."""
    hints, said = type_hints(kind), meanings(kind)
    given = {name: _default(value) for name, value in defaults(kind).items()}
    names = init_fields(kind)
    return {
        name: Field(spelled_name(name), describe_type(hints[name]), given.get(name, ""), said.get(name, ""))
        for name in names
    }


def meanings(kind: type) -> dict[str, str]:
    """Field name to what the docstring of the class, or of one that it derives from, says under ``Attributes`` or
    ``Args``, or in its text: ``field: ...``."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        text = inspect.cleandoc(vars(each).get("__doc__") or "")
        section = re.split(r"^(?:Attributes|Args):$", text, flags=re.M)[-1]
        entries = re.findall(r"^  ((?:\w+, )*\w+): (.*(?:\n {3,}.*)*)", section, flags=re.M)
        if not entries and (names := "|".join(getattr(each, "__annotations__", ()))):
            pieces = re.split(rf"(?:^|\s)({names}): ", text)
            entries = list(zip(pieces[1::2], pieces[2::2], strict=True))
        for fields, meaning in entries:
            found |= dict.fromkeys(fields.split(", "), " ".join(meaning.split()))
    return found


def explained(kind: type, plain: Any, prefix: str = "") -> dict[str, Field]:
    """The fields of a config's plain values, by dotted names as ``core.config.flatten`` gives them."""
    found: dict[str, Field] = {}
    if isinstance(plain, list):
        for place, each in enumerate(plain):
            found |= explained(element(kind), each, f"{prefix}.{place}")
    if isinstance(plain, dict) and TYPE_KEY in plain and (own := class_of(kind, plain)):
        hints = type_hints(own)
        for name, field in fields_of(own).items():
            dotted = f"{prefix}.{spelled_name(name)}" if prefix else name
            found |= {dotted: field, **explained(hints[name], plain.get(name), dotted)}
    return found


def _default(value: Any) -> str:
    if dataclasses.is_dataclass(value):
        return repr(value) if value != _plain_default(type(value)) else f"{type(value).__name__}()"
    if isinstance(value, tuple) and any(map(dataclasses.is_dataclass, value)):
        return f"({', '.join(map(_default, value))}{',' * (len(value) == 1)})"
    return spell(value)


def _plain_default(kind: type) -> Any:
    return kind() if len(defaults(kind)) >= len(init_fields(kind)) else None
