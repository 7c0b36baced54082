"""Samples follow the softmax of the logits, cut as asked: greedy, temperature, top-k, top-p."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from t5x_like.ops.sampling import sample

P = np.array([0.4, 0.25, 0.15, 0.1, 0.06, 0.04])
ORDER = np.array([3, 0, 5, 1, 4, 2])  # the likeliest token is not the first
DRAWS = 20_000


def shares(p: np.ndarray, draws: int = DRAWS, **settings) -> np.ndarray:
    """How often each token is drawn from probabilities ``p``."""
    logits = jnp.broadcast_to(jnp.log(jnp.asarray(p, jnp.float32)) + 3.0, (draws, len(p)))
    tokens = jax.jit(functools.partial(sample, **settings))(logits, jax.random.key(0))
    assert tokens.dtype == jnp.int32 and tokens.shape == (draws,)
    return np.bincount(np.asarray(tokens), minlength=len(p)) / draws


def cut(p: np.ndarray, kept) -> np.ndarray:
    out = np.zeros_like(p)
    out[list(kept)] = p[list(kept)]
    return out / out.sum()


@pytest.mark.parametrize(
    "settings, kept",
    [
        ({}, range(6)),
        (dict(top_k=1), [0]),
        (dict(top_k=3), [0, 1, 2]),
        (dict(top_k=100), range(6)),
        (dict(top_p=0.39), [0]),  # the first alone passes 0.39
        (dict(top_p=0.5), [0, 1]),
        (dict(top_p=0.7), [0, 1, 2]),  # 0.65 is not enough
        (dict(top_p=1e-9), [0]),  # never nothing
        (dict(top_k=4, top_p=0.75), [0, 1, 2]),  # of what top-k leaves: 0.44, 0.72, 0.89
    ],
)
def test_shares_of_the_tokens(settings, kept):
    wanted, p = np.zeros(6), np.zeros(6)
    wanted[ORDER], p[ORDER] = cut(P, kept), P
    got = shares(p, **settings)
    np.testing.assert_array_equal(got[wanted == 0], 0.0)
    np.testing.assert_allclose(got, wanted, atol=0.015)


@given(
    st.lists(st.integers(0, 2), min_size=8, max_size=8), st.integers(0, 9), st.sampled_from([0.1, 0.25, 0.4, 0.75, 1.0])
)
@example([1] * 8, 3, 1.0)
@example([1] * 8, 0, 0.25)
@settings(max_examples=40, deadline=None)
def test_of_equal_tokens_those_of_lower_ids_are_drawn_and_no_more_than_asked(logits, top_k, top_p):
    order = np.argsort(-np.array(logits), kind="stable")[: top_k or None]
    p = np.exp(np.array(logits, np.float32))[order]
    p /= p.sum()
    wanted = {int(order[i]) for i in range(len(order)) if i == 0 or p[:i].sum(dtype=np.float32) < np.float32(top_p)}
    got = drawn(jnp.asarray(logits, jnp.float32), jax.random.key(0), top_k, top_p)
    assert set(np.asarray(got).tolist()) == wanted


@functools.partial(jax.jit, static_argnums=(2, 3))
def drawn(logits_V, key, top_k, top_p):
    """4,000 draws: one of the least likely, 1.6%, is missed with a chance of 1e-28."""
    return sample(jnp.broadcast_to(logits_V, (4000, 8)), key, 1.0, top_k, top_p)


@pytest.mark.parametrize("temperature", [1.2e-38, 1e-30, 1e-5, 1e5, 3.4e38])
@pytest.mark.parametrize("cut", [{}, dict(top_k=2), dict(top_p=0.9)])
def test_the_coldest_is_greedy_and_the_hottest_is_even(temperature, cut):
    logits = jnp.broadcast_to(jnp.asarray([-1e4, 0.0, 3.0, 1e4]), (3000, 4))
    tokens = np.asarray(sample(logits, jax.random.key(0), temperature, **cut))
    if temperature < 1:
        assert set(tokens) == {3}
    else:
        assert set(tokens) == ({2, 3} if "top_k" in cut else {0, 1, 2, 3})


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature(temperature):
    wanted = P ** (1 / temperature)
    np.testing.assert_allclose(shares(P, temperature=temperature), wanted / wanted.sum(), atol=0.015)


def test_greedy_takes_the_first_of_the_likeliest_whatever_the_key():
    logits = jnp.asarray([[0.0, 3.0, 1.0], [5.0, -1.0, 5.0], [-3.0, -2.0, -1.0]])
    for seed in range(3):
        assert sample(logits, jax.random.key(seed), temperature=0.0).tolist() == [1, 0, 2]


def test_rows_are_cut_each_by_its_own():
    logits = jnp.log(jnp.asarray([[0.97, 0.01, 0.01, 0.01], [0.3, 0.3, 0.3, 0.1]]))
    keys = jax.random.split(jax.random.key(1), 500)
    tokens = np.asarray(jax.vmap(lambda key: sample(logits, key, top_p=0.85))(keys))
    assert set(tokens[:, 0]) == {0}
    assert set(tokens[:, 1]) == {0, 1, 2}


def test_keys_decide():
    logits = jnp.zeros((64, 50))
    one, again, other = (sample(logits, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert (np.asarray(one) != np.asarray(other)).mean() > 0.9
    assert len(set(one.tolist())) > 20  # rows draw independently
