"""Drawn assignments and drawn config.json files, without training. What Python accepts becomes, by command line and by
JSON, exactly the value meant; everything else ends with exit code 2 and one message that names the field and holds the
value given."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import io
import json
import math
import string
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_runs import scratch

from t5x_like.cli.main import main
from t5x_like.core.config import flatten, from_json, override, structure, to_json, to_plain
from t5x_like.core.errors import UserError
from t5x_like.core.loading import is_shipped, load_run
from t5x_like.core.ranges import Range
from t5x_like.core.spelling import spell
from t5x_like.core.structure import TYPE_KEY, class_names, class_of, classes_in, element, init_fields, type_hints
from t5x_like.train.config import Run

CONFIGS = ("t5_sotu", "gpt_sotu", "bert_sotu", "t5_1_1_base")
COUNTS: collections.Counter[str] = collections.Counter()
QUIET = dict(deadline=None, database=None, suppress_health_check=list(HealthCheck))
TEXTS = st.text(st.sampled_from(string.ascii_letters + "0123456789_./*[](){}|$^,'\"\\ \t=-é"), max_size=12)


@functools.cache
def run_of(name: str) -> Run:
    return load_run(name, Run)


def fields(hint: Any, plain: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted name to type hint of every leaf of a run's plain values, and of every choice of a class."""
    if isinstance(plain, list) and classes_in(element(hint)):
        return {k: v for i, each in enumerate(plain) for k, v in fields(element(hint), each, f"{prefix}.{i}").items()}
    found = {prefix: hint} if prefix else {}
    if isinstance(plain, dict) and (kind := class_of(hint, plain)):
        for name in init_fields(kind):
            found |= fields(type_hints(kind)[name], plain[name], f"{prefix}.{name}" if prefix else name)
    return found


@functools.cache
def fields_of(name: str) -> dict[str, Any]:
    return {k: v for k, v in fields(Run, to_plain(run_of(name))).items() if k not in ("model", "data", "train")}


def values(hint: Any) -> st.SearchStrategy:
    """Values of a type, most of them in its range."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        limits = next((each for each in args if isinstance(each, Range)), Range(-(2**40), 2**40))
        low, high = limits.low, limits.high
        if args[0] is int:
            return st.integers(int(max(low, -(2**53))), int(min(high, 2**53))) | st.sampled_from([max(1, int(low)), 8])
        near = st.floats(max(low, 0.0), max(low, min(high, 2.0)))
        return near | st.floats(low, high, allow_nan=False, allow_infinity=math.isinf(high))
    if origin is Literal:
        return st.sampled_from(args)
    if origin is tuple:
        each = values(args[0])
        return st.lists(each, max_size=3).map(tuple) if args[-1] is Ellipsis else st.tuples(*map(values, args))
    if args:
        return st.one_of(*map(values, args))
    if hint is int:
        return st.integers(0, 2000)
    if hint is float:
        return st.floats(0, 1) | st.floats(-1e6, 1e6)
    if classes_in(hint):
        shipped = sorted(name for name, kind in class_names(hint).items() if is_shipped(kind))  # none of other tests
        return st.sampled_from(shipped).map(Chosen)
    return {bool: st.booleans(), str: TEXTS, type(None): st.none()}[hint]


@dataclasses.dataclass(frozen=True)
class Chosen:
    """A class by its name."""

    name: str


def put(plain: Any, field: str, value: Any) -> None:
    *parents, last = field.split(".")
    for part in parents:
        plain = plain[int(part) if isinstance(plain, list) else part]
    plain[int(last) if isinstance(plain, list) else last] = value


def lists(value: Any) -> Any:
    return [lists(each) for each in value] if isinstance(value, tuple) else value


def meant(name: str, given: dict[str, Any]) -> Run | UserError:
    """The run that Python builds of these values, or why it does not."""
    plain = to_plain(run_of(name))
    for field, value in sorted(given.items(), key=lambda each: (not isinstance(each[1], Chosen), each[0].count("."))):
        put(plain, field, {TYPE_KEY: value.name} if isinstance(value, Chosen) else lists(value))
    try:
        return structure(Run, plain)
    except UserError as error:
        return error


def written(draw: Any, value: Any) -> str:
    """A way in which a person may write a value."""
    if isinstance(value, Chosen):
        return value.name
    text = spell(value)
    if isinstance(value, bool):
        return draw(st.sampled_from([text, text.upper(), {"true": "on", "false": "no"}[text]]))
    if isinstance(value, int):
        return draw(st.sampled_from([text, f"{value:_}", f" {text}", f"{value:+d}"]))
    if isinstance(value, tuple) and value:
        return draw(st.sampled_from([text, f"({text},)" if text[-1] != "," else text, json.dumps(lists(value))]))
    return text


def command(*arguments: str) -> tuple[int, str, str]:
    """(exit code, output, errors) of a command line, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(list(arguments))
        except SystemExit as exit:
            code = int(exit.code or 0)
    return code, out.getvalue(), err.getvalue()


