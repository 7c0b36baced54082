"""Values on the command line: each becomes exactly what was meant, classes and their fields come in any order, and what
cannot be is refused by name with the value given."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from t5x_like.core.config import Config, flatten, from_json, override, to_json, to_plain
from t5x_like.core.errors import UserError
from t5x_like.core.loading import code_of, load_run
from t5x_like.core.spelling import Text, items, spell, unquoted
from t5x_like.core.structure import structure
from t5x_like.input_pipeline.config import Bytes, Corpus, TextFiles
from t5x_like.optim.config import Duration, Joined, Schedule
from t5x_like.train.config import Run


@dataclasses.dataclass(frozen=True)
class Shape(Config, where="shape"):
    size: int = 1


@dataclasses.dataclass(frozen=True)
class Named(Shape):
    """Has fields without a default."""

    label: str = dataclasses.field(kw_only=True)
    inner: Shape = dataclasses.field(kw_only=True)


@dataclasses.dataclass(frozen=True)
class Whole(Config, where=""):
    shape: Shape = Shape()
    shapes: tuple[Shape, ...] = (Shape(2), Shape(3))
    corpus: Corpus | None = None
    texts: tuple[str, ...] = ("old",)
    numbers: tuple[int, ...] = (1,)
    pairs: tuple[tuple[str, float], ...] = ()
    text: str = "old"
    note: str | None = "old"
    start: int | float = 1
    kind: Literal["a b", "c", 3] = "c"
    fixed: tuple[int, str] = (1, "x")


# How a person or a shell script writes several texts, and what is meant.
SEVERAL = {
    "[NLU],[NLG],[S2S]": ("[NLU]", "[NLG]", "[S2S]"),
    "[NLU]": ("[NLU]",),
    "([NLU],[NLG])": ("[NLU]", "[NLG]"),
    "<a>,<b>": ("<a>", "<b>"),
    "(sep),(cls)": ("(sep)", "(cls)"),
    "(sep)": ("(sep)",),
    "(scale|bias)$": ("(scale|bias)$",),
    "(a|b),[cd]$": ("(a|b)", "[cd]$"),
    "((a|b),c)": ("(a|b)", "c"),
    "encoder/(a|b)": ("encoder/(a|b)",),
    "layers_[01]": ("layers_[01]",),
    "[qk]_norm": ("[qk]_norm",),
    "[a,b]": ("[a,b]",),
    "layer.{1,2}": ("layer.{1,2}",),
    "{a,b}/*.txt,c": ("{a,b}/*.txt", "c"),
    r"a\(b,c": (r"a\(b", "c"),
    r"^\[.*\]$": (r"^\[.*\]$",),
    "a(b,c": ("a(b", "c"),
    "texts/part(1)": ("texts/part(1)",),
    "('a.txt','b.txt')": ("a.txt", "b.txt"),
    "('a.txt', 'b.txt')": ("a.txt", "b.txt"),
    '["a.txt", "b,c"]': ("a.txt", "b,c"),
    "a.txt": ("a.txt",),
    "(a.txt,)": ("a.txt",),
    "a,b,": ("a", "b"),
    "'a,b',c": ("a,b", "c"),
    "'it''s',\"it's\",it's": ("it's", "it's", "it's"),
    "''": ("",),
    "'',a": ("", "a"),
    "a b, c ,\t": ("a b", " c "),
    "\\t,\n": ("\\t", "\n"),
    " ": (" ",),
    "none": ("none",),
    "": (),
    "()": (),
    "[]": (),
    "'[]'": ("[]",),
    "a=b,c=d": ("a=b", "c=d"),
}


@pytest.mark.parametrize("given, meant", SEVERAL.items())
def test_several_texts(given, meant):
    changed = override(Whole(), [f"texts={given}"])
    assert changed == Whole(texts=meant) and from_json(Whole, to_json(changed)) == changed
    assert all(type(each) is str for each in changed.texts)


@pytest.mark.parametrize(
    "assignment, meant",
    [
        ("text= a \t", " a \t"), ("text=\t", "\t"), ("text=' '", " "), ("text=[x]", "[x]"), ("text=(a,b)", "(a,b)"),
        ("text=a,b", "a,b"), ("text=", ""), ("text='x", "'x"), ("text=x'y'", "x'y'"), ("text=\"'x'\"", "'x'"),
        ("text=none", "none"), ("note=none", None), ("note='none'", "none"), ("note=", ""), ("note=a=b", "a=b"),
        ("numbers=[1,2]", (1, 2)), ("numbers=[5]", (5,)), ("numbers=1, 2", (1, 2)), ("numbers=(1_000,)", (1000,)),
        ("numbers=1e3", (1000,)), ("start=1", 1), ("start=1.0", 1.0), ("start=0.5", 0.5), ("start=1e3", 1000),
        ("kind=a b", "a b"), ("kind='a b'", "a b"), ("kind=3", 3), ("kind= +3", 3), ("fixed=2,a b", (2, "a b")),
        ("fixed=(2,'a,b')", (2, "a,b")), ("pairs=(a,1),(b|c,0.5)", (("a", 1.0), ("b|c", 0.5))),
        ("pairs=(a,1),", (("a", 1.0),)), ("pairs=((a,1),)", (("a", 1.0),)), ('pairs=[["a",1]]', (("a", 1.0),)),
    ],
)  # fmt: skip
def test_one_value(assignment, meant):
    changed = override(Whole(), [assignment])
    found = getattr(changed, assignment.partition("=")[0])
    assert found == meant and type(found) is type(meant)
    again = from_json(Whole, to_json(changed))
    assert again == changed and type(again.start) is type(changed.start)


TEXTS = st.text(st.sampled_from("ab,'\"()[]{}\\ \t\nn1=é")) | st.text() | st.sampled_from(["none", "()", "[]", '["a"]'])


@given(st.lists(TEXTS, max_size=4).map(tuple))
@example(("(a,b)",))
@example(("[\r]",))  # with nothing but a blank in them, brackets are an empty JSON array
@example(("[\n]",))
def test_what_is_spelled_is_read_as_the_same(texts):
    assert tuple(unquoted(each) for each in items(spell(texts))) == texts
    assert structure(tuple[str, ...], Text(spell(texts))) == texts
    for text in texts:
        assert structure(str | None, Text(spell(text))) == text


@given(st.lists(st.tuples(TEXTS, st.floats(allow_nan=False, allow_infinity=False)), max_size=3).map(tuple))
def test_pairs_are_spelled_too(pairs):
    assert override(Whole(), [f"pairs={spell(pairs)}"]).pairs == pairs


# Classes and their fields


def test_a_class_is_completed_by_later_and_earlier_assignments():
    wanted = Whole(Named(5, label="a", inner=Named(label="b", inner=Shape(7))))
    given = ["shape=Named", "shape.size=5", "shape.label=a", "shape.inner=Named", "shape.inner.label=b",
             "shape.inner.inner=Shape", "shape.inner.inner.size=7"]  # fmt: skip
    for order in itertools.permutations(given):
        assert override(Whole(), order) == wanted
    with pytest.raises(UserError, match="shape.inner.label: is missing and has no default\n  allowed: text"):
        override(Whole(), [each for each in given if "inner.label" not in each])


def test_of_two_assignments_to_a_field_the_last_counts():
    assert override(Whole(), ["shapes.0.size=7", "shapes.*.size=8"]).shapes == (Shape(8), Shape(8))
    assert override(Whole(), ["shapes.*.size=8", "shapes.0.size=7"]).shapes == (Shape(7), Shape(8))
    assert override(Whole(Shape(4)), ["shape=Shape"]).shape == Shape(1)  # from its defaults


def test_several_classes():
    named = Named(label="a", inner=Shape())
    more = ["shapes.1.label=a", "shapes.1.inner=Shape"]
    assert override(Whole(), ["shapes=Shape"]).shapes == (Shape(),)
    assert override(Whole(), ["shapes="]).shapes == override(Whole(), ["shapes=[]"]).shapes == ()
    assert override(Whole(), [*more, "shapes=Shape,Named"]).shapes == (Shape(), named)
    assert override(Whole(), ["shapes=[Shape, Named]", *more]).shapes == (Shape(), named)
    assert override(Whole(), ["shapes.1=Named", *more]).shapes == (Shape(2), named)
    assert override(Whole(), ["shapes.2=Shape", "shapes.2.size=9"]).shapes == (Shape(2), Shape(3), Shape(9))
    assert override(Whole(), ["numbers.0=5", "texts.1=b"]) == Whole(numbers=(5,), texts=("old", "b"))


FILE = """
from dataclasses import dataclass
from t5x_like.config import Bytes, Corpus, TextFiles

