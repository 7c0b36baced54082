"""A run's configuration: a frozen dataclass tree, written as JSON and read again, overridden, compared.

What its fields may hold is checked by ``core.structure``, whose public names are here too; ``core.loading`` loads
files.
"""

from __future__ import annotations

import copy
import dataclasses
import fnmatch
import json
from collections.abc import Sequence
from typing import Any, TypeVar

from t5x_like.core.errors import UserError, nearest
from t5x_like.core.loading import code_of
from t5x_like.core.structure import CODE_KEY, TYPE_KEY, Unknown, structure, type_hints
from t5x_like.core.structure import Config as Config
from t5x_like.core.structure import choices as choices

T = TypeVar("T")


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


def to_json(value: Any) -> str:
    return json.dumps(to_plain(value), indent=2) + "\n"


def from_json(kind: type[T], text: str, where: str = "") -> T:
    """The dataclass tree that ``to_json`` wrote.

    Raises:
      UserError: the text is not JSON, a field is unknown, missing or of the wrong type.
    """
    return structure(kind, read_json(text, where), where)


def read_json(text: str, where: str = "") -> Any:
    """Plain values of JSON text. Raises UserError for any other text."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(where or "config", f"is not JSON: {error}", "the config.json of a run") from None


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted field names to leaf values, in the order of declaration; a dataclass's class is its own leaf, so is
    the file of one of the user's own, and several dataclasses in a tuple are counted from 0: ``parts.0.rate``."""

    def walk(plain: Any, prefix: str) -> dict[str, Any]:
        if isinstance(plain, list) and plain and all(isinstance(each, dict) and TYPE_KEY in each for each in plain):
            return {k: v for i, each in enumerate(plain) for k, v in walk(each, f"{prefix}.{i}").items()}
        if not (isinstance(plain, dict) and TYPE_KEY in plain):
            return {prefix: _tuples(plain)}
        found: dict[str, Any] = {prefix: plain[TYPE_KEY]} if prefix else {}
        for name, each in plain.items():
            if name == CODE_KEY:
                files = {each["file"]: each["sha256"]} | each.get("loads", {})
                each = ", ".join(f"{file} {digest}" for file, digest in files.items())
            if name != TYPE_KEY:
                found |= walk(each, f"{prefix}.{name}" if prefix else name)
        return found

    return walk(to_plain(value), prefix)


def _tuples(plain: Any) -> Any:
    return tuple(map(_tuples, plain)) if isinstance(plain, list) else plain


def override(config: T, assignments: Sequence[str]) -> T:
    """The config with ``field.name=value`` assignments applied in order; all its checks run again.

    A star in a name stands for any text: ``model.*.heads=4`` sets the heads of all layers.
    A field that allows several classes takes a class name (``optimizer=Lion``) and then starts from its defaults.
    Fields that must agree may be given in any order: only what the last assignment leaves has to pass the checks.

    Raises:
      UserError: an assignment without ``=``, an unknown name (with the nearest right one), a value that does not fit.
    """
    plain = to_plain(config)
    wrong: UserError | None = None  # with what is assigned so far
    for assignment in [one for given in assignments for one in _spelled_out(config, given)]:
        name, equals, value = assignment.partition("=")
        name = name.lstrip("-").replace("-", "_").strip()
        known = list(flatten(config))
        if not equals:
            raise UserError(assignment, "is not an assignment", "field.name=value", nearest(name, known))
        *parents, last = name.split(".")
        target = plain
        for parent in parents:
            target = _child(target, parent)
        if not isinstance(target, dict) or last not in target or last in (TYPE_KEY, CODE_KEY):
            if wrong is not None:  # the field may lie in a value that was refused
                raise wrong
            same_end = [k for k in known if k.split(".")[-1] == last]
            hint = f"did you mean {same_end[0]!r}?" if same_end else nearest(name, known)
            raise UserError(name, "no such field", "a field shown by 't5x-like inspect config'", hint)
        holder = config
        for parent in parents:
            holder = _child(holder, parent)
        if isinstance(holder, Unknown):
            raise holder.refusal()
        target[last] = value.strip()
        if dataclasses.is_dataclass(holder):  # a class named here gets its defaults, which may be assigned to next
            hint = type_hints(type(holder)).get(last, str)
            target[last] = to_plain(structure(hint, value.strip(), name))
        try:
            config = structure(type(config), plain)
        except UserError as error:
            wrong = error
        else:
            wrong, plain = None, to_plain(config)
    if wrong is not None:
        raise wrong
    return config


def _spelled_out(config: Any, assignment: str) -> list[str]:
    """One assignment for each field whose name matches a pattern with stars; one without stars is unchanged."""
    name, equals, value = assignment.partition("=")
    if "*" not in name or not equals:
        return [assignment]
    known = list(flatten(config))
    if not (found := fnmatch.filter(known, name.lstrip("-"))):
        raise UserError(name, "matches no field", "a field shown by 't5x-like inspect config'", nearest(name, known))
    return [f"{field}={value}" for field in found]


def _child(holder: Any, name: str) -> Any:
    """The field, key or place ``name`` of a dataclass, dict or sequence; None where there is none."""
    if isinstance(holder, dict):
        return holder.get(name)
    if isinstance(holder, list | tuple):
        return holder[int(name)] if name.isdigit() and int(name) < len(holder) else None
    return getattr(holder, name, None)


def diff(one: Any, other: Any) -> dict[str, tuple[Any, Any]]:
    """The leaves that differ: dotted name to (value in one, value in other); an absent leaf shows as ``None``."""
    left, right = flatten(one), flatten(other)
    names = list(left) + [name for name in right if name not in left]
    return {name: (left.get(name), right.get(name)) for name in names if left.get(name) != right.get(name)}
