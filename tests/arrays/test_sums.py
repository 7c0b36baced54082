"""Sums over a long evaluation against float64, without a wait for the device at each batch."""

from __future__ import annotations

import gc
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_like.arrays.sums import Totals
from t5x_like.evaluate.heldout import means


def in_float32(pairs) -> float:
    total = np.float32(0)
    for pair in pairs:
        total += pair[0]
    return float(total)


@pytest.mark.slow
def test_a_million_batches_are_as_in_float64():
    draw = np.random.default_rng(0)
    pairs = np.stack([3.0 + draw.random(1_000_000), draw.integers(1, 70_000, 1_000_000)], axis=1).astype(np.float32)
    totals = Totals()
    for pair in pairs:
        totals.add({"loss": pair})
    found = totals.result()["loss"]
    exact = math.fsum(pairs[:, 0].astype(np.float64).tolist())
    assert abs(found[0] / exact - 1) < 1e-9 < 1e-7 < abs(in_float32(pairs) / exact - 1)
    assert found[1] == int(pairs[:, 1].astype(np.int64).sum()) > 2**32  # exact, where float32 ends at 2^24


@pytest.mark.parametrize(("batches", "targets"), [(20_000, 1003), (2_000, 65_411)])
def test_a_long_evaluation_counts_right(batches, targets):
    pair = lambda mean: np.array([mean * targets, targets], np.float32)  # noqa: E731
    found = means(lambda _: {"loss": pair(3.0), "accuracy": pair(0.5)}, itertools.repeat(None, batches))
    assert found is not None
    assert found["targets"] == batches * targets and abs(found["loss"] / 3 - 1) < 1e-7
    assert found["accuracy"] == 0.5


def test_the_largest_counts_are_exact():
    totals = Totals()
    for count in (2.0**52, 2.0**24 - 1, 1.0):
        totals.add({"loss": np.array([0.0, count])})
    assert totals.result()["loss"][1] == 2**52 + 2**24


def test_arrays_of_the_last_batches_only_are_held_and_none_is_waited_for_at_once(monkeypatch):
    totals, read = Totals(block=3), []
    add = jax.jit(lambda x: jnp.stack([x, x + 1]))
    real = Totals._read
    monkeypatch.setattr(Totals, "_read", lambda self, count: (read.append(len(self._unread)), real(self, count)))
    gc.collect()
    before = len(jax.live_arrays())
    for number in range(10):
        totals.add({"loss": add(jnp.float32(number))})
    assert read == [6, 6]  # three at a time, when three more have been added
    assert len(jax.live_arrays()) - before <= 2 * 6
    np.testing.assert_array_equal(totals.result()["loss"], [45.0, 55.0])
    assert totals.result()["loss"].dtype == np.float64
