"""What objectives refuse: vocabularies that lack an id or have it twice, lengths that leave no room, shares that are
none; each with a message that names the field."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import pytest
from all_objectives import CORPUS, KINDS, NAMES, TOKENIZER

from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.config import DataConfig, Shape
from t5x_like.input_pipeline.tokenizers.bytes import ByteTokenizer
from t5x_like.objectives import (
    UL2,
    FillInTheMiddle,
    IidDenoising,
    MaskedLM,
    PermutationLM,
    PrefixLM,
    SpanCorruption,
)
from t5x_like.objectives.base import Objective


@pytest.mark.parametrize(("objective", "shape"), KINDS, ids=NAMES)
def test_a_vocabulary_must_have_what_is_used_once_each(objective, shape):
    data = DataConfig(CORPUS, 64)
    objective.check(TOKENIZER, data, shape)
    objective.check(dataclasses.replace(TOKENIZER, pad_id=1), data, shape)  # padding may be EOS
    with pytest.raises(UserError, match="no EOS id"):
        objective.check(dataclasses.replace(TOKENIZER, eos_id=-1), data, shape)
    with pytest.raises(UserError, match="no padding id"):
        objective.check(dataclasses.replace(TOKENIZER, pad_id=1000), data, shape)


@pytest.mark.parametrize(("objective", "shape"), [kind for kind in KINDS if not getattr(kind[0], "mode", "")])
def test_bytes_suit_all_objectives_without_modes(objective, shape):
    """Although ByT5's sentinels and mask share their ids with bytes; the words of a text are known, too."""
    tokenizer = ByteTokenizer()
    objective.check(tokenizer, DataConfig(CORPUS, 256), shape)
    tokens = np.array(tokenizer.encode("one word after another, " * 4))
    example = objective.example(tokens, np.random.default_rng(0), tokenizer)
    if isinstance(objective, MaskedLM) and objective.whole_words:
        text = "one word after another, " * 4
        words = [match.span() for match in re.finditer(r" \w+|\w+|,", text)]
        assert example.weights is not None and example.weights.sum() > 0
        assert all(len(set(example.weights[a:b].tolist())) == 1 for a, b in words)


def test_mistakes():
    pair, data = "encoder-decoder", DataConfig(CORPUS, 512)
    bare = dataclasses.replace(TOKENIZER, sentinel_ids=(), mask_id=None, modes=())
    with pytest.raises(UserError, match="are cut into 28 spans"):
        SpanCorruption().check(bare, data, pair)
    few = dataclasses.replace(TOKENIZER, sentinel_ids=tuple(range(100, 200)))  # as published vocabularies have
    IidDenoising().check(few, data, pair)
    with pytest.raises(UserError, match="sentinels: 100, but 1023 tokens .* runs"):
        IidDenoising().check(few, DataConfig(CORPUS, 1024), pair)
    with pytest.raises(UserError, match="sentinels: 100, but 765 tokens .* into 127 spans"):
        UL2().check(few, data, pair)
    with pytest.raises(UserError, match="data.target_length: 100, but .* makes targets of 114"):
        SpanCorruption().check(TOKENIZER, DataConfig(CORPUS, 512, 100), pair)
    with pytest.raises(UserError, match="data.target_length: 150, but"):
        IidDenoising().check(TOKENIZER, DataConfig(CORPUS, 512, 150), pair)
    for objective in (MaskedLM(), PermutationLM()):
        with pytest.raises(UserError, match="no piece <mask>"):
            objective.check(bare, data, "encoder-only")
    modeless = dataclasses.replace(TOKENIZER, modes=())
    moded: list[tuple[Objective, Shape]] = [
        (SpanCorruption(mode="[NLU]"), pair), (PrefixLM("[S2S]"), pair), (UL2(), "decoder-only"),
    ]  # fmt: skip
    for objective, shape in moded:
        with pytest.raises(UserError, match=r"mode: '\[\w+\]' is no piece of the vocabulary") as caught:
            objective.check(modeless, data, shape)
        assert "SentencePiece(symbols=('[NLU]', '[NLG]', '[S2S]'))" in caught.value.suggestion
    assert caught.value.where == "objective.denoisers.0.mode"
    with pytest.raises(UserError, match="'<extra_id_0>' is no piece"):
        FillInTheMiddle().check(bare, data, "decoder-only")
    with pytest.raises(UserError, match="three different pieces"):
        FillInTheMiddle(pieces=("[NLU]", "[NLU]", "[NLG]")).check(TOKENIZER, data, "decoder-only")
    with pytest.raises(UserError, match="less than one of the"):
        PermutationLM(0.001).check(TOKENIZER, data, "encoder-only")
    unworded = dataclasses.replace(TOKENIZER)
    unworded.__dict__["word_starts"] = np.zeros(1000, bool)
    MaskedLM().check(unworded, data, "encoder-only")
    with pytest.raises(UserError, match="begins a word"):
        MaskedLM(whole_words=True).check(unworded, data, "encoder-only")


