"""Documents from a function of a Python file: run only if the user chose that file."""

import pytest

from t5x_like.core.errors import UserError
from t5x_like.core.loading import mark, was_chosen
from t5x_like.input_pipeline.config import PythonGenerator
from t5x_like.input_pipeline.recipes import load_recipe

CORPUS_FILE = """
from pathlib import Path
from t5x_like.input_pipeline.config import Bytes, Corpus, PythonGenerator

def corpus():
    return Corpus("made", PythonGenerator(__file__), Bytes(), "none", "made up")

def documents():
    Path(__file__).with_name("ran").touch()
    yield from ("one", "", "two é")

def bad():
    yield "good"
    yield 3
    yield "\\ud800"
    yield "good"

def failing():
    yield "good"
    raise OSError(5, "the network is away")
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "made.py").write_text(CORPUS_FILE)
    return tmp_path / "made.py"


def test_a_file_that_a_run_file_names_is_run(file):
    source = load_recipe(file).source
    assert was_chosen(file) and isinstance(source, PythonGenerator)
    assert source.files() == [] and len(source.units()) == 1
    assert list(source.texts()) == ["one", "two é"] == list(source.texts())
    assert list(source.read_unit(source.units()[0])) == ["one", "", "two é"]


def test_a_file_that_only_a_config_names_is_not(file):
    source = PythonGenerator(str(file))
    with pytest.raises(UserError, match="(?s)is not run.*t5x-like prepare"):
        list(source.texts())
    assert not (file.parent / "ran").exists() and len(source.digest()) == 64
    mark(file)
    assert list(source.texts()) == ["one", "two é"]


def test_the_file_chosen_is_known_by_any_of_its_names(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    mark(file)
    (file.parent / "linked.py").symlink_to(file)
    assert was_chosen(file.parent / "linked.py")
    assert list(PythonGenerator("made.py").texts()) == ["one", "two é"]


def test_documents_that_are_none(file):
    mark(file)
    source = PythonGenerator(str(file), "bad")
    first, number, half, last = source.read_unit(source.units()[0])
    assert (first, last) == ("good", "good")
    assert "document 2 of bad(): a int" in str(number) and "document 3 of bad(): it holds half of a" in str(half)


def test_a_function_that_fails_is_a_mistake_and_never_skipped(file):
    mark(file)
    line = CORPUS_FILE.split("\n").index('    raise OSError(5, "the network is away")') + 1
    with pytest.raises(UserError, match=rf"failing\(\) failed after 1 documents: line {line}, OSError"):
        list(PythonGenerator(str(file), "failing").texts("skip"))
    with pytest.raises(UserError, match=r"has no function none\(\)"):
        list(PythonGenerator(str(file), "none").texts())
    with pytest.raises(UserError, match="no file"):
        list(PythonGenerator(str(file.with_name("none.py"))).texts())
    file.write_text("def documents(:")
    with pytest.raises(UserError, match="invalid syntax"):
        list(PythonGenerator(str(file)).texts())


def test_the_digest_follows_file_function_and_version(file):
    mark(file)
    digests = {PythonGenerator(str(file), *rest).digest() for rest in ((), ("bad",), ("documents", "2"))}
    file.write_text(CORPUS_FILE + "\n")
    assert len(digests | {PythonGenerator(str(file)).digest()}) == 4
