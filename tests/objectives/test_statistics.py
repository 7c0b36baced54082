"""What each objective does in the mean, over 10,000 examples with fixed seeds: within 3 standard errors of what its
paper says. Standard errors are those of independent examples."""

from __future__ import annotations

import math

import numpy as np
import pytest
from fake_tokenizer import FakeTokenizer

from t5x_like.objectives import (
    UL2,
    Autoregressive,
    FillInTheMiddle,
    IidDenoising,
    MaskedLM,
    PermutationLM,
    PrefixLM,
    SpanCorruption,
)

TOKENIZER = FakeTokenizer(vocab_size=30_000)
EXAMPLES, LENGTH = 10_000, 64
TEXT = np.arange(210, 210 + LENGTH, dtype=np.uint16)


def examples(objective, text=TEXT):
    rng = np.random.default_rng(0)
    for _ in range(EXAMPLES):
        yield objective.example(text, rng, TOKENIZER)


def assert_mean(found, wanted: float):
    """The mean of independent ``found`` is ``wanted``, to 3 standard errors; they are not all the same."""
    found = np.asarray(found, np.float64)
    error = found.std() / math.sqrt(len(found))
    assert error > 0
    assert abs(found.mean() - wanted) < 3 * error, (found.mean(), wanted, error)


def assert_uniform(counts):
    """Chi squared, below its 99.7% point (Wilson and Hilferty's approximation, 2.75 standard deviations)."""
    counts = np.asarray(counts, np.float64)
    expected, freedom = counts.sum() / len(counts), len(counts) - 1
    limit = freedom * (1 - 2 / (9 * freedom) + 2.75 * math.sqrt(2 / (9 * freedom))) ** 3
    assert np.sum((counts - expected) ** 2) / expected < limit


def is_text(tokens: np.ndarray) -> np.ndarray:
    return tokens >= 210


@pytest.mark.parametrize(
    "objective",
    [
        SpanCorruption(),
        *(pytest.param(each, marks=pytest.mark.slow) for each in UL2().denoisers if isinstance(each, SpanCorruption)),
    ],
    ids=repr,
)
def test_span_corruption(objective):
    """Density and number of spans are the same in every example; lengths of spans are those of a uniform cut."""
    noise = min(max(round(LENGTH * objective.noise_density), 1), LENGTH - 1)
    spans = max(1, round(noise / objective.mean_span_length))
    firsts, ones = [], []
    for example in examples(objective):
        text = is_text(example.targets)
        assert text.sum() == noise and len(example.targets) == noise + spans + 1
        starts = np.flatnonzero(~text)  # the sentinels and EOS
        lengths = np.diff(starts) - 1
        assert lengths.sum() == noise and lengths.min() >= 1
        firsts.append(lengths[0])
        ones.append(np.sum(lengths == 1))
    if spans > 1:
        assert_mean(firsts, noise / spans)
        # Of the C(noise - 1, spans - 1) cuts, C(noise - 2, spans - 2) have a first span of one token.
        assert_mean(ones, spans * (spans - 1) / (noise - 1))


def test_independent_denoising():
    """The density, and the number of runs: the first token begins one with chance p, each other with p (1 - p)."""
    noise, runs, at_limit = [], [], 0
    for example in examples(IidDenoising()):
        text = is_text(example.targets)
        noise.append(text.sum())
        runs.append(len(text) - 1 - text.sum())
        at_limit += len(example.targets) == IidDenoising().lengths(LENGTH, "encoder-decoder")[1]
    p = 0.15
    assert_mean(noise, p * LENGTH)
    assert_mean(runs, p + (LENGTH - 1) * p * (1 - p))
    assert abs(np.std(noise) - math.sqrt(LENGTH * p * (1 - p))) < 3 * np.std(noise) / math.sqrt(2 * EXAMPLES)
    assert 0 < at_limit < 0.01 * EXAMPLES


