"""A config survives JSON, takes overrides from text, shows its differences, and refuses what does not fit by name,
value and what is allowed."""

from __future__ import annotations

import abc
import dataclasses
import enum
import json
import math
import pickle
import types
from typing import Annotated, Any, ClassVar, Literal

import pytest

from t5x_like.core.config import (
    Config,
    choices,
    diff,
    flatten,
    from_json,
    override,
    read_json,
    structure,
    to_json,
)
from t5x_like.core.errors import UserError, nearest
from t5x_like.core.loading import load_run
from t5x_like.core.ranges import Range
from t5x_like.core.spelling import Text
from t5x_like.models import families
from t5x_like.models.config import ModelConfig
from t5x_like.models.families import Dropout


@dataclasses.dataclass(frozen=True)
class Quick:
    rate: float = 0.1
    nesterov: bool = False


@dataclasses.dataclass(frozen=True)
class Slow:
    rate: float = 0.2
    betas: tuple[float, float] = (0.9, 0.99)


@dataclasses.dataclass(frozen=True)
class Inner:
    low: int = 1
    high: int = 10

    def __post_init__(self):
        if self.low >= self.high:
            raise UserError("inner.low", f"got {self.low}", f"less than inner.high = {self.high}")


@dataclasses.dataclass(frozen=True)
class Run:
    name: str
    steps: int = 100
    kind: Literal["small", "large", 3] = "small"
    optimizer: Quick | Slow = Quick()
    inner: Inner = Inner()
    note: str | None = None
    limit: int | None = None
    sizes: tuple[int, ...] = (1, 2)
    pair: tuple[int, str] = (1, "x")
    exact: bool = False


RUN = Run("first", 7, "large", Slow(0.5, (0.1, 0.2)), Inner(2, 3), "a note", 9, (4, 5, 6), (2, "y"), True)


def message(error: pytest.ExceptionInfo) -> str:
    return str(error.value)


@pytest.mark.parametrize("config", [Run("plain"), RUN, dataclasses.replace(RUN, optimizer=Quick(), sizes=())])
def test_json_and_back(config):
    text = to_json(config)
    json.loads(text)
    assert from_json(Run, text) == config


@pytest.mark.parametrize(
    "config", [families.t5_1_1("base", dropout=Dropout.t5(0.1)), families.bert(), families.umt5(remat="dots")]
)
def test_models_as_json_and_back(config):
    assert from_json(ModelConfig, to_json(config)) == config


@pytest.mark.parametrize(
    "assignment, name, value",
    [
        ("steps=1_000", "steps", 1000),
        ("steps=1e6", "steps", 1_000_000),
        ("--steps=5", "steps", 5),
        ("optimizer.rate=6e-3", "optimizer.rate", 0.006),
        ("optimizer.rate=1", "optimizer.rate", 1.0),
        ("optimizer.betas=0.5,0.6", "optimizer.betas", (0.5, 0.6)),
        ("exact=false", "exact", False),
        ("exact=on", "exact", True),
        ("kind=small", "kind", "small"),
        ("kind=3", "kind", 3),
        ("note=none", "note", None),
        ("note=a=b c", "note", "a=b c"),
        ("limit=None", "limit", None),
        ("limit=12", "limit", 12),
        ("sizes=7,8,9", "sizes", (7, 8, 9)),
        ("sizes=(7,)", "sizes", (7,)),
        ("sizes=", "sizes", ()),
        ("pair=3,z", "pair", (3, "z")),
        ("optimizer=Quick", "optimizer", "Quick"),
        ("name=-1e-3", "name", "-1e-3"),
    ],
)
def test_override_reads_text_as_the_field_means_it(assignment, name, value):
    changed = override(RUN, [assignment])
    found = flatten(changed)[name]
    assert found == value and type(found) is type(value)
    others = {key for key in diff(RUN, changed) if not key.startswith(name)}
    assert others == set()
    assert RUN.steps == 7  # the original stays


def test_a_class_by_name_starts_from_its_defaults_and_takes_its_own_fields():
    changed = override(RUN, ["optimizer=Quick", "optimizer.nesterov=true"])
    assert changed.optimizer == Quick(0.1, True)


def test_later_assignments_win_and_fields_that_must_agree_come_in_any_order():
    assert override(RUN, ["steps=1", "steps=2"]).steps == 2
    for order in (["inner.low=20", "inner.high=30"], ["inner.high=30", "inner.low=20"]):
        assert override(RUN, order).inner == Inner(20, 30)
    with pytest.raises(UserError, match="inner.low: got 20\n  allowed: less than inner.high = 3"):
        override(RUN, ["inner.low=20", "steps=5"])