def check_refusal(said: tuple[int, str, str], *words: str) -> None:
    code, out, err = said
    assert code == 2 and not out, said
    assert err.startswith("error: ") and err.count("error: ") == 1 and "Traceback" not in err, said
    for word in words:
        assert word in err, (word, err)


def shown(out: str) -> str:
    return out.removesuffix("\n")


def listing(run: Run) -> str:
    return "\n".join(f"{name} = {spell(value)}" for name, value in flatten(run).items())


def check_values(data: Any) -> None:
    """One to three fields with values of their types: by Python, by the command line, by a config.json."""
    name = data.draw(st.sampled_from(CONFIGS))
    known = fields_of(name)
    chosen = data.draw(st.lists(st.sampled_from(sorted(known)), min_size=1, max_size=3, unique=True))
    chosen = [field for field in chosen if not any(field.startswith(f"{other}.") for other in chosen)]
    given = {field: data.draw(values(known[field])) for field in chosen}
    wanted = meant(name, given)
    assignments = [f"{field}={written(data.draw, value)}" for field, value in given.items()]
    said = command("inspect", "config", "--values", name, *data.draw(st.permutations(assignments)))
    if isinstance(wanted, UserError):
        COUNTS["refused by Python too"] += 1
        check_refusal(said, wanted.where.split(".")[-1])
        return
    COUNTS["valid"] += 1
    assert said[0] == 0 and shown(said[1]) == listing(wanted), said
    changed = override(run_of(name), assignments)
    assert changed == wanted and repr(changed) == repr(wanted)  # types too: 1 is no 1.0
    assert from_json(Run, to_json(changed)) == changed and repr(from_json(Run, to_json(changed))) == repr(changed)


NUMBER = st.sampled_from(["many", "", "nan", "1.5.2", "--1", "0x10", "1e", "∞", "(1", "1;2", "[1]x", "'5", "9" * 5000])
OTHER_JSON = st.sampled_from([None, [], {}, "x", [1, "x"], {"type": "None"}, {"type": []}, {"a": 1}, -1.5, True, 1e400])


def is_number(hint: Any) -> bool:
    args = typing.get_args(hint)
    return hint in (int, float) or (typing.get_origin(hint) is Annotated and args[0] in (int, float))


def has_range(hint: Any) -> bool:
    return is_number(hint) and any(isinstance(each, Range) for each in typing.get_args(hint))


def is_word(hint: Any) -> bool:
    return typing.get_origin(hint) is Literal or hint is bool