@pytest.mark.parametrize(("objective", "shape"), KINDS, ids=NAMES)
def test_lengths_that_do_not_suit(objective, shape):
    if shape != "encoder-decoder":
        with pytest.raises(UserError, match="data.target_length: 64, but"):
            objective.check(TOKENIZER, DataConfig(CORPUS, 512, 64), shape)
    shortest = {FillInTheMiddle: 5, SpanCorruption: 6 if shape == "decoder-only" else 4}.get(type(objective), 4)
    shortest += isinstance(objective, SpanCorruption) and bool(objective.mode)
    if shortest > 4:
        with pytest.raises(UserError, match="data.input_length: 4"):
            objective.check(TOKENIZER, DataConfig(CORPUS, 4), shape)
    if not isinstance(objective, PermutationLM):
        objective.check(TOKENIZER, DataConfig(CORPUS, shortest), shape)


def test_ids_that_collide():
    data = DataConfig(CORPUS, 64)
    cases: list[tuple[Any, Any, dict[str, Any], str]] = [
        (MaskedLM(), "encoder-only", {"mask_id": 1}, "EOS and <mask> have the same id, 1"),
        (MaskedLM(), "encoder-only", {"mask_id": 0}, "padding and <mask>"),
        (MaskedLM(), "encoder-only", {"mask_id": 1000}, "no <mask> id"),
        (SpanCorruption(), "encoder-decoder", {"sentinel_ids": (5, 6, 5, *range(10, 90))}, "<extra_id_0> and <extra_"),
        (IidDenoising(), "encoder-decoder", {"sentinel_ids": (5, 1, *range(10, 90))}, "EOS and <extra_id_1>"),
        (SpanCorruption(mode="[NLU]"), "decoder-only", {"sentinel_ids": (204, *range(3, 90))}, r"id_0> and \[NLU\]"),
        (PrefixLM("[S2S]"), "decoder-only", {"vocab_size": 205}, r"no \[S2S\] id \(it is 206 of 205\)"),
    ]
    for objective, shape, fields, message in cases:
        with pytest.raises(UserError, match=message):
            objective.check(dataclasses.replace(TOKENIZER, **fields), data, shape)
    # What an objective does not use may coincide: ByT5's mask is one of its sentinels.
    SpanCorruption().check(dataclasses.replace(TOKENIZER, mask_id=202), data, "encoder-decoder")


def test_fields_out_of_range():
    wrong: list[tuple[Any, str]] = [
        *[(lambda w=w: SpanCorruption(w), "objective.noise_density") for w in (0.0, 1.0, -0.5)],
        *[(lambda w=w: IidDenoising(w), "objective.noise_density") for w in (0.0, 1.0)],
        *[(lambda w=w: MaskedLM(w), "objective.mask_rate") for w in (0.0, 1.0)],
        *[(lambda w=w: PermutationLM(w), "objective.predicted") for w in (0.0, 1.0)],
        (lambda: SpanCorruption(mean_span_length=0.5), "objective.mean_span_length"),
        (lambda: FillInTheMiddle(1.5), "objective.rate"),
        (lambda: FillInTheMiddle(spm_rate=-0.1), "objective.spm_rate"),
        (lambda: FillInTheMiddle(loss_on="suffix"), "objective.loss_on"),
        (lambda: UL2(()), "objective.denoisers"),
        (lambda: UL2(rates=(1.0,)), "objective.rates: 1 for 7"),
        (lambda: UL2((PrefixLM(),), (0.0,)), "objective.rates"),
        (lambda: UL2((PrefixLM(),), (float("nan"),)), "objective.rates"),
    ]
    for make, message in wrong:
        with pytest.raises(UserError, match=message):
            make()