@pytest.mark.parametrize(
    "assignments, parts",
    [
        (["step=5"], ["step: no such field", "did you mean 'steps'?"]),
        (["rate=5"], ["rate: no such field", "did you mean 'optimizer.rate'?"]),
        (["optimizer.nesterov=true"], ["optimizer.nesterov: no such field"]),
        (["optimizer.type=Quick"], ["optimizer.type: no such field"]),
        (["steps.more=1"], ["steps.more: no such field"]),
        (["steps"], ["steps: is not an assignment", "field.name=value"]),
        (["steps=many"], ["steps: got 'many'", "allowed: a whole number"]),
        (["steps=1.5"], ["steps: got '1.5'", "a whole number"]),
        (["steps=inf"], ["steps: got 'inf'", "a whole number"]),
        (["steps=nan"], ["steps: got 'nan'", "a whole number"]),
        (["optimizer.rate=nan"], ["optimizer.rate: got 'nan'", "a number"]),
        (["optimizer.rate=fast"], ["optimizer.rate: got 'fast'", "a number"]),
        (["exact=maybe"], ["exact: got 'maybe'", "true | false"]),
        (["kind=larg"], ["kind: got 'larg'", "small | large | 3", "did you mean 'large'?"]),
        (["optimizer=Quik"], ["optimizer: got 'Quik'", "Quick | Slow", "did you mean 'Quick'?"]),
        (["optimizer.betas=1,2,3"], ["optimizer.betas: got", "each a number"]),
        (["sizes=1,two"], ["sizes: got 'two'", "a whole number"]),
        (["limit=x"], ["limit: got 'x'", "a whole number | none"]),
        (["optimizer=Quik", "optimizer.rate=1"], ["optimizer: got 'Quik'"]),
    ],
)
def test_override_refuses_and_says_why(assignments, parts):
    with pytest.raises(UserError) as error:
        override(RUN, assignments)
    for part in parts:
        assert part in message(error)


@pytest.mark.parametrize(
    "change, parts",
    [
        (lambda p: p.update(stepz=1), ["stepz: no such field", "did you mean 'steps'?"]),
        (lambda p: p["inner"].update(lo=1), ["inner.lo: no such field", "allowed: low, high", "did you mean 'low'?"]),
        (lambda p: p.pop("name"), ["name: is missing and has no default", "text"]),
        (lambda p: p.update(steps=True), ["steps: got True", "a whole number"]),
        (lambda p: p.update(steps=None), ["steps: got None", "a whole number"]),
        (lambda p: p.update(name=5), ["name: got 5", "text"]),
        (lambda p: p.update(inner=5), ["inner: got 5", "the fields of Inner"]),
        (lambda p: p.update(sizes=5), ["sizes: got 5", "each a whole number"]),
        (lambda p: p["optimizer"].update(type="os.system"), ["optimizer: got 'os.system'", "Quick | Slow"]),
        (lambda p: p["inner"].update(low=4), ["inner.low: got 4", "less than inner.high = 3"]),
    ],
)
def test_json_that_does_not_fit(change, parts):
    plain = json.loads(to_json(RUN))
    change(plain)
    with pytest.raises(UserError) as error:
        from_json(Run, json.dumps(plain))
    for part in parts:
        assert part in message(error)


def test_text_that_is_not_json():
    with pytest.raises(UserError, match="config.json: is not JSON"):
        from_json(Run, "{", "config.json")


@pytest.mark.parametrize(
    "text, said",
    [("[" * 100_000, "too deep"), ('{"steps": 1, "batch_size": 2, "steps": 3}', "'steps' is given twice, as 1 and 3")],
)
def test_json_that_cannot_be_meant(text, said):
    with pytest.raises(UserError, match=f"is not JSON: .*{said}"):
        read_json(text)


def test_a_text_of_a_kind_of_its_own_becomes_plain():
    class Name(enum.StrEnum):
        BIG = "big"

    class Old(str, enum.Enum):  # noqa: UP042, another one
        BIG = "big"

    for given in (Name.BIG, Old.BIG):
        assert type(structure(str, given, text=False)) is str and f"{structure(str, given, text=False)}" == "big"


def test_missing_fields_take_their_defaults():
    assert from_json(Run, '{"name": "x", "optimizer": {"type": "Slow"}}') == Run("x", optimizer=Slow())


