"""A dataclass tree as plain values, and their leaves by dotted names."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

from t5x_like.core.loading import code_of
from t5x_like.core.spelling import spelled_name
from t5x_like.core.structure import CODE_KEY, TYPE_KEY, Unknown, class_of, element, init_fields, type_hints


def to_plain(value: Any) -> Any:
    """A dataclass tree as dicts, lists and scalars that JSON can hold. Every dataclass carries its class name, and one
    of the user's own its file's name and digest."""
    if isinstance(value, Unknown):
        return copy.deepcopy(value.plain)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        code = code_of(type(value))
        return {TYPE_KEY: type(value).__name__, **({CODE_KEY: code.plain()} if code else {}), **fields}
    if isinstance(value, tuple | list):
        return [to_plain(v) for v in value]
    return value


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted field names to leaf values, in the order of declaration; a dataclass's class is its own leaf, so is
    the file of one of the user's own, and several dataclasses in a tuple are counted from 0: ``parts.0.rate``."""
    return leaves(to_plain(value), prefix)


def leaves(plain: Any, prefix: str = "") -> dict[str, Any]:
    """``flatten`` of plain values."""
    if isinstance(plain, list) and plain and all(isinstance(each, dict) and TYPE_KEY in each for each in plain):
        return {k: v for i, each in enumerate(plain) for k, v in leaves(each, f"{prefix}.{i}").items()}
    if not (isinstance(plain, dict) and TYPE_KEY in plain):
        return {prefix: _tuples(plain)}
    found: dict[str, Any] = {prefix: plain[TYPE_KEY]} if prefix else {}
    for name, each in plain.items():
        if name == CODE_KEY:
            files = {each["file"]: each["sha256"]} | each.get("loads", {})
            each = ", ".join(f"{file} {digest}" for file, digest in files.items())
        if name != TYPE_KEY:
            name = spelled_name(name)
            found |= leaves(each, f"{prefix}.{name}" if prefix else name)
    return found


def _tuples(plain: Any) -> Any:
    return tuple(map(_tuples, plain)) if isinstance(plain, list) else plain


def drop_unknown(kind: Any, plain: Any, prefix: str = "") -> dict[str, Any]:
    """Takes those fields out of the JSON of a dataclass that its class does not have: of another version, say.

    Args:
      kind: the class, or the type hint of the field that holds it.
      plain: its plain values; changed in place.
      prefix: dotted name of the field that holds it.

    Returns:
      Their values by dotted name.
    """
    if isinstance(plain, list):
        each = [drop_unknown(element(kind), inner, f"{prefix}.{i}") for i, inner in enumerate(plain)]
        return {name: value for found in each for name, value in found.items()}
    dropped: dict[str, Any] = {}
    if isinstance(plain, dict) and (found := class_of(kind, plain)):
        hints, known = type_hints(found), init_fields(found)
        for name in [name for name in plain if name not in (TYPE_KEY, CODE_KEY)]:
            field = f"{prefix}.{name}" if prefix else name
            dropped |= drop_unknown(hints[name], plain[name], field) if name in known else {field: plain.pop(name)}
    return dropped
