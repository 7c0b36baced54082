"""Small corpora, tokenizers and splits that several tests of the input share."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from t5x_like.input_pipeline.config import Corpus, SentencePiece, TextFiles
from t5x_like.input_pipeline.prepare.token_cache import TokenSplit

_WORDS = "the quick brown fox jumps over a lazy dog while seven wizards box with their jugs of liquor on Monday".split()


def make_text(seed: int, words: int) -> str:
    """English-looking text with lines; the same for the same seed."""
    draw = random.Random(seed)
    return "".join(draw.choice(_WORDS) + draw.choice((" ", " ", " ", ", ", ".\n")) for _ in range(words))


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return [make_text(seed, 40 + 37 * (seed % 7)) for seed in range(24)]


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory, texts) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for number, text in enumerate(texts):
        (folder / f"{number:02}.txt").write_text(text)
    return folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def corpus(text_folder) -> Corpus:
    return Corpus(
        name="tiny",
        source=TextFiles((str(text_folder),)),
        tokenizer=SentencePiece(vocab_size=420, model="bpe"),
        licence="none",
        origin="made up",
        heldout=0.2,
    )


@pytest.fixture
def split_of():
    """Makes a split in memory of documents with the given lengths; ids count up from 10, so each token is known."""

    def make(*lengths: int, first: int = 10) -> TokenSplit:
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return TokenSplit("train", np.arange(first, first + offsets[-1], dtype=np.uint16), offsets)

    return make
