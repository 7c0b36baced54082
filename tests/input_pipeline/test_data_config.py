"""Data configs name the wrong field, and load without numpy or any reader."""

import subprocess
import sys
from typing import Any

import pytest

from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.config import Bytes, Corpus, DataConfig, JsonLines, SentencePiece, TextFiles, cache_folder

CORPUS = Corpus("name", TextFiles(("x",)), Bytes(), "none", "made up")
WRONG: tuple[Any, ...] = (64.0, "tight", "a.txt", "word", "wordpiece")  # what a type checker would refuse


@pytest.mark.parametrize(
    ("make", "where"),
    [
        (lambda: DataConfig(CORPUS, 3), "data.input_length"),
        (lambda: DataConfig(CORPUS, WRONG[0]), "data.input_length"),
        (lambda: DataConfig(CORPUS, 64, -1), "data.target_length"),
        (lambda: DataConfig(CORPUS, 64, packing=WRONG[1]), "data.packing"),
        (lambda: DataConfig(CORPUS, 64, read_threads=-1), "data.read_threads"),
        (lambda: DataConfig(CORPUS, 64, prefetch_batches=0), "data.prefetch_batches"),
        (lambda: TextFiles(()), "data.corpus.source.paths"),
        (lambda: TextFiles(WRONG[2]), "data.corpus.source.paths"),
        (lambda: JsonLines(()), "data.corpus.source.paths"),
        (lambda: TextFiles(("a",), WRONG[3]), "data.corpus.source.documents"),
        (lambda: SentencePiece(300), "data.corpus.tokenizer.vocab_size"),
        (lambda: SentencePiece(8000, WRONG[4]), "data.corpus.tokenizer.model"),
        (lambda: SentencePiece(8000, sentinels=-1), "data.corpus.tokenizer.sentinels"),
        (lambda: Corpus("a/b", TextFiles(("x",)), Bytes(), "", ""), "data.corpus.name"),
        (lambda: Corpus("a", TextFiles(("x",)), Bytes(), "", "", 1.0), "data.corpus.heldout"),
    ],
)
def test_mistakes_name_the_field(make, where):
    with pytest.raises(UserError) as caught:
        make()
    assert caught.value.where == where and caught.value.allowed


def test_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("T5X_LIKE_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path and str(cache_folder("/else")) == "/else"
    monkeypatch.delenv("T5X_LIKE_CACHE")
    assert cache_folder().name == "t5x-like" and cache_folder("~/x").is_absolute()


@pytest.mark.parametrize("given", [True, False])
def test_a_cache_at_an_address(monkeypatch, given):
    """Copies lie in the user's cache; an address of another kind is refused."""
    monkeypatch.setenv("T5X_LIKE_CACHE", "gs://bucket/x")
    copies = cache_folder("gs://bucket/y" if given else "")
    assert str(copies).endswith(".cache/t5x-like/copies/gs-bucket-" + ("y" if given else "x"))
    monkeypatch.setenv("T5X_LIKE_CACHE", "az://bucket/x")
    with pytest.raises(UserError, match="gs://BUCKET") as caught:
        cache_folder("az://bucket/y" if given else "")
    assert caught.value.where == ("data.cache" if given else "$T5X_LIKE_CACHE")


def test_configs_and_objectives_import_nothing_heavy():
    program = (
        "import sys\n"
        "import t5x_like.input_pipeline.config, t5x_like.input_pipeline.recipes, t5x_like.objectives\n"
        "heavy = {'numpy', 'grain', 'sentencepiece', 'tensorflow_datasets', 'jax'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "import t5x_like.input_pipeline.batches.pipeline, t5x_like.input_pipeline.prepare.prepare\n"
        "heavy = {'grain', 'sentencepiece', 'tensorflow_datasets', 'jax'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
