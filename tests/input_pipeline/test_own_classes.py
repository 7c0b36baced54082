"""A source, a vocabulary and an objective of a user's own, in the corpus or run file, take part as shipped ones do."""

import numpy as np
import pytest

from t5x_like.core.config import from_json, structure, to_json
from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.batches.pipeline import Batches
from t5x_like.input_pipeline.config import Corpus, DataConfig
from t5x_like.input_pipeline.prepare.prepare import prepare
from t5x_like.input_pipeline.prepare.vocabulary import load_tokenizer
from t5x_like.input_pipeline.recipes import load_recipe
from t5x_like.objectives import Objective

OWN = """
from dataclasses import dataclass
from typing import ClassVar

from t5x_like.config import Corpus, Example, Objective, Source, TokenizerConfig, UserError


@dataclass(frozen=True)
class Squares(Source):
    count: int = 100

    def read(self, unit):
        for number in range(self.count):
            yield f"{number} times {number} is {number * number}"
        yield UserError("squares", "no more")


@dataclass(frozen=True)
class Letters(TokenizerConfig):
    path: ClassVar[str] = ""
    vocab_size: ClassVar[int] = 259

    def open(self):
        from t5x_like.input_pipeline.tokenizers.bytes import ByteTokenizer

        return ByteTokenizer()


@dataclass(frozen=True)
class Backwards(Objective):
    shapes: ClassVar = ("decoder-only",)

    def check(self, tokenizer, data, shape):
        pass

    def example(self, tokens, rng, tokenizer):
        return Example(tokens[:0], tokens[::-1])


def corpus():
    return Corpus("squares", Squares(), Letters(), "none", "arithmetic", heldout=0.1, bad_documents="skip")
"""


@pytest.fixture
def corpus(tmp_path) -> Corpus:
    (tmp_path / "own.py").write_text(OWN)
    return load_recipe(tmp_path / "own.py")


def test_prepared_and_batched(tmp_path, corpus):
    data = DataConfig(corpus, 32, cache=str(tmp_path / "cache"))
    assert from_json(DataConfig, to_json(data)) == data
    tokenizer = load_tokenizer(corpus, data.cache)
    cache = prepare(corpus, corpus.tokenizer, data.cache, processes=2)
    assert sum(split["documents"] for split in cache.manifest["splits"].values()) == 100
    assert any("no more" in line for line in cache.left_out())
    backwards = structure(Objective, "Backwards")
    batches = Batches({"squares": cache.split("train")}, tokenizer, backwards, data, "decoder-only", 4, 0)
    row = batches.batch(0)["targets"][0]
    assert "semit" in tokenizer.decode(row.tolist()) and row.dtype == np.int32


def test_another_code_is_another_cache(tmp_path, corpus):
    first = prepare(corpus, corpus.tokenizer, str(tmp_path / "cache"))
    (tmp_path / "own.py").write_text(OWN.replace("times", "by"))
    again = load_recipe(tmp_path / "own.py")
    second = prepare(again, again.tokenizer, str(tmp_path / "cache"))
    assert first.path != second.path and first.fingerprint != second.fingerprint


def test_a_class_that_says_nothing_is_told(corpus):
    with pytest.raises(TypeError, match="does not say how it is read"):
        list(type(corpus.source).__mro__[1].read(corpus.source, None))
    with pytest.raises(UserError, match="(?s)data.corpus.source: got 'Circles'.*Squares"):
        plain = {"name": "c", "source": "Circles", "tokenizer": "Bytes", "licence": "", "origin": ""}
        structure(Corpus, plain, "data.corpus")
