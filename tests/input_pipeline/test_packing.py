"""First fit: each example once, nothing overflows, little is wasted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.packing import plan

_lengths = st.lists(st.tuples(st.integers(0, 64), st.integers(0, 20)), min_size=0, max_size=120)


@given(_lengths, st.integers(1, 40))
@settings(max_examples=120, deadline=None)
def test_each_example_once_and_no_bin_over_capacity(lengths, window):
    array = np.array(lengths, np.int64).reshape(-1, 2)
    bins = plan(array, (64, 20), window)
    assert sorted(np.concatenate(bins).tolist() if bins else []) == list(range(len(lengths)))
    for members in bins:
        assert len(members) and (array[members].sum(axis=0) <= (64, 20)).all()
        assert np.all(np.diff(members) > 0)
        assert members.min() // window == members.max() // window


@given(st.lists(st.integers(1, 50), min_size=1, max_size=80))
@settings(max_examples=60, deadline=None)
def test_no_two_bins_of_a_window_could_be_one(lengths):
    array = np.array(lengths)[:, None]
    totals = sorted(int(array[members].sum()) for members in plan(array, (50,)))
    assert len(totals) < 2 or totals[0] + totals[1] > 50


def test_short_examples_fill_rows_well():
    lengths = np.random.default_rng(0).integers(5, 200, (2000, 1))
    bins = plan(lengths, (512,))
    assert lengths.sum() / (512 * len(bins)) > 0.98


def test_an_example_that_cannot_fit_is_named():
    with pytest.raises(UserError, match=r"example 1 has \[9\] tokens"):
        plan(np.array([[3], [9]]), (8,))
