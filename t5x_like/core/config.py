"""A run's configuration: a frozen dataclass tree, loaded from a Python file, overridden, written as JSON, compared.

One function, ``structure``, turns plain values into typed ones, for JSON and for the command line alike, so that both
give the same checks and the same errors. Must not know what the dataclasses mean: their own ``__post_init__`` does.
Nothing named in a file or on a command line is ever imported or evaluated; the run file itself is Python that the user
chose to run.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import math
import sys
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from t5x_like.core.errors import UserError, nearest

T = TypeVar("T")
TYPE_KEY = "type"  # names the class in the JSON of a field that allows several

PACKAGE = Path(__file__).resolve().parents[1]


def shipped(folder: str) -> Path:
    """Where the files of ``configs``, ``data`` or ``launch`` lie: inside the installed package, or, in a checkout,
    beside it."""
    inside = PACKAGE / "_shipped" / folder
    return inside if inside.is_dir() else PACKAGE.parent / folder


def load_module(path: Path) -> types.ModuleType:
    """Runs one Python file that the user chose, without making it importable by name."""
    spec = importlib.util.spec_from_file_location(f"t5x_like_file_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(str(path), "is not a Python file", "a file ending in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses defined in the file look their module up
    spec.loader.exec_module(module)
    return module


def find_run_file(name: str) -> Path:
    """The file of a run given by path (``configs/t5_small.py``) or, if shipped, by bare name (``t5_small``)."""
    for candidate in (Path(name), shipped("configs") / f"{name}.py"):
        if candidate.is_file() and candidate.suffix == ".py":
            return candidate.resolve()
    known = sorted(p.stem for p in shipped("configs").glob("*.py") if not p.stem.startswith("_"))
    raise UserError(
        "config",
        f"no run file {name!r}",
        f"a path to a Python file, or one of {', '.join(known)}",
        nearest(name, known),
    )


def load_run(name: str, run_type: type[T]) -> T:
    """Calls ``run()`` of a run file.

    Args:
      name: path of the file, or the bare name of a shipped one.
      run_type: the dataclass that ``run()`` must return.

    Raises:
      UserError: no such file, no function ``run`` in it, or it returned something else.
    """
    path = find_run_file(name)
    function = getattr(load_module(path), "run", None)
    if not callable(function):
        raise UserError(str(path), "has no function run()", f"a function run() that returns a {run_type.__name__}")
    run = function()
    if not isinstance(run, run_type):
        raise UserError(str(path), f"run() returned a {type(run).__name__}", f"a {run_type.__name__}")
    return run


def to_plain(value: Any) -> Any:
    """A dataclass tree as dicts, lists and scalars that JSON can hold. Every dataclass carries its class name."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {TYPE_KEY: type(value).__name__, **fields}
    if isinstance(value, tuple | list):
        return [to_plain(v) for v in value]
    return value


def to_json(value: Any) -> str:
    return json.dumps(to_plain(value), indent=2) + "\n"