@pytest.mark.parametrize("whole_words", [False, True])
def test_masking(whole_words):
    """Words of 3 tokens, but the first, for the ids count up."""
    chosen, masked, kept, changed, together = [], 0, 0, 0, []
    for example in examples(MaskedLM(whole_words=whole_words), np.append(TEXT, 1)):
        is_chosen = example.weights == 1
        chosen.append(is_chosen.sum())
        masked += np.sum(example.inputs[is_chosen] == TOKENIZER.mask_id)
        kept += np.sum((example.inputs == example.targets)[is_chosen])
        random = is_chosen & (example.inputs != TOKENIZER.mask_id) & (example.inputs != example.targets)
        changed += random.sum()
        assert np.all(is_text(example.inputs[random]) | (example.inputs[random] == 0))
        assert example.inputs[-1] == 1 and not is_chosen[-1]
        together.append(np.mean(is_chosen[:63].reshape(21, 3).all(axis=1) == is_chosen[:63].reshape(21, 3).any(axis=1)))
    assert_mean(chosen, 0.15 * LENGTH)
    total = np.sum(chosen)
    for found, wanted in ((masked, 0.8), (kept, 0.1), (changed, 0.1)):
        assert abs(found / total - wanted) < 3 * math.sqrt(wanted * (1 - wanted) / total)
    assert (np.mean(together) == 1.0) == whole_words


@pytest.mark.parametrize("objective", [PrefixLM(), PrefixLM("[S2S]")], ids=repr)
def test_prefixes(objective):
    prefixes = [is_text(example.inputs).sum() for example in examples(objective)]
    assert_mean(prefixes, LENGTH / 2)
    counts = np.bincount(prefixes, minlength=LENGTH)
    assert counts[0] == 0 and len(counts) == LENGTH
    assert_uniform(counts[1:])


def test_filling_in_the_middle():
    """Half of the texts, of them 0.3 in the order SPM; the middle is the gap between two uniform cuts of 0 to L."""
    reordered, suffix_first, middles, prefixes = [], [], [], []
    for example in examples(FillInTheMiddle(0.5, 0.3, loss_on="middle"), np.append(TEXT, 1)):
        targets = example.targets
        reordered.append(targets[0] == 202)
        if not reordered[-1]:
            assert np.array_equal(targets[:-1], TEXT) and example.weights is None
            continue
        assert len(targets) == LENGTH + 4
        suf, mid = (int(np.flatnonzero(targets == marker)[0]) for marker in (201, 200))
        suffix_first.append(suf == 1)
        middles.append(example.weights.sum() - 1)
        prefixes.append(len(targets) - mid - 2 - middles[-1] if suf == 1 else suf - 1)
    assert_mean(reordered, 0.5)
    empty = 1 - (LENGTH / (LENGTH + 1)) ** 2  # the chance of an empty prefix, with which both orders are the same
    assert_mean(suffix_first, 0.3 + 0.7 * empty)
    assert_mean(middles, LENGTH * (LENGTH + 2) / (3 * (LENGTH + 1)))
    assert_mean(prefixes, LENGTH / 2 - LENGTH * (LENGTH + 2) / (6 * (LENGTH + 1)))


def test_permutations():
    """Each place of the text has each rank equally often, and so is predicted equally often."""
    ranks, predicted = np.zeros((EXAMPLES, LENGTH), np.int64), np.zeros(LENGTH)
    for number, example in enumerate(examples(PermutationLM(0.25))):
        ranks[number] = (example.order[:LENGTH] - 1) // 2
        predicted[example.positions[LENGTH:]] += 1
        assert len(example.targets) == LENGTH + 16
    for place in (0, 31, 63):
        assert_uniform(np.bincount(ranks[:, place], minlength=LENGTH))
        assert_mean(ranks[:, place], (LENGTH - 1) / 2)
    assert np.all(np.abs(predicted / EXAMPLES - 0.25) < 4 * math.sqrt(0.25 * 0.75 / EXAMPLES))  # 64 of them at once
    assert_mean(ranks[:, 7] < ranks[:, 8], 0.5)


def test_autoregression_is_the_same_every_time():
    assert all(np.array_equal(example.targets, TEXT) for example in examples(Autoregressive()))