def test_diff_names_the_leaves():
    other = dataclasses.replace(RUN, steps=8, inner=Inner(2, 4), optimizer=Quick(0.5))
    assert diff(RUN, RUN) == {}
    assert diff(RUN, other) == {
        "steps": (7, 8),
        "optimizer": ("Slow", "Quick"),
        "optimizer.betas": ((0.1, 0.2), None),
        "optimizer.nesterov": (None, False),
        "inner.high": (3, 4),
    }


class Base(Config, where="run.base"):
    """No dataclass, so no choice itself."""

    shared: ClassVar[int] = 3


@dataclasses.dataclass(frozen=True)
class First(Base):
    size: int = 1


class Between(Base):
    """Nor this."""


@dataclasses.dataclass(frozen=True)
class Abstract(Between, abc.ABC):
    """Nor one with a method that is still to be written."""

    @abc.abstractmethod
    def method(self): ...


@dataclasses.dataclass(frozen=True)
class Second(Between):
    rate: float = 0.5
    kind: Literal["a", "b", 3] = "a"
    exact: bool = False
    name: str = "x"
    sizes: tuple[int, ...] = (1,)
    pair: tuple[float, str] = (1.0, "x")
    note: str | None = None
    inner: First = First()
    most: Annotated[float, Range(-math.inf, math.inf)] = 1.0

    def __post_init__(self):
        if self.rate > 9:
            raise UserError("run.base.rate", str(self.rate), "at most 9")


@dataclasses.dataclass(frozen=True)
class Third(Second):
    """Has no ``__post_init__`` of its own."""

    more: float = 0.0


@dataclasses.dataclass(frozen=True)
class Fourth(Second):
    last: int = 0

    def __post_init__(self):
        super().__post_init__()
        assert isinstance(self.pair, tuple) and type(self.rate) is float


@dataclasses.dataclass(frozen=True)
class Holder(Config, where=""):
    base: Base = First()
    second: Second | None = None
    many: tuple[Base, ...] = ()


def test_a_class_as_hint_allows_every_dataclass_derived_from_it():
    assert choices(Base) == [First, Second, Third, Fourth]
    holder = Holder(Third(more=2.0), Fourth(), (First(4), Second()))
    assert from_json(Holder, to_json(holder)) == holder
    assert override(holder, ["base=Second", "base.rate=3"]).base == Second(3.0)
    assert override(holder, ["second=Third"]).second == Third() and override(holder, ["second=none"]).second is None
    assert structure(Base, First(3)) == First(3)
    for wrong, part in ((["base=Secnd"], "did you mean 'Second'?"), (["base=Base"], "First | Second | Third | Fourth")):
        with pytest.raises(UserError, match="base: got") as error:
            override(holder, wrong)
        assert part in message(error)
    with pytest.raises(UserError, match=r"second: got 'First'\n  allowed: Second \| Third \| Fourth \| none"):
        override(holder, ["second=First"])


@pytest.mark.parametrize("kind", [Second, Third, Fourth])
@pytest.mark.parametrize(
    "field, value, allowed",
    [
        ("rate", math.nan, "a number"),
        ("rate", math.inf, "a number"),
        ("rate", "0.5", "a number"),
        ("rate", True, "a number"),
        ("rate", 10**400, "a number"),
        ("kind", "c", "a | b | 3"),
        ("kind", "3", "a | b | 3"),
        ("kind", 3.0, "a | b | 3"),
        ("exact", 1, "true | false"),
        ("exact", "true", "true | false"),
        ("name", 5, "text"),
        ("sizes", 5, "values with commas between them, each a whole number"),
        ("sizes", "1,2", "each a whole number"),
        ("sizes", (1, 2.0), "a whole number"),
        ("pair", (1.0,), "each a number"),
        ("note", 5, "text | none"),
        ("inner", "First", "the fields of First"),
        ("inner", {"size": 1}, "the fields of First"),
        ("inner", First, "the fields of First"),
        ("most", math.nan, "a number"),
    ],
)
def test_what_python_gives_is_checked_too(kind, field, value, allowed):
    given: dict[str, Any] = {field: value}
    with pytest.raises(UserError) as error:
        kind(**given)
    assert message(error).startswith(f"run.base.{field}: got ") and allowed in message(error)


