"""Span corruption against published figures, and text with gaps against what it is meant to be."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_like.core.errors import UserError
from t5x_like.objectives.iid_denoising import iid_denoising, iid_limits
from t5x_like.objectives.span_corruption import (
    noise_counts,
    random_segmentation,
    raw_length_for,
    raw_length_within,
    span_corruption,
    span_lengths,
)

EOS = 1
SENTINELS = tuple(range(1000, 900, -1))


def spans_of(targets: np.ndarray) -> dict[int, list[int]]:
    """Sentinel to what follows it, in targets whose text has ids of 2000 and more; checks EOS."""
    assert targets[-1] == EOS
    spans: dict[int, list[int]] = {}
    current: list[int] = []
    for token in targets[:-1].tolist():
        if token < 2000:
            assert token not in spans, "a sentinel comes once"
            current = spans[token] = []
        else:
            current.append(token)
    return spans


def filled(inputs: np.ndarray, spans: dict[int, list[int]]) -> list[int]:
    """The inputs with each sentinel replaced by its span."""
    assert inputs[-1] == EOS
    return [word for token in inputs[:-1].tolist() for word in (spans[token] if token < 2000 else [token])]


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


@given(st.integers(6, 300), st.floats(0.05, 0.9), st.floats(1.0, 20.0))
@settings(max_examples=60, deadline=None)
def test_the_raw_length_in_one_sequence_is_the_longest_that_fits(length, density, mean):
    raw = raw_length_within(length, density, mean)
    sums = [sum(span_lengths(each, density, mean)) for each in range(2, raw + 2)]
    assert max(sums[:-1]) <= length < sums[-1]


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
    gaps = spans_of(targets)
    assert all(gaps.values()), "no span is empty"
    assert list(gaps) == list(sentinels[: len(gaps)])
    assert filled(inputs, gaps) == tokens.tolist()


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
    with pytest.raises(UserError, match="6 or more"):
        raw_length_within(5, 0.15, 3.0)


@given(st.integers(0, 300), st.floats(0.02, 0.98), st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_independent_noise_recombines_to_the_text_within_its_limits(length, density, seed):
    tokens, sentinels = np.arange(2000, 2000 + length), tuple(range(1000, 500, -1))
    inputs, targets = iid_denoising(tokens, np.random.default_rng(seed), density, sentinels, EOS)
    gaps = spans_of(targets)
    assert all(gaps.values()) and list(gaps) == list(sentinels[: len(gaps)])
    assert filled(inputs, gaps) == tokens.tolist()
    places = inputs[:-1] < 2000
    assert not np.any(places[1:] & places[:-1]), "neighbouring noise is one run"
    runs, longest = iid_limits(length, density)
    assert len(gaps) <= runs and len(targets) <= longest and len(inputs) <= length + 1
    assert inputs.dtype == targets.dtype == np.int32


def test_independent_noise_draws_one_number_a_token():
    """Written out: which tokens are noise, and what that makes; at both ends of the text, too."""
    seed = next(s for s in range(1000) if (np.random.default_rng(s).random(6) < 0.5).tolist() == [1, 1, 0, 1, 0, 1])
    tokens = np.arange(2000, 2006)
    inputs, targets = iid_denoising(tokens, np.random.default_rng(seed), 0.5, SENTINELS, EOS)
    assert inputs.tolist() == [1000, 2002, 999, 2004, 998, EOS]
    assert targets.tolist() == [1000, 2000, 2001, 999, 2003, 998, 2005, EOS]


class Always:
    """Draws the same numbers whatever it is asked."""

    def __init__(self, *numbers: float):
        self.numbers = numbers

    def random(self, size):
        return np.resize(np.array(self.numbers), size)


def test_independent_noise_beyond_its_limits_leaves_the_end_of_the_text_alone():
    tokens = np.arange(2000, 2100)
    runs, longest = iid_limits(100, 0.15)
    inputs, targets = iid_denoising(tokens, Always(0.0, 0.9), 0.15, SENTINELS, EOS)
    gaps = spans_of(targets)
    assert len(gaps) == runs and filled(inputs, gaps) == tokens.tolist()
    assert inputs.tolist()[-1 - 100 + 2 * runs : -1] == list(range(2000 + 2 * runs, 2100))
    inputs, targets = iid_denoising(tokens, Always(0.0), 0.15, SENTINELS, EOS)
    assert len(targets) == longest and inputs.tolist() == [1000, *range(2000 + longest - 2, 2100), EOS]
    assert filled(inputs, spans_of(targets)) == tokens.tolist()


def test_limits_of_independent_noise_are_three_standard_deviations_above_the_mean():
    """Mean and deviation measured, not computed by the formula under test; every shorter text needs less."""
    rng, length, density = np.random.default_rng(5), 511, 0.15
    noise = rng.random((20000, length)) < density
    gaps = noise[:, 0] + np.sum(noise[:, 1:] & ~noise[:, :-1], axis=1)
    places = noise.sum(axis=1) + gaps + 1
    runs, longest = iid_limits(length, density)
    assert abs(runs - (gaps.mean() + 3 * gaps.std())) < 1.2
    assert abs(longest - (places.mean() + 3 * places.std())) < 1.6
    limits = [iid_limits(each, density) for each in range(length + 1)]
    assert limits[0] == (0, 1) and limits[1] == (1, 3)
    assert all(a <= c and b <= d for (a, b), (c, d) in zip(limits, limits[1:], strict=False))
