"""The computed shuffle is a true permutation, for any size and seed."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.batches.order import epoch_and_position, permutation


@given(st.integers(1, 3000), st.integers(0, 2**63))
@settings(max_examples=60, deadline=None)
def test_every_index_comes_exactly_once(n, seed):
    assert np.array_equal(np.sort(permutation(n, seed)(np.arange(n))), np.arange(n))


def test_one_position_alone_gives_the_same_as_all_at_once():
    order = permutation(1000, (3, 4))
    whole = order(np.arange(1000))
    assert [int(order(position)) for position in (0, 17, 999)] == [whole[0], whole[17], whole[999]]
    assert order(np.arange(6).reshape(2, 3)).shape == (2, 3)


def test_seeds_and_sizes_give_different_orders_and_the_same_seed_the_same():
    first = permutation(1000, 1)(np.arange(1000))
    assert np.array_equal(first, permutation(1000, 1)(np.arange(1000)))
    for other in (permutation(1000, 2), permutation(1000, (1, 0))):
        assert np.mean(other(np.arange(1000)) == first) < 0.02


def test_the_order_is_pinned():
    """A change here changes the batches of every run that is resumed."""
    assert permutation(10, 0)(np.arange(10)).tolist() == [8, 3, 1, 6, 9, 5, 0, 2, 4, 7]


def test_it_looks_random():
    """Neighbours end up uncorrelated, and each position's index is uniform over seeds."""
    n = 20_000
    order = permutation(n, 5)(np.arange(n)).astype(float)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 3 / np.sqrt(n)
    assert abs(np.corrcoef(order, np.arange(n))[0, 1]) < 3 / np.sqrt(n)
    draws = np.array([int(permutation(8, seed)(3)) for seed in range(4000)])
    counts = np.bincount(draws, minlength=8)
    assert np.sum((counts - 500) ** 2 / 500) < 24.3  # chi squared, 7 degrees, 0.1%


def test_a_large_one_needs_no_memory_and_no_time():
    order = permutation(10**12, 0)
    indices = order(np.arange(1000) + 10**11)
    assert len(set(indices.tolist())) == 1000 and indices.max() < 10**12 and indices.max() > 9 * 10**11


def test_epochs_follow_each_other():
    epochs, positions = epoch_and_position(np.array([0, 6, 7, 20]), 7)
    assert epochs.tolist() == [0, 0, 1, 2] and positions.tolist() == [0, 6, 0, 6]


def test_mistakes():
    wrong: tuple[Any, ...] = (-1, 1.5, "1", True)
    for seed in wrong:
        with pytest.raises(UserError, match="whole number"):
            permutation(5, seed)
    with pytest.raises(UserError, match="at least 1"):
        permutation(0, 0)
    with pytest.raises(IndexError):
        permutation(5, 0)(5)
