"""Dropout's bits: the rate is kept, no two queries, keys, heads, rows or seeds share theirs, and a shard has the bits
of its part of the whole."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from definition import draw
from tiny_models import compiled

from pallas_kernels import Causal, Dropout, Full, attention
from pallas_kernels.dropout import kept, mix, stream

B, H, L, S = 3, 4, 96, 128


@functools.partial(compiled, static_argnums=0)
def bits(rate, seed, row_B, head_H, query_L, key_S):
    """[B, H, L, S]"""
    stream_BH11 = stream(seed, row_B[:, None, None, None], head_H[None, :, None, None])
    return kept(rate, stream_BH11, query_L[None, None, :, None], key_S[None, None, None, :])


def whole(rate: float, seed: int = 3) -> np.ndarray:
    return np.asarray(bits(rate, jnp.int32(seed), *(jnp.arange(n, dtype=jnp.int32) for n in (B, H, L, S))))


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.9])
def test_the_share_of_those_dropped(rate):
    dropped = 1.0 - whole(rate)
    spread = np.sqrt(rate * (1 - rate))
    assert abs(dropped.mean() - rate) < 5 * spread / np.sqrt(dropped.size)
    for axis in range(4):  # of each row, head, query and key alone
        others = tuple(i for i in range(4) if i != axis)
        share = dropped.mean(others)
        assert np.all(np.abs(share - rate) < 5 * spread / np.sqrt(dropped.size / dropped.shape[axis]))


def test_nothing_is_alike_along_rows_heads_queries_keys_and_seeds():
    x = whole(0.5) * 2.0 - 1.0
    count = x.size
    for axis in range(4):
        for step in {1, 2, x.shape[axis] // 2}:
            moved = np.roll(x, step, axis)
            assert abs((x * moved).mean()) < 5 / np.sqrt(count), (axis, step)
            if axis != 3:  # nor along a diagonal
                assert abs((x * np.roll(moved, 1, 3)).mean()) < 5 / np.sqrt(count), (axis, step)
    for seed in (2, 4, -3, 3 + 2**16):
        assert abs((x * (whole(0.5, seed) * 2.0 - 1.0)).mean()) < 5 / np.sqrt(count), seed
    # queries and keys do not change places
    square = x[..., :L]
    assert abs((square * square.swapaxes(2, 3))[..., ~np.eye(L, dtype=bool)].mean()) < 7 / np.sqrt(square.size)


def test_four_neighbours_are_independent():
    """Adding two hashes would show here: of the corners of a rectangle, three would tell the fourth."""
    x = whole(0.5) * 2.0 - 1.0
    for step in (1, 7):
        corners = x * np.roll(x, step, 2) * np.roll(x, 1, 3) * np.roll(np.roll(x, step, 2), 1, 3)
        assert abs(corners.mean()) < 5 / np.sqrt(x.size)


def test_the_hash_is_one_to_one_and_every_bit_reaches_every_bit():
    numbers = np.random.default_rng(0).integers(-(2**31), 2**31, 20_000).astype(np.int32)
    got = np.asarray(compiled(mix)(numbers))
    assert len(np.unique(got)) == len(np.unique(numbers))
    for bit in range(32):
        flipped = np.asarray(compiled(mix)(numbers ^ np.int32(np.uint32(1 << bit))))
        changed = (got ^ flipped).view(np.uint32)
        share = np.asarray([((changed >> np.uint32(i)) & 1).mean() for i in range(32)])
        assert np.all(np.abs(share - 0.5) < 0.1), bit


def probabilities(dropout: Dropout, batch: int, heads: int, first_query: int, queries: int, mask) -> np.ndarray:
    """[B, H, L, S]: what of the softmax the xla backend keeps, told by values that are the identity."""
    q, k = (np.ones((batch, n, heads, 4), np.float32) for n in (queries, S))
    v = np.broadcast_to(np.eye(S, dtype=np.float32)[None, :, None], (batch, S, heads, S))

    def call(q, k, v, dropout):
        return attention(q, k, v, mask=mask, dropout=dropout, q_offset=first_query, backend="xla")

    return np.asarray(compiled(call)(q, k, v, dropout)).transpose(0, 2, 1, 3)


def test_a_shard_has_the_bits_of_its_part():
    wanted = whole(0.3)
    np.testing.assert_array_equal(probabilities(Dropout(0.3, 3), B, H, 0, L, Full()) != 0, wanted)
    part = probabilities(Dropout(0.3, 3, first_row=1, first_head=2), 2, 2, 40, 30, Full())
    np.testing.assert_array_equal(part != 0, wanted[1:, 2:, 40:70])
    np.testing.assert_allclose(part[part != 0], 1 / S / 0.7, rtol=1e-5)


def test_a_shards_numbers_may_be_traced():
    """As ``jax.lax.axis_index`` gives them under ``shard_map``."""
    row_B = jnp.arange(2, dtype=jnp.int32)
    head_H, query_L, key_S = (jnp.arange(n, dtype=jnp.int32) for n in (2, L, S))
    traced = bits(0.3, jnp.int32(3), row_B + jnp.int32(1), head_H + jnp.int32(2), query_L, key_S)
    np.testing.assert_array_equal(traced, whole(0.3)[1:, 2:])


def test_the_mean_over_seeds_is_the_output_without_dropout():
    q, k, v = (draw((1, 8, 2, 4), i) for i in range(3))

    def call(seed):
        return attention(q, k, v, mask=Causal(), dropout=Dropout(0.4, seed), backend="xla")

    outs = np.asarray(compiled(jax.vmap(call))(jnp.arange(3000, dtype=jnp.int32)))
    wanted = attention(q, k, v, mask=Causal(), backend="xla")
    assert outs.std(0).mean() > 0.1
    np.testing.assert_allclose(outs.mean(0), wanted, atol=5 * outs.std(0).max() / np.sqrt(3000))


def test_rates_and_keys():
    with pytest.raises(ValueError, match=r"dropout: got rate=1\.0; allowed"):
        Dropout(1.0, 0)
    with pytest.raises(ValueError, match="dropout: got rate=-0.1"):
        Dropout(-0.1, 0)
    one, other = (Dropout.from_key(0.1, jax.random.key(i)) for i in (0, 1))
    assert one.seed.dtype == jnp.int32 and one.seed != other.seed
    q, k, v = (draw((1, 5, 2, 4), i) for i in range(3))
    none = attention(q, k, v, mask=Full(), backend="xla")
    np.testing.assert_array_equal(attention(q, k, v, mask=Full(), dropout=Dropout(0.0, 1), backend="xla"), none)
