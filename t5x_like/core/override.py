"""Assignments from the command line applied to a config: ``optimizer=Lion optimizer.b1=0.95``.

``core.spelling`` reads the values, ``core.structure`` says what fits; this file finds the fields.
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from t5x_like.core.errors import UserError, nearest, refuse
from t5x_like.core.loading import code_of, made_by
from t5x_like.core.plain import leaves, to_plain
from t5x_like.core.spelling import Text, items, spelled_name, unquoted
from t5x_like.core.structure import (
    CODE_KEY,
    TYPE_KEY,
    Unknown,
    class_names,
    class_of,
    classes_in,
    defaults,
    describe_type,
    element,
    init_fields,
    structure,
    type_hints,
)  # fmt: skip

T = TypeVar("T")


def override(config: T, assignments: Sequence[str]) -> T:
    """The config with ``field.name=value`` assignments; all its checks run again. ``core.spelling.GRAMMAR`` says how
    values are written.

    A star in a name stands for any text: ``model.*.heads=4`` sets the heads of all layers.
    A field that allows several classes takes a class name (``optimizer=Lion``) and then starts from its defaults; one
    of a corpus takes a file too (``data.corpus=FILE.py``). The order does not matter, but of two assignments to one
    field the last one counts: classes are chosen before their fields are set, and only what all assignments together
    leave has to pass the checks.

    Raises:
      UserError: an assignment without ``=``, an unknown name (with the nearest right one), a value that does not fit.
    """
    kind, plain = type(config), to_plain(config)
    given: list[tuple[str, str]] = []
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        name = name.lstrip("-").replace("-", "_").strip()
        if not equals:
            known = list(leaves(plain))
            hint = f"{name}=VALUE" if name in known else nearest(name, known)
            raise UserError(assignment or "''", "is not an assignment", "field.name=value", hint)
        given.append((name, value))
    depth = 0
    while depth <= max(name.count(".") for name in [*leaves(plain), *(name for name, _ in given)]):
        for name, value in given:  # from the root: a class brings fields, which may be classes too
            for field in _spelled_out(plain, name):
                if field.count(".") == depth and (place := _place(kind, plain, field)) and place.chooses:
                    place.put(_draft(place.hint, Text(value), field))
        depth += 1
    for name, value in given:
        for field in _spelled_out(plain, name) or [name]:
            if (place := _place(kind, plain, field)) is None:
                raise _no_such_field(plain, name, value)
            if not place.chooses:
                place.put(Text(value))
    return structure(kind, plain)


def _spelled_out(plain: Any, name: str) -> list[str]:
    """The fields whose names match a pattern with stars; a name without stars is unchanged."""
    return fnmatch.filter(leaves(plain), name) if "*" in name else [name]


def _no_such_field(plain: Any, name: str, value: str) -> UserError:
    known, last = list(leaves(plain)), name.split(".")[-1]
    ends = {field.split(".")[-1] for field in known}
    end = last if last in ends else next(iter(difflib.get_close_matches(last, ends, n=1)), "")
    hint = "" if last in ends or "*" in name else nearest(name, known)
    if end and not hint:  # of the fields that end so, the most alike
        alike = difflib.get_close_matches(name, [each for each in known if each.split(".")[-1] == end], n=1, cutoff=0)
        hint = f"did you mean {alike[0]!r}?"
    got = f"{'matches no field' if '*' in name else 'no such field'}; given {value!r}"
    return UserError(name or "''", got, "a field shown by 't5x-like inspect config'", hint)


@dataclasses.dataclass(frozen=True)
class _Place:
    """A field in plain values: the dict or list that holds it, its key there, its type hint."""

    holder: Any
    key: Any
    hint: Any

    @property
    def chooses(self) -> bool:
        """Whether its value names a class, or several."""
        return bool(classes_in(element(self.hint)))

    def put(self, value: Any) -> None:
        if isinstance(self.holder, list) and self.key == len(self.holder):
            self.holder.append(value)
        else:
            self.holder[self.key] = value


def _place(kind: type, plain: Any, name: str) -> _Place | None:
    """The place of a field, or None where there is none.

    Raises:
      UserError: it is in a class of a user's own file that has not been run.
    """
    place, where = _Place({"": plain}, "", kind), ""
    for part in name.split("."):
        inside = _child(place.holder, place.key)
        if inside is None and part == "0" and place.hint != element(place.hint):
            inside = place.holder[place.key] = []  # the first of several that have no default
        if isinstance(inside, dict):
            if part in (TYPE_KEY, CODE_KEY):
                return None
            if (own := class_of(place.hint, inside)) is None:
                raise Unknown(inside, where).refusal()
            part = next((name for name in init_fields(own) if spelled_name(name) == part), part)
            if part not in init_fields(own):
                return None
            place = _Place(inside, part, type_hints(own)[part])
        elif isinstance(inside, list) and part in map(str, range(len(inside) + 1)):
            place = _Place(inside, int(part), element(place.hint))
        else:
            return None
        where = f"{where}.{part}" if where else part
    return place


def _child(holder: Any, key: Any) -> Any:
    """What a dict or list holds at a key, None where there is nothing."""
    there = key < len(holder) if isinstance(holder, list) else key in holder
    return holder[key] if there else None


def _draft(hint: Any, value: Text, where: str) -> Any:
    """Plain values for text that names a class, a file or several of these: fields without a default are left out, to
    be set later. Other text as it is, if it fits."""
    if typing.get_origin(hint) is tuple:
        try:
            names = items(value.strip().removeprefix("[").removesuffix("]"))
        except ValueError as error:
            raise UserError(where, f"got {value!r}: {error}", describe_type(hint)) from None
        return [_draft(element(hint), Text(unquoted(each)), where) for each in names]
    name, known = value.strip(), class_names(hint)
    if kind := known.get(name):
        code = code_of(kind)
        hints = type_hints(kind)  # refuses names that JSON needs itself
        fields = {name: to_plain(each) for name, each in defaults(kind).items() if name in hints}
        return {TYPE_KEY: name, **({CODE_KEY: code.plain()} if code else {}), **fields}
    function = next((function for kind in known.values() if (function := getattr(kind, "made_by", ""))), "")
    if function and name.endswith(".py"):
        refuse(not Path(name).expanduser().is_file(), where, f"no file {name!r}", f"a Python file with {function}()")
        return to_plain(made_by(Path(name).expanduser(), function, *known.values()))
    made = structure(hint, value, where)
    return to_plain(made) if dataclasses.is_dataclass(made) else value
