"""What a field may hold: values fitted to type hints, and the base class of every config dataclass.

One function, ``structure``, turns plain values into typed ones, for JSON, the command line and Python code alike, so
that all give the same checks and the same errors. Must not know what the dataclasses mean: their own ``__post_init__``
does. Nothing named in a value is ever imported or evaluated.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import functools
import inspect
import json
import math
import types
import typing
from collections.abc import Iterator
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Literal

from t5x_like.core.errors import UserError, nearest, refuse, require
from t5x_like.core.loading import code_of, is_shipped, own_object
from t5x_like.core.ranges import Range
from t5x_like.core.spelling import HELP, NOTHING, QUOTING, Text, items, unquoted

TYPE_KEY = "type"  # names the class in the JSON of a dataclass
CODE_KEY = "code"  # names the user's own file that defines it, with its digest

_UNIONS = (typing.Union, types.UnionType)
_SCALARS = {int: "a whole number", float: "a number", bool: "true | false", str: "text", type(None): "none"}


class Unknown:
    """Stands for a value whose class is in a file of somebody's own that has not been run: shows and keeps what its
    JSON says. Whatever else is asked of it raises UserError, naming file and digest."""

    def __init__(self, plain: dict[str, Any], where: str):
        self.plain, self.where = plain, where

    def refusal(self, reason: str = "has not been run") -> UserError:
        code = self.plain[CODE_KEY]
        got = f"{self.plain[TYPE_KEY]} is defined in {code['file']} (sha256 {code['sha256']}), which {reason}"
        return UserError(self.where, got, "the file, given once more by one who has read it", f"--code {code['file']}")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise self.refusal()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unknown) and self.plain == other.plain

    def __repr__(self) -> str:
        return f"{self.plain[TYPE_KEY]}(...)"


def parts(value: Any) -> Iterator[Any]:
    """Every dataclass of a dataclass tree, in order, and every ``Unknown``."""
    if isinstance(value, Unknown) or dataclasses.is_dataclass(value):
        yield value
    fields = () if isinstance(value, Unknown) else getattr(value, "__dataclass_fields__", ())
    for each in value if isinstance(value, tuple) else [getattr(value, name) for name in fields]:
        yield from parts(each)


def unknown_in(value: Any) -> list[Unknown]:
    """Every ``Unknown`` of a dataclass tree."""
    return [part for part in parts(value) if isinstance(part, Unknown)]


class Config:
    """Base of every config dataclass: its fields are checked against its type hints when it is built.

    An int for a float becomes a float, a list for a tuple a tuple; a number out of the range of its hint
    (``core.ranges``) is refused, so is NaN. A ``__post_init__`` of the class finds its fields checked.

    Args:
      where: dotted name of the run's field that holds the class, for errors: ``class Dropout(Config,
        where="model.dropout")``; a subclass inherits it. By default the class's name.
      short: name of a field that a value of its type alone stands for: ``checkpoint.every=500`` for
        ``checkpoint.every.steps=500``.
      made_by: name of the function of a user's file that returns one, for ``field=FILE.py`` on the command line.
    """

    _where: ClassVar[str | None] = None
    _short: ClassVar[str] = ""
    made_by: ClassVar[str] = ""

    def __init_subclass__(cls, where: str | None = None, made_by: str = "", short: str = "", **arguments: Any):
        super().__init_subclass__(**arguments)
        cls.made_by, cls._short = made_by or cls.made_by, short or cls._short
        if where is not None:
            cls._where = where
        if (own := cls.__dict__.get("__post_init__")) is None:
            return

        @functools.wraps(own)
        def checked(self: Any, *init_only: Any) -> None:
            if type(self).__post_init__ is checked:  # else a subclass has checked already, and calls this by super()
                check_fields(self)
            own(self, *init_only)

        cls.__post_init__ = checked

    def __post_init__(self):
        check_fields(self)

    def __reduce_ex__(self, protocol: Any) -> Any:  # worker processes run a file of the user's own by its path
        if (code := code_of(type(self))) is None:
            return super().__reduce_ex__(protocol)
        return own_object, (str(code.path), code.sha256, code.kept, type(self).__name__), vars(self)


def check_fields(config: Config) -> None:
    """Fits every field of a dataclass that is being built to its type hint.

    Raises:
      UserError: a value that does not fit, naming field, value, what is allowed.
    """
    kind, where = type(config), type(config)._where
    name = kind.__name__
    refuse(not _is_declared(kind), name, "is no dataclass", f"@dataclass(frozen=True) above class {name}")
    prefix = f"{name if where is None else where}." if where != "" else ""
    hints = type_hints(kind)
    for field in dataclasses.fields(config):  # type: ignore[arg-type]  # its subclasses are
        if field.init:
            value = getattr(config, field.name)
            fitted = structure(hints[field.name], value, prefix + field.name, text=False)
            object.__setattr__(config, field.name, fitted)


def choices(*kinds: type) -> list[type]:
    """The dataclasses that a field with these classes as its hint may hold: themselves and their loaded
    subclasses."""
    found: dict[type, None] = {}
    for kind in kinds:
        if _is_declared(kind) and not (abc.ABC in kind.__bases__ or inspect.isabstract(kind)):
            found[kind] = None
        if kind.__module__ != "builtins":
            found |= dict.fromkeys(choices(*kind.__subclasses__()))
    return list(found)


def _is_declared(kind: type) -> bool:
    """Whether it is a dataclass by its own declaration, and not by that of its base."""
    return "__dataclass_fields__" in vars(kind)


def describe_type(hint: Any) -> str:
    """What a field allows, in words for an error message."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return ", ".join([describe_type(args[0]), *(str(each) for each in args[1:] if isinstance(each, Range))])
    if origin is Literal:
        return " | ".join(str(a) for a in args)
    if origin in _UNIONS:
        return " | ".join(describe_type(a) for a in args)
    if origin is tuple:
        number = "" if args[-1] is Ellipsis else f"{len(args)} "
        each = " or ".join(dict.fromkeys(describe_type(each) for each in args if each is not Ellipsis))
        return f"{number}values with commas between them, each {each}"
    if hint in _SCALARS:
        return _SCALARS[hint]
    if isinstance(hint, type) and (known := choices(hint)):
        return " | ".join(dict.fromkeys(kind.__name__ for kind in known))
    return getattr(hint, "__name__", str(hint))


