"""What each objective asks of lengths, shapes and tokenizers, and that its examples are as long as it says."""

import dataclasses
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.config import Bytes, Corpus, DataConfig, Shape, TextFiles
from t5x_like.input_pipeline.tokenizers import ByteTokenizer
from t5x_like.objectives import Autoregressive, MaskedLM, PrefixLM, SpanCorruption

CORPUS = Corpus("memory", TextFiles(("nowhere",)), Bytes(), "none", "made up")
TOKENIZER = ByteTokenizer()
KINDS = [(each(), shape) for each in (SpanCorruption, MaskedLM, Autoregressive, PrefixLM) for shape in each.shapes]


def test_every_shape_of_model_has_an_objective():
    assert {shape for _, shape in KINDS} == set(get_args(Shape))


def test_span_corruption_at_the_lengths_of_t5():
    objective, data = SpanCorruption(), DataConfig(CORPUS, 512)
    objective.check(TOKENIZER, data, "encoder-decoder")
    assert objective.piece_length(data, "encoder-decoder") == 568
    assert objective.capacity(data, "encoder-decoder") == (512, 114)
    assert objective.capacity(DataConfig(CORPUS, 512, 128), "encoder-decoder") == (512, 128)
    tokens = np.arange(10, 578)
    example = objective.example(tokens, np.random.default_rng(0), TOKENIZER)
    assert len(example.inputs) == 512 and len(example.targets) == 114 and example.weights is None


@given(st.sampled_from(KINDS), st.integers(8, 200), st.integers(0, 2**32), st.data())
@settings(max_examples=120, deadline=None)
def test_no_example_is_longer_than_lengths_says_and_full_pieces_fit_a_row(kind, input_length, seed, draw):
    objective, shape = kind
    data = DataConfig(CORPUS, input_length)
    full = objective.piece_length(data, shape)
    size = draw.draw(st.integers(objective.minimum_length, full))
    example = objective.example(np.arange(10, 10 + size), np.random.default_rng(seed), TOKENIZER)
    if shape == "encoder-decoder":
        sides = (len(example.inputs), len(example.targets))
    elif shape == "decoder-only":
        sides = (len(example.inputs) + len(example.targets),)
    else:
        assert example.weights is not None and len(example.inputs) == len(example.weights)
        sides = (len(example.targets),)
    assert np.all(np.array(sides) <= objective.lengths(size, shape))
    assert np.all(np.array(objective.lengths(size, shape)) <= objective.capacity(data, shape))


def test_prefix_and_rest_are_the_text():
    tokens = np.arange(10, 30)
    example = PrefixLM().example(tokens, np.random.default_rng(0), TOKENIZER)
    assert len(example.inputs) and len(example.targets)
    assert np.array_equal(np.concatenate([example.inputs, example.targets]), tokens)
    alone = PrefixLM().example(tokens[:1], np.random.default_rng(0), TOKENIZER)
    assert (len(alone.inputs), len(alone.targets)) == (1, 0)
    assert PrefixLM().piece_length(DataConfig(CORPUS, 64, 32), "encoder-decoder") == 33


def test_autoregression_predicts_every_token():
    example = Autoregressive().example(np.arange(5), np.random.default_rng(0), TOKENIZER)
    assert example.targets.tolist() == [0, 1, 2, 3, 4] and not len(example.inputs)


class NoSentinels(ByteTokenizer):
    sentinel_ids = ()
    mask_id = None


class NoEnd(ByteTokenizer):
    eos_id = -1


@pytest.mark.parametrize(("objective", "shape"), KINDS)
def test_a_tokenizer_without_eos_suits_none(objective, shape):
    with pytest.raises(UserError, match="no EOS id"):
        objective.check(NoEnd(), DataConfig(CORPUS, 64), shape)


def test_mistakes():
    pair, data = "encoder-decoder", DataConfig(CORPUS, 512)
    with pytest.raises(UserError, match="are cut into 28 spans"):
        SpanCorruption().check(NoSentinels(), data, pair)
    with pytest.raises(UserError, match="data.target_length: 100, but .* makes targets of 114"):
        SpanCorruption().check(TOKENIZER, DataConfig(CORPUS, 512, 100), pair)
    with pytest.raises(UserError, match="no piece <mask>"):
        MaskedLM().check(NoSentinels(), data, "encoder-only")
    alone: list[tuple[Any, Any]] = [
        (MaskedLM(), "encoder-only"),
        (Autoregressive(), "decoder-only"),
        (PrefixLM(), "decoder-only"),
    ]
    for objective, shape in alone:
        with pytest.raises(UserError, match="data.target_length"):
            objective.check(TOKENIZER, DataConfig(CORPUS, 512, 64), shape)
    for wrong in (0.0, 1.0, -0.5):
        with pytest.raises(UserError, match="objective.noise_density"):
            SpanCorruption(noise_density=wrong)
        with pytest.raises(UserError, match="objective.mask_rate"):
            MaskedLM(wrong)
    with pytest.raises(UserError, match="objective.mean_span_length"):
        SpanCorruption(mean_span_length=0.5)


def test_configs_are_plain_data():
    assert dataclasses.asdict(SpanCorruption()) == {"noise_density": 0.15, "mean_span_length": 3.0}
    assert SpanCorruption() == SpanCorruption(0.15, 3.0)
