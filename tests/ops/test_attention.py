"""Attention is what its formula says, in float64 numpy, over masks, biases, grouped heads and soft caps; rows without
any key give zeros and finite gradients; and it agrees with JAX's own attention."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_masks import densely
from tiny_models import compiled

from pallas_kernels import Alibi, Causal, Full, Prefix, Segments, SlidingWindow, T5Relative
from t5x_like.ops.attention import attention, attention_scale

B, L, S, H, N = 2, 7, 7, 4, 6
SEGMENTS = np.array([[1, 1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 1, 1, 1]], np.int32)
PREFIX = np.array([[1, 1, 0, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0]], np.int32)


def masks():
    packed, marks = Segments(jnp.asarray(SEGMENTS), jnp.asarray(SEGMENTS)), Prefix(jnp.asarray(PREFIX))
    return {
        "full": Full(),
        "causal": Causal(),
        "window": Causal() & SlidingWindow(2, 2),
        "packed": Causal() & packed,
        "prefix": (Causal() | marks) & packed,
    }


def biases():
    numbers = np.random.default_rng(5)
    return {
        "none": None,
        "t5": T5Relative(jnp.asarray(numbers.normal(size=(8, H)), jnp.float32), True, 12),
        "alibi": Alibi(jnp.asarray([0.5, 0.25, 0.125, 0.0625])),
    }


def inputs(key_heads: int, seed: int = 0, dtype=jnp.float32):
    numbers = np.random.default_rng(seed)
    shapes = ((B, L, H, N), (B, S, key_heads, N), (B, S, key_heads, N))
    return [jnp.asarray(numbers.normal(size=shape), dtype) for shape in shapes]


def defined(q, k, v, allowed, bias, scale, soft_cap):
    """The definition, head by head, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros(q.shape)
    for b in range(q.shape[0]):
        for h in range(q.shape[2]):
            g = h // (q.shape[2] // k.shape[2])
            scores = scale * q[b, :, h] @ k[b, :, g].T
            scores = soft_cap * np.tanh(scores / soft_cap) if soft_cap else scores
            scores = scores if bias is None else scores + np.asarray(bias[h], np.float64)
            p = np.where(allowed[b], np.exp(scores), 0.0)
            total = p.sum(axis=-1, keepdims=True)
            out[b, :, h] = np.where(total > 0, p / np.where(total > 0, total, 1.0), 0.0) @ v[b, :, g]
    return out


def pairs(mask, queries=L, keys=S):
    return np.broadcast_to(np.asarray(densely(mask, jnp.arange(queries), jnp.arange(keys))), (B, queries, keys))


@pytest.mark.parametrize("key_heads, soft_cap", [(4, 0.0), (2, 1.5), (1, 0.0)])
@pytest.mark.parametrize("mask", masks())
def test_against_the_definition(mask, key_heads, soft_cap):
    q, k, v = inputs(key_heads)
    mask = masks()[mask]

    @compiled
    def with_every_bias(q, k, v):
        return {
            name: attention(q, k, v, mask=mask, bias=bias, scale=0.4, soft_cap=soft_cap)
            for name, bias in biases().items()
        }

    got = with_every_bias(q, k, v)
    assert got.keys() == {"none", "t5", "alibi"}
    for name, bias in biases().items():
        dense = None if bias is None else bias.expand(0, L, S)[0]
        wanted = defined(q, k, v, pairs(mask), dense, 0.4, soft_cap)
        np.testing.assert_allclose(got[name], wanted, atol=2e-6, err_msg=name)


def test_queries_and_keys_of_different_length():
    q, k, v = inputs(2)
    k, v = jnp.concatenate([k, k[:, :4] * 2], axis=1), jnp.concatenate([v, v[:, :4] - 1], axis=1)
    got = attention(q, k, v, mask=Full())
    np.testing.assert_allclose(got, defined(q, k, v, np.ones((B, L, 11), bool), None, 1.0, 0.0), atol=5e-6)


@pytest.mark.parametrize("key_heads", [4, 2])
def test_agrees_with_jax(key_heads):
    q, k, v = inputs(key_heads)
    mask, bias = masks()["packed"], biases()["t5"]
    real = jnp.asarray(SEGMENTS != 0)[:, :, None, None]  # jax.nn leaves rows without keys undefined
    theirs = jax.nn.dot_product_attention(
        q, k, v, bias=bias.expand(0, L, S), mask=jnp.asarray(pairs(mask))[:, None], scale=0.4
    )
    got = attention(q, k, v, mask=mask, bias=bias, scale=0.4)
    np.testing.assert_allclose(jnp.where(real, got, 0.0), jnp.where(real, theirs, 0.0), atol=2e-6)