@dataclass(frozen=True)
class Mine(TextFiles):
    more: int = 1

def corpus():
    return Corpus("made", Mine(("a",)), Bytes(), "none", "made up")
"""


def test_a_file_that_makes_one(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(FILE.replace("Mine((", "TextFiles(("))
    assert override(Whole(), [f"corpus={file}"]).corpus == Corpus("made", TextFiles(("a",)), Bytes(), "none", "made up")
    assert override(Whole(), ["corpus.name=b", f"corpus={file}"]).corpus.name == "b"
    for text, said in (("x = 1", "has no function corpus"), ("def corpus():\n    return 5", "corpus.. returned a int")):
        file.write_text(text)
        with pytest.raises(UserError, match=said):
            override(Whole(), [f"corpus={file}"])
    with pytest.raises(UserError, match="corpus: no file 'none.py'"):
        override(Whole(), ["corpus=none.py"])
    with pytest.raises(UserError, match="shape: got 'own.py'"):
        override(Whole(), ["shape=own.py"])


def test_a_file_with_a_class_of_its_own(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(FILE)
    made = override(Whole(), [f"corpus={file}", "corpus.source.more=2"]).corpus
    assert made.source.more == 2 and code_of(type(made.source)).path == file
    assert from_json(Whole, to_json(Whole(corpus=made))).corpus == made


WRONG = {
    "shapes=Shape,,Shape": ["shapes: got 'Shape,,Shape'", "nothing stands between"],
    "texts=a,,b": ["texts: got 'a,,b'", "nothing stands between two commas", "try: ''"],
    "shapes=Shap": ["shapes: got 'Shap'", "did you mean 'Shape'"],
    "shapes.3.size=1": ["shapes.3.size: no such field; given '1'"],
    "shapes.4=Shape": ["shapes.4: no such field"],
    "shapes.x=Shape": ["shapes.x: no such field"],
    "shapes.².size=1": ["no such field"],
    "shape.type=Named": ["shape.type: no such field", "given 'Named'"],
    "numbers=[1": ["numbers: got '[1'", "a whole number"],
    "numbers=1;2": ["numbers: got '1;2'"],
    f"numbers={'9' * 5000}": ["numbers: got '99", "a whole number"],
    f"numbers={'[' * 10000}": ["numbers: got '[["],
    "fixed=1": ["fixed: got '1'", "2 values with commas between them, each a whole number or text"],
    "text.more=1": ["text.more: no such field; given '1'"],
    "*.sise=3": ["*.sise: matches no field; given '3'"],
    "sise=3": ["sise: no such field; given '3'", "did you mean"],
    "=3": [": no such field; given '3'"],
    "": ["is not an assignment"],
}


@pytest.mark.parametrize("assignment, said", WRONG.items())
def test_what_cannot_be(assignment, said):
    with pytest.raises(UserError) as error:
        override(Whole(), [assignment])
    for part in said:
        assert part in str(error.value)


def test_every_leaf_of_a_shipped_run_can_be_spelled_and_given_again():
    run = load_run("t5_sotu", Run)
    given = [f"{name}={spell(value)}" for name, value in flatten(run).items() if not name.endswith(".code")]
    assert override(run, given) == run and override(run, given[::-1]) == run


@pytest.mark.parametrize("value", ["1.0", "1.", "100.0", 1.0])
def test_a_fraction_is_no_whole_number_where_both_are_allowed(value):
    """As a share of the run 1.0 would be all of it, and not one step."""
    with pytest.raises(UserError, match="warmup"):
        structure(Duration, Text(value) if isinstance(value, str) else value, "warmup")
    assert structure(Duration, Text("1e2"), "warmup") == 100 and structure(Duration, Text("0.5"), "warmup") == 0.5


def test_a_number_that_is_whole_only_when_rounded_is_refused():
    for value in ("7.00000000000000000001", "9007199254740991.5"):
        with pytest.raises(UserError, match="steps"):
            structure(int, Text(value), "steps")
    assert structure(int, Text("1_000.0e1"), "steps") == 10_000


def test_classes_as_a_json_array():
    run = override(load_run("t5_sotu", Run), ['evaluations=["HeldOut","HeldOut"]', "evaluations.1.name=other"])
    assert [task.name for task in run.evaluations] == ["held_out", "other"]


def test_the_text_of_a_class_name_in_python_is_not_suggested_again():
    with pytest.raises(UserError) as error:
        dataclasses.replace(load_run("t5_sotu", Run), evaluations=("HeldOut",))
    assert error.value.where == "evaluations.0" and error.value.suggestion == "HeldOut()"


def test_a_name_in_use_is_not_suggested():
    with pytest.raises(UserError, match="try: evaluations.1.name=held_out_1"):
        override(load_run("t5_sotu", Run), ["evaluations=HeldOut,HeldOut"])


@pytest.mark.parametrize("name", ["", "..", "a/../b", "a/", "a\nb"])
def test_a_name_that_is_no_folder_of_its_own(name):
    with pytest.raises(UserError, match="name: got"):
        override(load_run("t5_sotu", Run), [f"name={name}"])


def test_schedules_joined_for_every_optimizer_of_a_shipped_run():
    given = ["optimizer.schedule.schedules=Schedule,Schedule", "optimizer.schedule.until=0.5"]
    run = override(load_run("t5_sotu", Run), ["optimizer.schedule=Joined", *given])
    assert run.optimizer.schedule == Joined((Schedule(), Schedule()), (0.5,))


def test_a_class_without_its_name():
    plain = to_plain(load_run("t5_sotu", Run))
    del plain["optimizer"]["type"]
    with pytest.raises(UserError, match="optimizer.type: is missing") as error:
        structure(Run, plain)
    assert "did you mean" not in str(error.value)
