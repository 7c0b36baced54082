"""A user's files by path and digest, in this process and in those that it starts."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys

import pytest

from t5x_like.core.config import Unknown, diff, flatten, from_json, override, to_json, to_plain
from t5x_like.core.errors import UserError
from t5x_like.core.loading import code_of, load_module
from t5x_like.input_pipeline.config import Bytes, Corpus, Filters, TextFiles

OWN = """
from dataclasses import dataclass
from t5x_like.config import Filters

@dataclass(frozen=True)
class Strict(Filters):
    level: int = 3
"""


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "strict.py").write_text(OWN)
    kind = load_module(tmp_path / "strict.py").Strict
    return Corpus("own", TextFiles(("x",)), Bytes(), "none", "made up", filters=kind(level=5))


@pytest.mark.parametrize("files", [{"a.py": "b.py", "b.py": "a.py"}, {"a.py": "a.py"}])
def test_files_that_load_each_other_are_refused(tmp_path, files):
    for name, other in files.items():
        (tmp_path / name).write_text(f"from t5x_like.config import code\nother = code('{other}')\n")
    with pytest.raises(UserError, match="a.py: is loaded by a file that it loads"):
        load_module(tmp_path / "a.py")
    (tmp_path / "a.py").write_text("x = 1")
    assert load_module(tmp_path / "a.py").x == 1


def test_a_class_of_a_file_goes_to_json_and_back(corpus):
    again = from_json(Corpus, to_json(corpus))
    assert again == corpus and type(again.filters) is type(corpus.filters)
    assert to_plain(corpus)["filters"]["code"]["file"] == "strict.py"
    assert override(corpus, ["filters=Strict"]).filters.level == 3
    assert type(override(corpus, ["filters=Filters"]).filters) is Filters


def test_what_is_not_known_keeps_its_json_and_is_not_used(corpus):
    text = to_json(corpus).replace(code_of(type(corpus.filters)).sha256, "0" * 64)
    other = from_json(Corpus, text)
    assert isinstance(other.filters, Unknown) and to_json(other) == text
    assert list(diff(corpus, other)) == ["filters.code"] and flatten(other)["filters.level"] == 5
    changed = override(other, ["heldout=0.1"])
    assert changed.heldout == 0.1 and changed.filters == other.filters
    for use in (lambda: other.filters.level, lambda: override(other, ["filters.level=1"])):
        with pytest.raises(UserError, match="filters: Strict is defined in strict.py .sha256 0{64}., which has not"):
            use()
    assert to_json(other) == text
    with pytest.raises(UserError, match="filters.code: no such field"):
        override(other, ["filters.code=x"])


CHILD = """
import pickle, sys
from t5x_like.core.config import from_json
from t5x_like.input_pipeline.config import Corpus
made = pickle.load(sys.stdin.buffer) if sys.argv[1] == "pickle" else from_json(Corpus, sys.argv[1])
print(type(made.filters).__name__, getattr(made.filters, "plain", made.filters))
"""


@pytest.mark.parametrize("how", ["json", "pickle"])
def test_processes_that_this_one_starts_know_what_it_pickles(corpus, how):
    argument = "pickle" if how == "pickle" else to_json(corpus)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, argument], input=pickle.dumps(corpus), capture_output=True, env=environment
    )
    assert done.returncode == 0, done.stderr.decode()
    said = done.stdout.decode().split()[0]
    assert said == ("Unknown" if how == "json" else "Strict")


def test_the_digest_is_of_the_bytes_that_were_run(tmp_path):
    file = tmp_path / "changing.py"
    file.write_text("from pathlib import Path\nPath(__file__).write_text('x = 5')\nx = 1\nclass A:\n    pass\n")
    module = load_module(file)
    assert module.x == 1 and code_of(module.A).source.startswith(b"from pathlib")
    assert load_module(file).x == 5


@pytest.mark.parametrize("name", ["type", "code"])
def test_fields_that_json_needs_itself(tmp_path, name):
    (tmp_path / "own.py").write_text(OWN.replace("level", name))
    with pytest.raises(UserError, match=f"Strict.{name}: is a name that"):
        load_module(tmp_path / "own.py").Strict()
    corpus = Corpus("own", TextFiles(("x",)), Bytes(), "none", "made up")
    with pytest.raises(UserError, match=f"Strict.{name}: is a name that"):
        override(corpus, ["filters=Strict"])


def test_a_file_that_is_none(tmp_path):
    with pytest.raises(UserError, match="cannot be read: No such file"):
        load_module(tmp_path / "none.py")
    (tmp_path / "text.txt").write_text("x = 1")
    with pytest.raises(UserError, match="is not a Python file"):
        load_module(tmp_path / "text.txt")
