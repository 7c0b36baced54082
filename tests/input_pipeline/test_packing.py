"""First fit and best fit: each piece once, nothing overflows, little is wasted."""

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.batches.packing import Fit, plan

RULES = get_args(Fit)


def bins(lengths, sizes, capacity, rule):
    members, starts = plan(np.asarray(lengths), sizes, capacity, rule)
    return [members[a:b] for a, b in zip(starts, starts[1:], strict=False)]


@given(st.lists(st.integers(1, 64), max_size=150), st.integers(1, 9), st.sampled_from(RULES))
@settings(max_examples=200, deadline=None)
def test_each_piece_once_and_no_bin_over_capacity_on_any_side(lengths, divisor, rule):
    def sizes(length):
        return (length, length // divisor)  # the other side may be empty

    capacity = (64, 20) if divisor >= 4 else (64, 64)
    made = bins(lengths, sizes, capacity, rule)
    assert sorted(np.concatenate(made).tolist() if made else []) == list(range(len(lengths)))
    for members in made:
        assert len(members) and np.all(np.diff(members) > 0)
        assert (np.sum([sizes(lengths[i]) for i in members], axis=0) <= capacity).all()


@given(st.lists(st.integers(1, 50), min_size=1, max_size=80), st.sampled_from(RULES))
@settings(max_examples=100, deadline=None)
def test_no_two_bins_could_be_one(lengths, rule):
    totals = sorted(sum(lengths[i] for i in members) for members in bins(lengths, lambda n: (n,), (50,), rule))
    assert len(totals) < 2 or totals[0] + totals[1] > 50


def first_fit_piece_by_piece(lengths, capacity):
    """The textbook: longest first, each in the first bin with room."""
    rooms = []
    for length in sorted(lengths, reverse=True):
        place = next((i for i, room in enumerate(rooms) if room >= length), len(rooms))
        rooms += [capacity] * (place == len(rooms))
        rooms[place] -= length
    return sorted(rooms)


@given(st.lists(st.integers(1, 40), max_size=100))
@settings(max_examples=100, deadline=None)
def test_planning_lengths_together_is_first_fit_piece_by_piece(lengths):
    made = bins(lengths, lambda n: (n,), (40,), "first_fit")
    assert sorted(40 - sum(lengths[i] for i in members) for members in made) == first_fit_piece_by_piece(lengths, 40)


def test_best_fit_takes_the_fullest_bin():
    # 6 and 5 open bins with room for 4 and 5; the 4 fits both and fills the first, whichever comes first.
    totals = [sum((5, 6, 4)[i] for i in members) for members in bins([5, 6, 4], lambda n: (n,), (10,), "best_fit")]
    assert sorted(totals) == [5, 10]


@pytest.mark.parametrize("rule", RULES)
def test_short_pieces_fill_rows_well_and_many_cost_little(rule):
    lengths = np.random.default_rng(0).integers(5, 200, 20_000)
    members, starts = plan(lengths, lambda n: (n,), (512,), rule)
    assert len(members) == 20_000 and lengths.sum() / (512 * (len(starts) - 1)) > 0.995


def test_a_piece_that_cannot_fit_is_named():
    with pytest.raises(UserError, match=r"a piece of 9 tokens takes \[9\]"):
        plan(np.array([3, 9]), lambda n: (n,), (8,))