def structure(hint: Any, value: Any, where: str = "", text: bool = True) -> Any:
    """A typed value from a plain one: JSON's types, or ``Text`` of a command line; a typed one as it is, if it fits.

    Args:
      hint: wanted type: a class, a union, Literal, tuple[X, ...], int, float, bool, str, None. A class allows the
        dataclass that it is and every dataclass derived from it.
      value: given value.
      where: dotted name of the field, for errors.
      text: whether ``Text`` may stand for another type, and a dict for a dataclass; not for values of Python code.

    Raises:
      UserError: the value does not fit, naming field, value, what is allowed.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _structure_annotated(hint, value, where, text)
    if origin in _UNIONS:
        return _structure_union(hint, args, value, where, text)
    if isinstance(hint, type) and hint not in _SCALARS and origin is None:
        return _structure_union(hint, (hint,), value, where, text)
    if origin is tuple:
        return _structure_tuple(hint, args, value, where, text)
    if origin is Literal:
        for allowed in args:
            read = _scalar(type(allowed), value, text)[1] if text and isinstance(value, Text) else value
            if read == allowed and type(read) is type(allowed):
                return allowed
        raise UserError(where, f"got {value!r}", describe_type(hint), nearest(str(value), map(str, args)))
    ok, converted = _scalar(hint, value, text) if origin is None else (False, None)
    if ok:
        return converted
    raise UserError(where, f"got {value!r}", describe_type(hint))


def _structure_tuple(hint: Any, args: tuple, value: Any, where: str, text: bool) -> tuple:
    if text and isinstance(value, Text):
        return _read_tuple(hint, args, value, where)
    if isinstance(value, list | tuple):
        hints = [args[0]] * len(value) if args[-1] is Ellipsis else args
        if len(hints) == len(value):
            found = tuple(
                structure(h, v, f"{where}.{i}" if classes_in(h) else where, text)
                for i, (h, v) in enumerate(zip(hints, value, strict=True))
            )
            same: bool = isinstance(value, tuple) and all(a is b for a, b in zip(found, value, strict=True))
            return tuple(value) if same else found  # the same object, if it is a tuple
    raise UserError(where, f"got {value!r}", describe_type(hint))


def _read_tuple(hint: Any, args: tuple, value: Text, where: str) -> tuple:
    """The values that a text of the command line, or a JSON array in it, stands for."""
    with contextlib.suppress(UserError, ValueError, RecursionError):
        if value.lstrip().startswith("[") and isinstance(array := json.loads(value), list):
            return _structure_tuple(hint, args, array, where, True)
    try:
        found = items(value)
        if args[-1] is not Ellipsis and len(args) != len(found):
            raise UserError(where, f"got {value!r}", describe_type(hint))
        return _structure_tuple(hint, args, found, where, True)
    except ValueError as error:
        got, suggestion = f"got {value!r}: {error}", f"'' for an empty text; {HELP}"
        raise UserError(where, got, describe_type(hint), suggestion) from None
    except UserError as error:
        suggestion = error.suggestion or (QUOTING if "text" in error.allowed else HELP)
        raise UserError(where, error.got, error.allowed, suggestion) from None


def _structure_annotated(hint: Any, value: Any, where: str, text: bool) -> Any:
    kind, *metadata = typing.get_args(hint)
    allowed = next((each for each in metadata if isinstance(each, Range)), None)
    if allowed is None:
        return structure(kind, value, where, text)
    try:
        number = structure(kind, value, where, text)
    except UserError as error:
        if not (kind is float and allowed.allows_infinity and _is_infinite(value, text)):
            raise UserError(where, error.got, describe_type(hint), error.suggestion) from None
        number = float(value)
    require(number in allowed, where, repr(value), describe_type(hint))
    return number


def _is_infinite(value: Any, text: bool) -> bool:
    if isinstance(value, Text) and text:
        return value.strip().lower() in ("inf", "-inf", "infinity", "-infinity")
    return isinstance(value, float) and math.isinf(value)


def _scalar(hint: Any, value: Any, text: bool) -> tuple[bool, Any]:
    """(fits, value) for the plain types. ``Text`` is read as a person writes it: 1_000, 6e-3, true, none."""
    said = text and isinstance(value, Text)
    if hint is type(None):
        return value is None or (said and value in NOTHING), None
    if hint is str:
        if not isinstance(value, str):
            return False, None
        return True, unquoted(value) if said else str.__str__(value)  # of a StrEnum, say, its text
    if hint is bool:
        words = {"true": True, "false": False, "on": True, "off": False, "yes": True, "no": False}
        found = words.get(value.strip().lower()) if said else value
        return isinstance(found, bool), found
    if isinstance(value, bool) or not (said or isinstance(value, int | float)):
        return False, None
    if isinstance(value, float) and not text:
        return hint is float and math.isfinite(value), value if type(value) is float else float(value)
    try:
        number = float(value) if hint is float or isinstance(value, float) else int(value)
    except (ValueError, OverflowError):
        try:  # a whole number written with an exponent: 1e6
            number = float(value)
        except (ValueError, OverflowError):
            return False, None
        if math.isfinite(number) and Decimal(str(value).strip()) != Decimal(number):  # 7.00000000000000000001 is none
            return False, None
    if isinstance(number, float) and not math.isfinite(number):
        return False, None
    if hint is int:
        return (True, int(number)) if number == int(number) else (False, None)
    return hint is float, number


def classes_in(hint: Any) -> list[type]:
    """The classes, other than plain types, that a hint allows by itself or in a union."""
    if typing.get_origin(hint) in _UNIONS:
        return [kind for each in typing.get_args(hint) for kind in classes_in(each)]
    return [hint] if isinstance(hint, type) and hint not in _SCALARS and typing.get_origin(hint) is None else []


def element(hint: Any) -> Any:
    """The hint of one of several values; any other hint as it is."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else hint


