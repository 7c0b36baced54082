"""Every objective, some with other fields too, and each shape of model that it can train: what tests go through."""

from __future__ import annotations

from fake_tokenizer import FakeTokenizer

from t5x_like.input_pipeline.config import Bytes, Corpus, Shape, TextFiles
from t5x_like.objectives import (
    Autoregressive,
    FillInTheMiddle,
    IidDenoising,
    MaskedLM,
    PermutationLM,
    PrefixLM,
    SpanCorruption,
)
from t5x_like.objectives.base import Objective

CORPUS = Corpus("memory", TextFiles(("nowhere",)), Bytes(), "none", "made up")
TOKENIZER = FakeTokenizer()
OBJECTIVES: list[Objective] = [
    SpanCorruption(),
    SpanCorruption(0.5, 8.0, "[NLG]"),
    IidDenoising(),
    IidDenoising(0.5),
    MaskedLM(),
    MaskedLM(whole_words=True),
    PermutationLM(),
    PermutationLM(0.9),
    Autoregressive(),
    Autoregressive(2, 1.0),
    PrefixLM(),
    PrefixLM("[S2S]"),
    FillInTheMiddle(),
    FillInTheMiddle(1.0, 0.0, loss_on="middle"),
]
KINDS: list[tuple[Objective, Shape]] = [(each, shape) for each in OBJECTIVES for shape in each.shapes]
NAMES = [f"{type(each).__name__}-{i}-{shape}" for i, (each, shape) in enumerate(KINDS)]