def check_mistakes(data: Any) -> None:
    """A misspelled name, class or word, a text where a number belongs, a number out of range: refused by name."""
    name = data.draw(st.sampled_from(CONFIGS))
    known = fields_of(name)
    kind = data.draw(st.sampled_from(["field", "number", "range", "word", "class", "none", "type", "missing"]))
    COUNTS[kind] += 1
    value = data.draw(TEXTS.filter(str.strip))
    if kind == "field":
        field = data.draw(st.sampled_from(sorted(known)))
        place = data.draw(st.integers(0, len(field) - 1))
        field = field[:place] + data.draw(st.sampled_from("xyz_.")) + field[place + 1 :]
        if field in known or field.strip(".") != field or any(field.startswith(f"{each}.") for each in ()):
            return
        check_refusal(command("inspect", "config", name, f"{field}={value}"), field.strip(), repr(value))
    elif kind == "none":
        if "=" in value or value.startswith("-"):
            return
        check_refusal(command("inspect", "config", name, value), "is not an assignment", value)
    elif kind == "missing":
        said = command("inspect", "config", name, "data.corpus.source=JsonLines", f"data.corpus.name={spell(value)}")
        check_refusal(said, "data.corpus.source.paths: is missing")
    elif kind == "type":
        field = data.draw(st.sampled_from([field for field, hint in known.items() if not typing.get_args(hint)]))
        hint, wrong = known[field], data.draw(OTHER_JSON)
        plain = to_plain(run_of(name))
        put(plain, field, wrong)
        if isinstance(wrong, dict) and TYPE_KEY not in wrong and classes_in(hint):
            return  # the only class that the field allows, with its defaults; unknown fields are left out
        fits = isinstance(wrong, str) and hint is str or wrong is True and hint is bool
        if not (fits or is_number(hint) and isinstance(wrong, float)):
            check_refusal(command("inspect", "config", folder(json.dumps(plain))), field)
    else:
        wanted = {"number": is_number, "range": has_range, "word": is_word, "class": classes_in}[kind]
        candidates = sorted(field for field, hint in known.items() if wanted(hint))
        if not candidates:
            return
        field = data.draw(st.sampled_from(candidates))
        hint = known[field]
        if kind == "number":
            value = data.draw(NUMBER)
        elif kind == "range":
            limits = next(each for each in typing.get_args(hint) if isinstance(each, Range))
            value = data.draw(st.sampled_from([str(limits.low - 1), str(limits.high * 2 + 1), "-1e300", "nan"]))
            if "nan" not in value and float(value) in limits:
                return
        else:
            value = data.draw(st.sampled_from(["Nothing", "x y", "1.5", "nul", value + "?"]))
        check_refusal(command("inspect", "config", name, f"{field}={value}"), field, repr(value)[1:-1])


def folder(text: str) -> str:
    """A run's folder with this config.json."""
    path = scratch() / "fuzz"
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(text)
    return str(path)


def check_files(data: Any) -> None:
    """A config.json that is cut off, or in which a character has changed: read as a run, or refused."""
    text = to_json(run_of(data.draw(st.sampled_from(CONFIGS))))
    place = data.draw(st.integers(0, len(text) - 1))
    if data.draw(st.booleans()):
        text = text[:place]
    else:
        text = text[:place] + data.draw(st.sampled_from('x{}[]",:0-\\\n9')) + text[place + 1 :]
    said = command("inspect", "config", "--values", folder(text))
    if said[0] != 0:
        check_refusal(said)
        return
    with contextlib.suppress(UserError):  # an unknown field is left out with a note
        again = from_json(Run, text)
        assert shown(said[1]) == listing(again) and from_json(Run, to_json(again)) == again


# Two of three drawn values are valid: half of all draws.
CHECKS = {"values": (check_values, 0.75), "mistakes": (check_mistakes, 0.2), "files": (check_files, 0.05)}


def draw(check: Any, draws: int) -> None:
    @settings(max_examples=draws, derandomize=True, **QUIET)
    @given(st.data())
    def drawn(data):
        check(data)

    drawn()


@pytest.mark.parametrize("name", CHECKS)
def test_drawn(name):
    check, share = CHECKS[name]
    draw(check, int(300 * share))


@pytest.mark.proof
@pytest.mark.parametrize("name", CHECKS)
def test_5000_drawn(name):
    check, share = CHECKS[name]
    draw(check, int(5000 * share))


def test_the_folder_is_scratch():
    assert Path(folder("{}")).is_relative_to(scratch())