def class_names(hint: Any) -> dict[str, type]:
    """The dataclasses that a hint allows, by name: of two of one name the shipped one, else the one defined last."""
    known: dict[str, type] = {}
    for kind in choices(*classes_in(hint)):
        if not (kind.__name__ in known and is_shipped(known[kind.__name__])):
            known[kind.__name__] = kind
    return known


def class_of(hint: Any, plain: dict) -> type | None:
    """The class of a dataclass's JSON, if the hint allows it; one in a user's own file only if that has been run."""
    classes = classes_in(hint)
    alone = classes[0].__name__ if hint in classes and dataclasses.is_dataclass(hint) else None
    name = plain.get(TYPE_KEY, alone)
    if CODE_KEY not in plain:
        return class_names(hint).get(name) if isinstance(name, str) else None
    codes = ((kind, code_of(kind)) for kind in reversed(choices(*classes)) if kind.__name__ == name)
    return next((kind for kind, code in codes if code is not None and code.plain() == plain[CODE_KEY]), None)


def _structure_union(hint: Any, args: tuple, value: Any, where: str, text: bool) -> Any:
    classes = classes_in(hint)
    if isinstance(value, (Unknown, *classes)) and (dataclasses.is_dataclass(value) or isinstance(value, Unknown)):
        return value
    name = value
    if classes and text and isinstance(value, dict):
        if kind := class_of(hint, value):
            return _structure_dataclass(kind, value, where)
        if CODE_KEY in value:
            code, got = value[CODE_KEY], f"got {value[CODE_KEY]!r}"
            named = isinstance(code, dict) and all(isinstance(code.get(key), str) for key in ("file", "sha256"))
            refuse(not (named and TYPE_KEY in value), f"{where}.{CODE_KEY}", got, "a file, its sha256, a class of it")
            return Unknown(value, where)
        refuse(TYPE_KEY not in value, f"{where}.{TYPE_KEY}", "is missing", describe_type(hint))
        name = value[TYPE_KEY]
    elif classes and text and isinstance(value, str) and (kind := class_names(hint).get(value)):
        return _structure_dataclass(kind, {}, where)
    for a in _tried(args, classes, value):
        try:
            return structure(a, value, where, text)
        except UserError:
            continue
    shorts = {kind: type_hints(kind)[kind._short] for kind in classes if getattr(kind, "_short", "")}
    for kind, inner in shorts.items():
        with contextlib.suppress(UserError):
            return _structure_dataclass(kind, {kind._short: structure(inner, value, where, text)}, where)
    known = class_names(hint)
    allowed = f"{describe_type(shorts[hint])}, or " if hint in shorts else ""
    alone = hint in classes and [*known.values()] == [hint]
    names = ", ".join(field.name for field in dataclasses.fields(hint) if field.init) if alone else ""
    allowed += f"the fields of {hint.__name__}: {names}" if names else describe_type(hint)
    hint_at = (f"{name}()" if name in known else nearest(name, known)) if isinstance(name, str) else ""
    raise UserError(where, f"got {name!r}", allowed, hint_at)


