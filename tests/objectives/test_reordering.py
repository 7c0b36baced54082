"""Prefixes, moved middles and random orders are uniform, and no token is lost."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_like.objectives.fill_in_the_middle import fill_in_the_middle
from t5x_like.objectives.permutation_lm import permutation_order
from t5x_like.objectives.prefix_lm import prefix_split

EOS, PRE, SUF, MID = 1, 5, 6, 7


def test_prefix_is_uniform():
    rng = np.random.default_rng(0)
    counts = Counter(prefix_split(6, rng) for _ in range(5000))
    assert set(counts) == {1, 2, 3, 4, 5}
    assert sum((count - 1000) ** 2 / 1000 for count in counts.values()) < 18.5  # chi squared, 4 degrees, 0.1%
    assert prefix_split(2, rng) == 1


def test_both_orders_of_a_moved_middle_by_hand():
    text = np.arange(10, 16)
    seed = next(s for s in range(1000) if sorted(np.random.default_rng(s).integers(0, 7, 2).tolist()) == [2, 5])
    whole, middle = fill_in_the_middle(text, np.random.default_rng(seed), 0.0, (PRE, SUF, MID), EOS)
    assert whole.tolist() == [PRE, 10, 11, SUF, 15, MID, 12, 13, 14, EOS] and middle == 4
    whole, middle = fill_in_the_middle(text, np.random.default_rng(seed), 1.0, (PRE, SUF, MID), EOS)
    assert whole.tolist() == [PRE, SUF, 15, MID, 10, 11, 12, 13, 14, EOS] and middle == 4


@given(
    st.lists(st.sampled_from([0, 10, 11, 12]), min_size=1, max_size=30),
    st.booleans(),
    st.sampled_from([0.0, 1.0]),
    st.integers(0, 2**32),
)
@settings(max_examples=150, deadline=None)
def test_prefix_middle_and_suffix_are_the_text(ids, ends, spm_rate, seed):
    tokens = np.array([*ids, EOS] if ends else ids, np.uint16)
    whole, middle = fill_in_the_middle(tokens, np.random.default_rng(seed), spm_rate, (PRE, SUF, MID), EOS)
    assert whole.dtype == np.int32 and len(whole) == len(ids) + 4 and whole[-1] == EOS
    found = whole.tolist()
    pre, suf, mid = (found.index(marker) for marker in (PRE, SUF, MID))
    assert pre == 0
    if spm_rate:
        assert suf == 1
        text = found[mid + 1 : -1] + found[2:mid]
        assert len(found) - mid - 1 >= middle
    else:
        text = found[1:suf] + found[mid + 1 : -1] + found[suf + 1 : mid]
        assert middle == len(found) - mid - 1
    assert text == ids


def test_every_pair_of_cuts_is_equally_likely():
    """Cuts in a text of 3 tokens: 4 x 4 pairs, of which unequal ones count twice."""
    rng, draws = np.random.default_rng(0), 16_000
    counts = Counter()
    for _ in range(draws):
        whole, middle = fill_in_the_middle(np.array([10, 11, 12]), rng, 0.0, (PRE, SUF, MID), EOS)
        counts[whole.tolist().index(SUF) - 1, middle - 1] += 1
    assert len(counts) == 10
    expected = {(first, size): draws / 16 * (2 if size else 1) for first, size in counts}
    assert sum((counts[pair] - expected[pair]) ** 2 / expected[pair] for pair in counts) < 27.9  # 9 degrees, 0.1%


@given(st.integers(0, 40), st.data())
@settings(max_examples=100, deadline=None)
def test_an_order_numbers_each_token_once_and_predicts_the_last_ones(length, draw):
    queries = draw.draw(st.integers(0, max(0, length - 1)))
    order, places = permutation_order(length, queries, np.random.default_rng(draw.draw(st.integers(0, 2**32))))
    assert order.dtype == np.int32 and len(order) == length + queries and len(places) == queries
    ranks = (order[:length] - 1) // 2
    assert sorted(ranks.tolist()) == list(range(length)) and np.all(order[:length] % 2 == 1)
    assert np.array_equal(-order[length:] // 2, ranks[places])  # a slot has its token's rank
    assert sorted(ranks[places].tolist()) == list(range(length - queries, length))
    assert np.all(order != 0) and np.all(np.diff(places) > 0)


def test_every_order_is_equally_likely():
    rng = np.random.default_rng(1)
    counts = Counter(tuple(permutation_order(4, 1, rng)[0][:4].tolist()) for _ in range(12_000))
    assert len(counts) == 24
    assert sum((count - 500) ** 2 / 500 for count in counts.values()) < 49.7  # chi squared, 23 degrees, 0.1%


@pytest.mark.parametrize("tokens", [np.empty(0, np.uint16), np.array([EOS])])
def test_an_empty_text_has_an_empty_middle(tokens):
    whole, middle = fill_in_the_middle(tokens, np.random.default_rng(0), 0.0, (PRE, SUF, MID), EOS)
    assert whole.tolist() == [PRE, SUF, MID, EOS] and middle == 1