def test_what_python_gives_becomes_what_the_field_says():
    given: Any = {"rate": 3, "sizes": [4, 5], "pair": [6, "y"], "most": math.inf}
    for kind in (Second, Third, Fourth):
        made = kind(**given)
        assert (made.rate, made.sizes, made.pair, made.most) == (3.0, (4, 5), (6.0, "y"), math.inf)
        assert type(made.rate) is type(made.pair[0]) is float
        assert from_json(kind, to_json(made)) == made
        with pytest.raises(UserError, match="run.base.rate: 10.0\n  allowed: at most 9"):
            kind(rate=10)
    assert override(Holder(Second()), ["base.most=inf"]).base == Second(most=math.inf)
    with pytest.raises(UserError, match="base.rate: got 'inf'"):
        override(Holder(Second()), ["base.rate=inf"])


def test_a_class_of_no_known_place_is_named_by_itself():
    @dataclasses.dataclass(frozen=True)
    class Lonely(Config):
        count: int

    wrong: Any = "many"
    with pytest.raises(UserError, match="Lonely.count: got 'many'"):
        Lonely(wrong)
    for call, where in ((lambda: ModelConfig(dtype=wrong, vocab_size=9, d_model=8), "model.dtype"),
                        (lambda: families.t5_1_1("base", norm=wrong), "model.norm"),
                        (lambda: Dropout(wrong), "model.dropout.embedding"),
                        (lambda: Holder(wrong), "base")):  # fmt: skip
        with pytest.raises(UserError, match=f"^{where}: got 'many'"):
            call()


def test_a_class_that_is_not_declared_a_dataclass_is_refused():
    class Bare(Second):
        extra: int = 4

    with pytest.raises(UserError, match=r"Bare: is no dataclass\n.*: @dataclass\(frozen=True\) above"):
        Bare()
    assert Bare not in choices(Base)


def test_a_hint_that_does_not_exist_is_the_users_mistake():
    @dataclasses.dataclass(frozen=True)
    class Wrong(Config):
        count: Nowhere  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(UserError, match="Wrong: name 'Nowhere' is not defined, in its type hints"):
        Wrong(1)


def test_every_config_class_checks_its_fields():
    """Whatever a run can hold: all dataclasses found in the type hints of Run, and what derives from them."""
    import typing

    from t5x_like.train.config import Run as WholeRun

    seen: set[type] = set()

    def walk(hint):
        for inner in typing.get_args(hint):
            walk(inner)
        for kind in choices(hint) if isinstance(hint, type) and not isinstance(hint, types.GenericAlias) else ():
            if kind.__module__.startswith("t5x_like.") and kind not in seen:
                seen.add(kind)
                for name in (field.name for field in dataclasses.fields(kind)):
                    walk(typing.get_type_hints(kind)[name])

    walk(WholeRun)
    assert len(seen) > 35
    assert [kind for kind in seen if not issubclass(kind, Config)] == []


def test_structure_of_types_that_are_no_dataclass():
    assert structure(tuple[int, ...], [1, 2]) == (1, 2)
    assert structure(int | None, Text("none")) is None
    with pytest.raises(UserError, match="got 'none'"):
        structure(int | None, "none")  # JSON has a null
    assert structure(float, 3) == 3.0 and type(structure(float, 3)) is float


@pytest.mark.parametrize(
    "text, parts",
    [
        ("x = 1", ["has no function run()", "returns a Run"]),
        ("def run():\n    return 5", ["run() returned a int", "a Run"]),
    ],
)
def test_run_files_that_are_none(tmp_path, text, parts):
    path = tmp_path / "bad.py"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load_run(str(path), Run)
    for part in [str(path), *parts]:
        assert part in message(error)


def test_run_file_by_path_with_classes_of_its_own(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from __future__ import annotations\nimport dataclasses\n\n"
        "@dataclasses.dataclass\nclass Mine:\n    x: int = 4\n\n"
        "def run():\n    return Mine()\n"
    )
    assert load_run(str(path), object).x == 4
    with pytest.raises(UserError, match="config: no run file 'no_such_run'"):
        load_run("no_such_run", Run)


def test_errors_show_their_four_parts_and_travel_between_processes():
    error = UserError("field", "got 1", "2 or 3", "field=2")
    assert str(error) == "field: got 1\n  allowed: 2 or 3\n  try: field=2"
    assert str(UserError("field", "got 1")) == "field: got 1"
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error) and copy.allowed == "2 or 3"


def test_nearest():
    assert nearest("learning_rat", ["steps", "learning_rate"]) == "did you mean 'learning_rate'?"
    assert nearest("zzz", ["steps", "learning_rate"]) == ""