def _tried(args: tuple, classes: list[type], value: Any) -> list[Any]:
    """The other types of a union, in the order in which they are tried: the word none is no text where None is allowed.
    Where other numbers are allowed, 1.0 is no whole number: it would be one step where all of them are meant."""
    kinds = {each: typing.get_args(each)[0] if typing.get_origin(each) is Annotated else each for each in args}
    fraction = isinstance(value, float) or (isinstance(value, Text) and "." in value)
    left_out = int if fraction and float in kinds.values() else None
    tried = [each for each in args if each not in classes and kinds[each] is not left_out]
    return sorted(tried, key=lambda each: kinds[each] is not type(None))


def _structure_dataclass(kind: type, value: dict, where: str) -> Any:
    hints, known, prefix = type_hints(kind), init_fields(kind), f"{where}." if where else ""
    if unknown := [k for k in value if k not in known and k not in (TYPE_KEY, CODE_KEY)]:
        raise UserError(prefix + unknown[0], "no such field", ", ".join(known), nearest(unknown[0], known))
    given = defaults(kind)
    if missing := [name for name in known if name not in value and name not in given]:
        raise UserError(prefix + missing[0], "is missing and has no default", describe_type(hints[missing[0]]))
    fields = {k: structure(hints[k], v, prefix + k) for k, v in value.items() if k in known}
    if not any(map(unknown_in, fields.values())):
        return kind(**fields)
    made = object.__new__(kind)  # its own checks, passed when it was written, would ask what is not known here
    for name, each in {**given, **fields}.items():
        object.__setattr__(made, name, each)
    return made


def init_fields(kind: type) -> list[str]:
    """Names of the fields of a dataclass that are given when it is made."""
    return [field.name for field in dataclasses.fields(kind) if field.init]


def defaults(kind: type) -> dict[str, Any]:
    """The defaults of a dataclass's fields, of those that have one."""
    fields = dataclasses.fields(kind)
    made = {field.name: field.default_factory() for field in fields if field.default_factory is not dataclasses.MISSING}
    return made | {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}


@functools.cache  # thousands of one kind go to worker processes: most of the time it takes to read them
def type_hints(kind: type) -> dict[str, Any]:
    """Field name to type of a dataclass. Raises UserError for a name that is not defined, or one that JSON needs."""
    try:
        hints = typing.get_type_hints(kind, include_extras=True)
    except NameError as error:
        raise UserError(kind.__name__, f"{error}, in its type hints", "names defined at the top of its file") from None
    for name in (TYPE_KEY, CODE_KEY):
        refuse(name in hints, f"{kind.__name__}.{name}", "is a name that the config's JSON uses itself", "another name")
    return hints
