"""Span corruption and masking against published figures, and against what they are meant to do."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.corrupt import (
    masked_lm,
    noise_counts,
    prefix_split,
    random_segmentation,
    raw_length_for,
    span_corruption,
    span_lengths,
)

EOS = 1
SENTINELS = tuple(range(1000, 900, -1))


@pytest.mark.parametrize(
    ("input_length", "density", "mean", "raw", "targets"),
    [
        (512, 0.15, 3.0, 568, 114),
        (1024, 0.15, 3.0, 1137, 229),
        (2048, 0.15, 3.0, 2274, 456),
        (512, 0.15, 8.0, 588, 100),
        (512, 0.5, 3.0, 766, 512),
        (512, 0.5, 8.0, 908, 512),
        (512, 0.15, 64.0, 600, 92),
        (512, 0.5, 64.0, 1006, 512),
    ],
)
def test_lengths_are_those_of_t5_and_ul2(input_length, density, mean, raw, targets):
    assert raw_length_for(input_length, density, mean) == raw
    assert span_lengths(raw, density, mean) == (input_length, targets)


@given(st.integers(4, 300), st.floats(0.05, 0.9), st.floats(1.0, 20.0))
@settings(max_examples=60, deadline=None)
def test_no_shorter_piece_exceeds_the_lengths_of_a_full_one(input_length, density, mean):
    raw = raw_length_for(input_length, density, mean)
    lengths = [span_lengths(length, density, mean) for length in range(2, raw + 1)]
    assert max(inputs for inputs, _ in lengths) <= input_length
    assert max(targets for _, targets in lengths) == lengths[-1][1]


@given(st.integers(2, 400), st.floats(0.02, 0.98), st.floats(1.0, 20.0), st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_inputs_and_targets_recombine_to_the_text(length, density, mean, seed):
    tokens = np.arange(2000, 2000 + length)
    sentinels = tuple(range(1000, 500, -1))
    inputs, targets = span_corruption(tokens, np.random.default_rng(seed), density, mean, sentinels, EOS)
    assert (len(inputs), len(targets)) == span_lengths(length, density, mean)
    assert inputs.dtype == targets.dtype == np.int32
    assert inputs[-1] == targets[-1] == EOS
    assert inputs[0] >= 2000, "the text begins with a kept token"
    assert inputs[-2] < 2000, "the text ends in noise"
    spans: dict[int, list[int]] = {}
    current: list[int] = []
    for token in targets[:-1].tolist():
        if token < 2000:
            current = spans[token] = []
        else:
            current.append(token)
    assert all(spans.values()), "no span is empty"
    assert list(spans) == list(sentinels[: len(spans)])
    rebuilt = [word for token in inputs[:-1].tolist() for word in (spans[token] if token < 2000 else [token])]
    assert rebuilt == tokens.tolist()


def test_a_token_id_of_zero_is_kept():
    inputs, targets = span_corruption(np.zeros(40, np.uint16), np.random.default_rng(0), 0.15, 3.0, SENTINELS, EOS)
    assert np.count_nonzero(inputs == 0) + np.count_nonzero(targets == 0) == 40


def test_every_segmentation_is_equally_likely():
    rng, draws = np.random.default_rng(0), 6000
    counts = Counter(tuple(random_segmentation(6, 3, rng).tolist()) for _ in range(draws))
    assert len(counts) == 10  # 5 choose 2
    assert all(sum(parts) == 6 and min(parts) >= 1 for parts in counts)
    expected = draws / 10
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 27.9  # chi squared, 9 degrees, 0.1%


def test_noise_is_spread_evenly_over_the_inner_positions():
    rng, noise = np.random.default_rng(1), np.zeros(100)
    for _ in range(3000):
        _, targets = span_corruption(np.arange(2000, 2100), rng, 0.15, 3.0, SENTINELS, EOS)
        noise[targets[targets >= 2000] - 2000] += 1
    assert noise[0] == 0 and noise[-1] == 3000
    assert noise.sum() == 15 * 3000  # the density is exact in every example
    share = noise[20:80] / 3000  # away from the borders, which are fixed
    assert abs(share.mean() - share[:30].mean()) < 3 * np.sqrt(0.15 * 0.85 / (3000 * 30)) * np.sqrt(3)


def test_too_few_sentinels_and_too_few_tokens_are_the_users_mistakes():
    with pytest.raises(UserError, match=r"5 sentinels, but 568 tokens are cut into 28 spans"):
        span_corruption(np.arange(568), np.random.default_rng(0), 0.15, 3.0, SENTINELS[:5], EOS)
    with pytest.raises(UserError, match="at least 2"):
        noise_counts(1, 0.15, 3.0)
    with pytest.raises(UserError, match="data.input_length"):
        raw_length_for(3, 0.15, 3.0)


def test_masking_has_the_proportions_of_bert():
    vocabulary, mask, special = 500, 7, (0, 1, 2)
    rng = np.random.default_rng(3)
    length, repeats = 64, 4000
    tokens = rng.integers(10, vocabulary, length)
    tokens[-1] = EOS
    chosen = masked = kept = 0
    for _ in range(repeats):
        inputs, targets, weights = masked_lm(tokens, rng, 0.15, vocabulary, mask, special)
        assert np.array_equal(targets, tokens)
        assert weights[-1] == 0 and inputs[-1] == EOS
        assert np.array_equal(inputs[weights == 0], tokens[weights == 0])
        assert not np.isin(inputs[weights == 1], special).any()
        chosen += int(weights.sum())
        masked += int(np.sum(inputs[weights == 1] == mask))
        kept += int(np.sum((inputs == tokens)[weights == 1]))
    candidates = (length - 1) * repeats
    assert abs(chosen / candidates - 0.15) < 3 * np.sqrt(0.25 / repeats) / (length - 1)  # rounding is the only noise
    assert abs(masked / chosen - 0.8) < 3 * np.sqrt(0.8 * 0.2 / chosen)
    random_hits = 0.1 / (vocabulary - 4)  # a random id that happens to be the same
    assert abs(kept / chosen - 0.1 - random_hits) < 3 * np.sqrt(0.1 * 0.9 / chosen)


def test_masking_nothing_that_may_be_masked_does_nothing():
    inputs, _, weights = masked_lm(np.array([EOS, EOS]), np.random.default_rng(0), 0.5, 20, 7, (0, EOS))
    assert inputs.tolist() == [EOS, EOS] and weights.sum() == 0


def test_prefix_is_uniform():
    rng = np.random.default_rng(0)
    counts = Counter(prefix_split(6, rng) for _ in range(5000))
    assert set(counts) == {1, 2, 3, 4, 5}
    assert sum((count - 1000) ** 2 / 1000 for count in counts.values()) < 18.5  # chi squared, 4 degrees, 0.1%
    assert prefix_split(2, rng) == 1