def describe_type(hint: Any) -> str:
    """What a field allows, in words for an error message."""
    if typing.get_origin(hint) is Literal:
        return " | ".join(str(a) for a in typing.get_args(hint))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " | ".join(describe_type(a) for a in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return f"values with commas between them, each {describe_type(typing.get_args(hint)[0])}"
    if isinstance(hint, type) and len(allowed := choices(hint)) > 1:
        return " | ".join(each.__name__ for each in allowed)
    names = {int: "a whole number", float: "a number", bool: "true | false", str: "text", type(None): "none"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def choices(hint: type) -> list[type]:
    """The dataclasses that a field of class ``hint`` may hold: that class, if it is one, and all below it."""
    if hint.__module__ == "builtins":
        return []
    below = [each for kind in hint.__subclasses__() for each in choices(kind)]
    return [*([hint] if "__dataclass_fields__" in vars(hint) else []), *below]


def structure(hint: Any, value: Any, where: str = "") -> Any:
    """A typed value from a plain one: JSON's types, or text from a command line.

    Args:
      hint: the type wanted: a dataclass, a union, Literal, tuple[X, ...], int, float, bool, str, None.
      value: what was given.
      where: dotted name of the field, for errors.

    Raises:
      UserError: the value does not fit, naming field, value, what is allowed.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _structure_union(hint, args, value, where)
    if isinstance(hint, type) and (allowed := choices(hint)):
        if allowed == [hint]:
            return _structure_dataclass(hint, value, where)
        return _structure_union(hint, tuple(allowed), value, where)
    if origin is tuple:
        if isinstance(value, str):
            value = [v for v in value.strip("()[] ").split(",") if v.strip()]
        if isinstance(value, list | tuple):
            hints = [args[0]] * len(value) if len(args) == 2 and args[1] is Ellipsis else args
            if len(hints) == len(value):
                return tuple(structure(h, v, where) for h, v in zip(hints, value, strict=True))
    else:
        for allowed in args if origin is Literal else ():
            if value == allowed or (isinstance(value, str) and value == str(allowed)):
                return allowed
        ok, converted = _scalar(hint, value) if origin is None else (False, None)
        if ok:
            return converted
    options = [str(a) for a in args] if origin is Literal else []
    raise UserError(where, f"got {value!r}", describe_type(hint), nearest(str(value), options))


def _scalar(hint: Any, value: Any) -> tuple[bool, Any]:
    """(fits, value) for the plain types. Text is read as a person writes it: 1_000, 6e-3, true, none."""
    if hint is type(None):
        return value is None or value in ("none", "None", "null"), None
    if hint is str:
        return isinstance(value, str), value
    if hint is bool:
        words = {"true": True, "false": False, "on": True, "off": False, "yes": True, "no": False}
        return (True, value) if isinstance(value, bool) else (str(value).lower() in words,
        words.get(str(value).lower()))
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return False, None
    try:
        number = float(value) if hint is float else int(value) if isinstance(value, str) else value
    except ValueError:
        try:  # a whole number written with an exponent: 1e6
            number = float(value)
        except ValueError:
            return False, None
    if hint is int:
        return (True, int(number)) if math.isfinite(number) and number == int(number) else (False, None)
    return hint is float and not math.isnan(number), number


def _structure_dataclass(hint: type, value: Any, where: str) -> Any:
    if isinstance(value, str) and value == hint.__name__:
        value = {}
    if not isinstance(value, dict):
        raise UserError(where, f"got {value!r}", f"the fields of {hint.__name__}")
    if value.get(TYPE_KEY, hint.__name__) != hint.__name__:
        raise UserError(where, f"got {value[TYPE_KEY]!r}", hint.__name__)
    hints = _type_hints(hint)
    known = [f.name for f in dataclasses.fields(hint) if f.init]
    prefix = f"{where}." if where else ""
    if unknown := [k for k in value if k not in known and k != TYPE_KEY]:
        raise UserError(prefix + unknown[0], "no such field", ", ".join(known), nearest(unknown[0], known))
    missing = [
        f.name
        for f in dataclasses.fields(hint)
        if f.init and f.name not in value and f.default is f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UserError(prefix + missing[0], "is missing and has no default", describe_type(hints[missing[0]]))
    return hint(**{k: structure(hints[k], v, prefix + k) for k, v in value.items() if k != TYPE_KEY})


@functools.cache  # thousands of one kind go to worker processes: most of the time it takes to read them
def _type_hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _structure_union(hint: Any, args: tuple, value: Any, where: str) -> Any:
    classes = {a.__name__: a for a in args if isinstance(a, type) and dataclasses.is_dataclass(a)}
    name = value.get(TYPE_KEY) if isinstance(value, dict) else value if isinstance(value, str) else None
    if name in classes:
        return _structure_dataclass(classes[name], value, where)
    for a in sorted(args, key=lambda a: a is not type(None)):  # the word none is no text where None is allowed
        if a not in classes.values():
            try:
                return structure(a, value, where)
            except UserError:
                continue
    shown = name if name is not None else value
    raise UserError(where, f"got {shown!r}", describe_type(hint), nearest(str(shown), classes))


def from_json(kind: type[T], text: str, where: str = "") -> T:
    """The dataclass tree that ``to_json`` wrote.

    Raises:
      UserError: the text is not JSON, a field is unknown, missing or of the wrong type.
    """
    try:
        plain = json.loads(text)
    except ValueError as error:
        raise UserError(where or "config", f"is not JSON: {error}", "the config.json of a run") from None
    return structure(kind, plain, where)


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted field names to leaf values, in the order of declaration; a dataclass's class is its own leaf, and several
    dataclasses in a tuple are counted from 0: ``parts.0.rate``."""
    if isinstance(value, tuple) and value and all(dataclasses.is_dataclass(each) for each in value):
        return {k: v for i, each in enumerate(value) for k, v in flatten(each, f"{prefix}.{i}").items()}
    if not dataclasses.is_dataclass(value):
        return {prefix: value}
    found: dict[str, Any] = {prefix: type(value).__name__} if prefix else {}
    for field in dataclasses.fields(value):
        found |= flatten(getattr(value, field.name), f"{prefix}.{field.name}" if prefix else field.name)
    return found


def override(config: T, assignments: Sequence[str]) -> T:
    """The config with ``field.name=value`` assignments applied in order; all its checks run again.

    A field that allows several classes takes a class name (``optimizer=Lion``) and then starts from its defaults.
    Fields that must agree may be given in any order: only what the last assignment leaves has to pass the checks.

    Raises:
      UserError: an assignment without ``=``, an unknown name (with the nearest right one), a value that does not fit.
    """
    plain = to_plain(config)
    wrong: UserError | None = None  # with what is assigned so far
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        name = name.lstrip("-").replace("-", "_").strip()
        known = list(flatten(config))
        if not equals:
            raise UserError(assignment, "is not an assignment", "field.name=value", nearest(name, known))
        *parents, last = name.split(".")
        target = plain
        for parent in parents:
            target = _child(target, parent)
        if not isinstance(target, dict) or last not in target or last == TYPE_KEY:
            if wrong is not None:  # the field may lie in a value that was refused
                raise wrong
            same_end = [k for k in known if k.split(".")[-1] == last]
            hint = f"did you mean {same_end[0]!r}?" if same_end else nearest(name, known)
            raise UserError(name, "no such field", "a field shown by 't5x-like inspect config'", hint)
        holder = config
        for parent in parents:
            holder = _child(holder, parent)
        target[last] = value.strip()
        if dataclasses.is_dataclass(holder):  # a class named here gets its defaults, which may be assigned to next
            hint = typing.get_type_hints(type(holder)).get(last, str)
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
