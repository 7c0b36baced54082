"""Schedules against optax and against their formulas in Python floats."""

from __future__ import annotations

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t5x_like.core.errors import UserError
from t5x_like.optim import Adafactor, AdamW, Joined, Schedule
from t5x_like.optim.schedules import learning_rate

TOTAL = 200
STEPS = np.arange(TOTAL, dtype=np.int32)


def rates(schedule: Schedule, peak: float = 0.5, total: int = TOTAL) -> np.ndarray:
    return np.asarray(jax.jit(learning_rate(AdamW(learning_rate=peak, schedule=schedule), total))(jnp.asarray(STEPS)))


@pytest.mark.parametrize("warmup", [0, 1, 30])
@pytest.mark.parametrize("end", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_decays_against_optax(kind, end, warmup):
    if kind == "cosine":
        decay = optax.cosine_decay_schedule(0.5, TOTAL - warmup, alpha=end)
    else:
        decay = optax.linear_schedule(0.5, 0.5 * end, TOTAL - warmup)
    rise = optax.linear_schedule(0.0, 0.5, max(1, warmup))
    # Ours counts the update being made in the warm-up, so that the first is not wasted.
    with jax.numpy_dtype_promotion("standard"):  # which optax needs
        expected = [float(rise(step + 1)) if step < warmup else float(decay(step - warmup)) for step in STEPS]
    np.testing.assert_allclose(rates(Schedule(kind, warmup=warmup, end=end)), expected, rtol=2e-6, atol=1e-7)


def test_no_update_is_wasted_and_the_peak_is_reached():
    for kind in ("constant", "linear", "cosine", "rsqrt", "wsd"):
        found = rates(Schedule(kind, warmup=20))
        assert found[0] == pytest.approx(0.5 / 20) and found.argmax() in (19, 20) and found.max() == pytest.approx(0.5)
        assert found[-1] > 0


def test_t5s_own_schedule():
    config = Adafactor()
    rate = learning_rate(config, 1_000_000)
    for step in (0, 1, 9_999, 10_000, 10_001, 40_000, 524_288, 999_999):
        assert float(rate(jnp.int32(step))) == pytest.approx(1 / math.sqrt(max(step, 1e4)), rel=1e-6)


def test_inverse_square_root_after_warm_up():
    found = rates(Schedule("rsqrt", warmup=25))
    np.testing.assert_allclose(found[:25], 0.5 * (STEPS[:25] + 1) / 25, rtol=1e-6)
    np.testing.assert_allclose(found[25:], 0.5 * np.sqrt(25 / STEPS[25:]), rtol=1e-6)


def test_warm_up_stable_decay():
    found = rates(Schedule("wsd", warmup=10, decay=0.25, end=0.2))
    np.testing.assert_allclose(found[9:151], 0.5, rtol=1e-6)
    np.testing.assert_allclose(found[150:], 0.5 * (1 - 0.8 * (STEPS[150:] - 150) / 50), rtol=1e-5)


@pytest.mark.parametrize(
    "field, schedule",
    [
        ("warmup", lambda: Schedule("cosine", warmup=TOTAL)),
        ("warmup", lambda: Schedule("linear", warmup=-1)),
        ("warmup", lambda: Schedule("wsd", warmup=181)),
        ("hold", lambda: Schedule("cosine", hold=5)),
        ("end", lambda: Schedule("linear", end=1.5)),
        ("decay", lambda: Schedule("wsd", decay=0.0)),
        ("warmup", lambda: Schedule(warmup=1.5)),
        ("warmup", lambda: Schedule(warmup=float("nan"))),
        ("warmup", lambda: Schedule("wsd", warmup=0.95)),
        ("peak", lambda: Schedule(peak=float("inf"))),
        ("until", lambda: Joined((Schedule(), Schedule()), (0.1, 0.2))),
        ("until", lambda: Joined((Schedule(), Schedule()), (TOTAL,))),
        ("until", lambda: Joined((Schedule(),) * 3, (0.5, 100))),
        ("schedules.1.warmup", lambda: Joined((Schedule(), Schedule("cosine", warmup=100)), (0.5,))),
    ],
)
def test_nonsense_is_refused_by_name(field, schedule):
    with pytest.raises(UserError, match=rf"optimizer\.schedule\.{re.escape(field)}:"):
        rates(schedule())


def test_the_limits_themselves_are_allowed():
    assert np.isfinite(rates(Schedule("cosine", warmup=TOTAL - 1))).all()
    assert np.isfinite(rates(Schedule("wsd", warmup=180))).all()
    assert np.isfinite(rates(Schedule("constant", warmup=10 * TOTAL))).all()
    with pytest.raises(UserError, match=r"optimizer\.learning_rate"):
        AdamW(learning_rate=-1.0)


def test_warm_up_as_a_share_of_the_run():
    np.testing.assert_array_equal(rates(Schedule("cosine", warmup=0.15)), rates(Schedule("cosine", warmup=30)))


def test_joined_schedules_each_count_from_their_own_start():
    first, second = Schedule(warmup=10), Schedule("cosine", warmup=5, end=0.2, peak=0.4)
    found = rates(Joined((first, second, Schedule("linear")), (0.25, 150)))
    np.testing.assert_array_equal(found[:50], rates(first)[:50])
    alone = rates(Schedule("cosine", warmup=5, end=0.2), total=100)
    np.testing.assert_allclose(found[50:150], 0.4 * alone[:100], rtol=1e-6)
    np.testing.assert_allclose(found[150:], 0.5 * (1 - np.arange(50) / 50), rtol=2e-6, atol=1e-7)