def test_query_offset_gives_the_rows_of_the_whole():
    """What decoding relies on: the last three queries alone, at their column, with causal mask, window and bias."""
    q, k, v = inputs(2)
    for bias in biases().values():
        whole = attention(q, k, v, mask=masks()["window"], bias=bias)
        part = attention(q[:, 4:], k, v, mask=masks()["window"], bias=bias, query_offset=jnp.int32(4))
        np.testing.assert_allclose(part, whole[:, 4:], atol=1e-6)


def test_a_query_without_keys_gives_zero_and_no_gradient():
    q, k, v = inputs(2)
    mask, bias = Segments(jnp.asarray(SEGMENTS), jnp.asarray(SEGMENTS)), biases()["t5"]
    empty = SEGMENTS == 0
    assert empty.sum() == 1

    def total(q, k, v, table):
        out = attention(q, k, v, mask=mask, bias=T5Relative(table, True, 12), soft_cap=3.0)
        return jnp.sum(jnp.sin(out + 1.0)), out

    gradients, out = compiled(jax.grad(total, argnums=(0, 1, 2, 3), has_aux=True))(q, k, v, bias.table_KH)
    np.testing.assert_array_equal(np.asarray(out)[empty], 0.0)
    for gradient in gradients:
        assert np.all(np.isfinite(gradient)) and np.any(gradient != 0)
    for gradient in gradients[:3]:  # as query, key and value, padding has no part in the result
        np.testing.assert_array_equal(np.asarray(gradient)[empty], 0.0)


def test_gradients_of_grouped_heads_by_differences():
    q, k, v = inputs(2, seed=3)
    mask = masks()["prefix"]

    def total(q, k, v):
        return jnp.sum(attention(q, k, v, mask=mask, soft_cap=2.0) ** 3)

    gradients = compiled(jax.grad(total, argnums=(0, 1, 2)))(q, k, v)
    allowed = pairs(mask)
    numbers = np.random.default_rng(1)
    for place, gradient in enumerate(gradients):
        step = numbers.normal(size=gradient.shape)
        moved = []
        for sign in (1, -1):
            arrays = [np.asarray(x, np.float64) for x in (q, k, v)]
            arrays[place] = arrays[place] + sign * 1e-5 * step
            moved.append(np.sum(defined(*arrays, allowed, None, 1.0, 2.0) ** 3))
        wanted = (moved[0] - moved[1]) / 2e-5
        assert abs(wanted) > 1e-2
        assert float(np.sum(np.asarray(gradient, np.float64) * step)) == pytest.approx(wanted, rel=1e-4)


def test_bfloat16_keeps_its_type_and_adds_up_in_float32():
    q, k, v = inputs(2, dtype=jnp.bfloat16)
    got = attention(q, k, v, mask=Causal(), bias=biases()["t5"], scale=0.5)
    assert got.dtype == jnp.bfloat16
    wanted = defined(q, k, v, pairs(Causal()), biases()["t5"].expand(0, L, S)[0], 0.5, 0.0)
    np.testing.assert_allclose(np.asarray(got, np.float64), wanted, atol=3e-2)


def test_dropout_keeps_the_mean_and_drops_its_share():
    q, k, _ = inputs(4)
    v = jnp.ones((B, S, 4, N))
    keys = jax.random.split(jax.random.key(0), 200)
    drop = compiled(jax.vmap(lambda key: attention(q, k, v, mask=Full(), dropout_rate=0.4, dropout_key=key)))
    out = np.asarray(drop(keys))
    assert np.std(out) > 0.1
    assert np.mean(out) == pytest.approx(1.0, abs=0.01)
    without = attention(q, k, v, mask=Full(), dropout_rate=0.4, dropout_key=None)
    np.testing.assert_allclose(without, 1.0, atol=1e-6)


def test_heads_that_do_not_divide():
    q, k, v = inputs(3)
    with pytest.raises(ValueError, match="3 key heads do not divide 4 query heads"):
        attention(q, k, v, mask=Full())


def test_scale():
    assert attention_scale(64, True) == 0.125
    assert attention_scale(64, False) == 1.0
