"""Corpus files are found beside the run file, else among those carried with the library."""

import pytest

from t5x_like.core.errors import UserError
from t5x_like.core.loading import shipped
from t5x_like.input_pipeline.config import Corpus, Mixture, Part, SentencePiece, corpora
from t5x_like.input_pipeline.recipes import load_recipe, recipe

CORPUS_FILE = """
from t5x_like.input_pipeline.config import Bytes, Corpus, TextFiles

def corpus(name="mine"):
    return Corpus(name, TextFiles(("x",)), Bytes(), "none", "made up")
"""


def test_every_corpus_carried_with_the_library_loads_and_says_its_licence():
    files = sorted(shipped("data").glob("*.py"))
    assert {"sotu", "python_source"} <= {file.stem for file in files}
    for file in files:
        for corpus in corpora(load_recipe(file)):
            assert isinstance(corpus, Corpus) and corpus.licence and corpus.origin
        assert "Licence" in file.read_text() and "Origin" in file.read_text()


def test_the_path_is_relative_to_the_calling_file():
    corpus = recipe("../../data/sotu.py", vocab_size=1000)
    assert isinstance(corpus.tokenizer, SentencePiece) and corpus.tokenizer.vocab_size == 1000


def test_a_file_of_ones_own_comes_before_one_that_is_carried(tmp_path):
    (tmp_path / "sotu.py").write_text(CORPUS_FILE)
    (tmp_path / "run.py").write_text(
        "from t5x_like.input_pipeline.recipes import recipe\nCORPUS = recipe('sotu.py', name='own')\n"
    )
    scope: dict = {"__file__": str(tmp_path / "run.py"), "__name__": "run"}
    exec(compile((tmp_path / "run.py").read_text(), "run.py", "exec"), scope)
    assert scope["CORPUS"].name == "own"
    assert recipe("../nowhere/sotu.py").name == "sotu"


def test_mistakes(tmp_path):
    with pytest.raises(UserError, match="did you mean 'sotu'"):
        recipe("../data/sotou.py")
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(UserError, match="has no function corpus"):
        recipe(str(tmp_path / "empty.py"))
    (tmp_path / "wrong.py").write_text("def corpus(): return 3")
    with pytest.raises(UserError, match="returned a int"):
        recipe(str(tmp_path / "wrong.py"))
    with pytest.raises(UserError, match="unexpected keyword"):
        recipe(str(tmp_path / "wrong.py"), vocab_size=3)


def test_a_mixture_of_corpus_files(tmp_path):
    (tmp_path / "mine.py").write_text(CORPUS_FILE)
    (tmp_path / "both.py").write_text(
        "from t5x_like.input_pipeline.config import Bytes, Mixture, Part\n"
        "from t5x_like.input_pipeline.recipes import recipe\n\n"
        "def corpus(rate=2.0):\n"
        "    return Mixture('both', (Part(recipe('mine.py')), Part(recipe('sotu.py'), rate)), Bytes())\n"
    )
    mixture = recipe(str(tmp_path / "both.py"), rate=3.0)
    assert isinstance(mixture, Mixture) and [part.rate for part in mixture.parts] == [1.0, 3.0]
    assert mixture.parts[0] == Part(load_recipe(tmp_path / "mine.py"))
    assert [corpus.name for corpus in corpora(mixture)] == ["mine", "sotu"]
