"""T5's relative buckets have their published values, biases expand to what they mean, ALiBi's slopes are the
paper's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import compiled

from pallas_kernels import Alibi, T5Relative, alibi_slopes, relative_buckets

# Distance (key - query) to bucket, 32 buckets up to distance 128: the values of the published models.
BIDIRECTIONAL = {0: 0, -1: 1, 1: 17, -7: 7, -8: 8, -11: 8, -12: 9, -15: 9, -16: 10, -22: 10, -23: 11, -31: 11, -32: 12,
                 -45: 12, -46: 13, -63: 13, -64: 14, -90: 14, -91: 15, 200: 31}  # fmt: skip
UNIDIRECTIONAL = {5: 0, -1: 1, -15: 15, -16: 16, -18: 16, -19: 17, -21: 18, -31: 21, -63: 26, -112: 30, -113: 31,
                  -500: 31}  # fmt: skip


@pytest.mark.parametrize("bidirectional, golden", [(True, BIDIRECTIONAL), (False, UNIDIRECTIONAL)])
@pytest.mark.parametrize("wrapped", [False, True])
def test_golden_buckets(bidirectional, golden, wrapped):
    function = jax.jit(relative_buckets, static_argnums=1) if wrapped else relative_buckets
    got = function(jnp.asarray(list(golden), jnp.int32), bidirectional)
    assert got.dtype == jnp.int32
    assert dict(zip(golden, got.tolist(), strict=True)) == golden


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("offset, queries, keys", [(0, 9, 9), (0, 13, 5), (7, 1, 12), (3, 4, 11)])
def test_t5_bias_is_the_table_looked_up_per_pair(bidirectional, offset, queries, keys):
    table = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32)
    distance = jnp.asarray(np.arange(keys)[None, :] - (np.arange(queries) + offset)[:, None], jnp.int32)
    weight = jnp.asarray(np.random.default_rng(1).normal(size=(3, queries, keys)), jnp.float32)

    def dense(table):
        return jnp.transpose(table[relative_buckets(distance, bidirectional, 8, 12)], (2, 0, 1))

    def ours(table, offset):
        return T5Relative(table, bidirectional, 12).expand(offset, queries, keys)[0]

    @compiled
    def both(table, traced_offset):  # a traced offset is what decoding has
        values = ours(table, offset), ours(table, traced_offset), dense(table)
        return values, [
            jax.grad(lambda t: jnp.sum(f(t) * weight))(table) for f in (lambda t: ours(t, offset), dense)  # noqa: B023
        ]

    (got, got_traced, wanted), (gradient, wanted_gradient) = both(table, jnp.int32(offset))
    np.testing.assert_array_equal(got, wanted)
    np.testing.assert_array_equal(got_traced, wanted)
    np.testing.assert_allclose(gradient, wanted_gradient, atol=1e-5)


def test_alibi_slopes_as_published():
    assert alibi_slopes(8) == [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]
    # 12 heads, from the authors' code: the 8 above, then every other slope of 16 heads
    np.testing.assert_allclose(alibi_slopes(12)[8:], [0.70710678, 0.35355339, 0.17677670, 0.08838835], rtol=1e-7)
    assert alibi_slopes(12)[:8] == alibi_slopes(8)
    assert alibi_slopes(1) == [1 / 256]


def test_alibi_falls_with_the_distance_to_both_sides():
    got = Alibi(jnp.asarray([0.5, 0.25])).expand(2, 2, 5)[0]
    np.testing.assert_array_equal(got[0], [[-1.0, -0.5, 0.0, -0.5, -1.0], [-1.5, -1.0, -0.5, 0.0, -0.5]])
    np.testing.assert_array_equal(got[1], got[0] / 2)
