"""BERT's masking, token by token and word by word, against its proportions."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_like.objectives.masked_lm import masked_lm

EOS = 1


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


WORD_STARTS = np.arange(500) % 3 == 0  # ids 12, 15, ... begin a word, the two after each go on with it


def words_of(tokens: np.ndarray, special: tuple[int, ...]) -> list[list[int]]:
    """Places of each word's tokens, by the definition."""
    words: list[list[int]] = []
    for place, token in enumerate(tokens.tolist()):
        if token in special:
            continue
        if place == 0 or tokens[place - 1] in special or WORD_STARTS[token]:
            words.append([])
        words[-1].append(place)
    return words


@given(
    st.lists(st.sampled_from([0, EOS, 12, 13, 14, 15, 16]), max_size=40), st.floats(0.01, 0.99), st.integers(0, 2**32)
)
@settings(max_examples=150, deadline=None)
def test_the_tokens_of_a_word_are_chosen_together(ids, rate, seed):
    tokens = np.array(ids, np.uint16)
    inputs, targets, weights = masked_lm(
        tokens, np.random.default_rng(seed), rate, 500, 7, (0, EOS), WORD_STARTS
    )
    words = words_of(tokens, (0, EOS))
    assert all(len(set(weights[word].tolist())) == 1 for word in words)
    assert not weights[np.isin(tokens, (0, EOS))].any()
    assert np.array_equal(targets, tokens) and np.array_equal(inputs[weights == 0], tokens[weights == 0])
    wanted = rate * sum(map(len, words))
    assert abs(weights.sum() - wanted) < max(map(len, words), default=1)


def test_whole_words_are_as_many_tokens_as_asked_for_in_the_mean():
    """Although words of very unequal lengths stand in the text."""
    rng, repeats = np.random.default_rng(4), 10_000
    tokens = np.concatenate([[12] + [13] * 11, [12, 13] * 3, [12] * 9, [EOS], [13, 14, 13]])
    words = words_of(tokens, (EOS,))
    assert sorted({len(word) for word in words}) == [1, 2, 3, 12]
    counts = np.empty(repeats)
    masked = kept = 0
    for number in range(repeats):
        inputs, _, weights = masked_lm(tokens, rng, 0.15, 500, 7, (0, EOS, 2), WORD_STARTS)
        counts[number] = weights.sum()
        masked += int(np.sum(inputs[weights == 1] == 7))
        kept += int(np.sum((inputs == tokens)[weights == 1]))
    assert abs(counts.mean() - 0.15 * 30) < 3 * counts.std() / np.sqrt(repeats)
    chosen = counts.sum()
    assert abs(masked / chosen - 0.8) < 3 * np.sqrt(0.8 * 0.2 / chosen)  # each token of a word by itself
    assert abs(kept / chosen - 0.1 - 0.1 / 496) < 3 * np.sqrt(0.1 * 0.9 / chosen)


def test_words_of_one_token_are_chosen_as_tokens_are():
    """The number of chosen tokens is one of the two nearest, and every token is chosen alike."""
    rng, times = np.random.default_rng(6), np.zeros(20)
    for _ in range(4000):
        _, _, weights = masked_lm(np.full(20, 12), rng, 0.17, 500, 7, (0, EOS), WORD_STARTS)
        assert weights.sum() in (3, 4)
        times += weights
    assert abs(times.sum() / 80_000 - 0.17) < 3 * np.sqrt(0.24 / 4000) / 20
    expected = times.sum() / 20
    assert np.sum((times - expected) ** 2) / expected < 43.8  # chi squared, 19 degrees, 0.1%
