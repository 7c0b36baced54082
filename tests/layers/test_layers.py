"""Single layers against their formulas: norms, activations, positions, dropout, embeddings, initializers."""

from __future__ import annotations

import math
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_models import random_params

from t5x_like.arrays.spec import Initializer, ParamSpec
from t5x_like.layers.attention import Attention
from t5x_like.layers.context import Context
from t5x_like.layers.dropout import dropout
from t5x_like.layers.feed_forward import ActivationName, FeedForward, activation
from t5x_like.layers.init import FanIn
from t5x_like.layers.module import Linear, Site, Table
from t5x_like.layers.norms import LayerNorm, RMSNorm
from t5x_like.layers.param import declare, draw
from t5x_like.layers.positions import Rope, Sinusoidal, rotate
from t5x_like.models.config import HeadTransform

X = np.random.default_rng(0).normal(size=(2, 5, 8)) * 3 + 1
SITE = Site(width=8, depth=1, init=FanIn())
CONTEXT = Context(causal=False, positions_BL=jnp.zeros((2, 5), jnp.int32))


def filled(module):
    """(the module with random parameters, those parameters)."""
    structure, specs = declare(module)
    params = random_params(specs)
    return nnx.merge(structure, params), params


def test_rms_norm():
    norm, params = filled(RMSNorm(1e-2).declare(8))
    wanted = X / np.sqrt((X**2).mean(-1, keepdims=True) + 1e-2) * np.asarray(params["scale"])
    np.testing.assert_allclose(norm(jnp.asarray(X, jnp.float32)), wanted, rtol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm(bias):
    norm, params = filled(LayerNorm(1e-2, bias).declare(8))
    assert ("bias" in params) == bias
    centred = X - X.mean(-1, keepdims=True)
    wanted = centred / np.sqrt(X.var(-1, keepdims=True) + 1e-2) * np.asarray(params["scale"])
    wanted = wanted + np.asarray(params["bias"]) if bias else wanted
    np.testing.assert_allclose(norm(jnp.asarray(X, jnp.float32)), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [RMSNorm(1e-6), LayerNorm(1e-6)])
def test_norms_of_bfloat16_take_their_statistics_in_float32(kind):
    norm, _ = filled(kind.declare(8))
    x = jnp.asarray(X * 1e3 + 3e4, jnp.bfloat16)  # squares and sums here are far beyond 8 bits of mantissa
    got = norm(x)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(got, np.float32), norm(x.astype(jnp.float32)), rtol=0.02, atol=0.02)


def test_activations():
    x = np.linspace(-4, 4, 33)
    wanted = {
        "relu": np.maximum(x, 0),
        "gelu": [0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x],
        "gelu_tanh": 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        "silu": x / (1 + np.exp(-x)),
    }
    assert wanted.keys() == set(get_args(ActivationName))
    for name, values in wanted.items():
        np.testing.assert_allclose(activation(name, jnp.asarray(x, jnp.float32)), values, atol=1e-6, err_msg=name)


def test_linear_and_its_bias_in_any_rank():
    linear, params = filled(Linear(8, 3, ("embed", "mlp"), Initializer("normal", 1.0), bias=True))
    wanted = X @ np.asarray(params["kernel"], np.float64) + np.asarray(params["bias"])
    np.testing.assert_allclose(linear(jnp.asarray(X, jnp.float32)), wanted, rtol=1e-4, atol=1e-5)
    assert linear(jnp.asarray(X[0, 0], jnp.float32)).shape == (3,)


@pytest.mark.parametrize("gated", [True, False])
def test_feed_forward(gated):
    chosen = FeedForward(width=24, activation="silu", gated=gated, bias=True)
    layer, params = filled(chosen.declare(SITE))
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    up = X @ p["up"]["kernel"] + p["up"]["bias"]
    inner = X @ p["gate"]["kernel"] + p["gate"]["bias"] if gated else up
    hidden = inner / (1 + np.exp(-inner)) * (up if gated else 1)
    wanted = hidden @ p["down"]["kernel"] + p["down"]["bias"]
    np.testing.assert_allclose(layer(jnp.asarray(X, jnp.float32), CONTEXT)[0], wanted, rtol=1e-4, atol=1e-4)


def test_output_transform():
    layer, params = filled(HeadTransform("relu", RMSNorm(1e-6)).declare(8, FanIn()))
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    hidden = np.maximum(X @ p["linear"]["kernel"] + p["linear"]["bias"], 0)
    wanted = hidden / np.sqrt((hidden**2).mean(-1, keepdims=True) + 1e-6) * p["norm"]["scale"]
    np.testing.assert_allclose(layer(jnp.asarray(X, jnp.float32)), wanted, rtol=1e-3, atol=1e-4)


def test_table():
    table, params = filled(Table(10, 8, "vocab", 1.0))
    ids = jnp.asarray([[3, 0], [9, 3]])
    got = table(ids, jnp.bfloat16)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got, np.asarray(params["table"].astype(jnp.bfloat16))[np.asarray(ids)])


def test_query_and_key_norms_make_scores_independent_of_their_size():
    layer, params = filled(Attention(heads=4, head_dim=8, kv_heads=2, qk_norm=RMSNorm(1e-12)).declare(SITE))
    loud = jax.tree.map(lambda a: a, params)
    loud["query"]["kernel"] = params["query"]["kernel"] * 50
    structure, _ = declare(layer)
    x = jnp.asarray(X, jnp.float32)
    one = layer(x, CONTEXT)[0]
    np.testing.assert_allclose(nnx.merge(structure, loud)(x, CONTEXT)[0], one, atol=1e-3)
    assert params["query_norm"]["scale"].shape == params["key_norm"]["scale"].shape == (8,)
    louder = loud | {"query_norm": {"scale": params["query_norm"]["scale"] * 50}}
    assert np.abs(nnx.merge(structure, louder)(x, CONTEXT)[0] - one).max() > 0.1


def test_sinusoids():
    positions = np.array([[0, 1, 7], [300, 2, 5]])
    got = np.asarray(Sinusoidal().embedding(None, jnp.asarray(positions), 6, jnp.float32))
    for i in range(3):
        angle = positions / 10_000 ** (2 * i / 6)
        np.testing.assert_allclose(got[..., i], np.sin(angle), atol=2e-5)
        np.testing.assert_allclose(got[..., 3 + i], np.cos(angle), atol=2e-5)


def test_rope_turns_pairs_by_their_angle_so_that_scores_depend_on_distance_alone():
    numbers = np.random.default_rng(1)
    q, k = (jnp.asarray(numbers.normal(size=(1, 1, 1, 6)), jnp.float32) for _ in range(2))

    def turned(x, position, theta=100.0):
        return np.asarray(rotate(x, Rope(theta).rotation(jnp.asarray([[position]]), 6)), np.float64)[0, 0, 0]

    angle = 3 * 100.0 ** (-2 / 6)  # position 3, the second pair: dimensions 1 and 4
    one, other = np.asarray(q[0, 0, 0, 1]), np.asarray(q[0, 0, 0, 4])
    assert turned(q, 3)[1] == pytest.approx(one * math.cos(angle) - other * math.sin(angle), abs=1e-6)
    assert turned(q, 3)[4] == pytest.approx(other * math.cos(angle) + one * math.sin(angle), abs=1e-6)
    np.testing.assert_allclose(turned(q, 0), q[0, 0, 0], atol=1e-7)
    near = turned(q, 9) @ turned(k, 4)
    assert near == pytest.approx(turned(q, 25) @ turned(k, 20), abs=1e-5)
    assert abs(near - turned(q, 9) @ turned(k, 5)) > 1e-2


def test_dropout():
    x = jnp.asarray(np.random.default_rng(0).uniform(1, 2, (100, 100)), jnp.float32)
    key = jax.random.key(0)
    assert dropout(x, 0.3, None) is x and dropout(x, 0.0, key) is x
    got = np.asarray(dropout(x, 0.3, key))
    zero = got == 0
    assert zero.mean() == pytest.approx(0.3, abs=0.02)
    np.testing.assert_allclose(got[~zero], np.asarray(x)[~zero] / 0.7, rtol=1e-6)
    assert got.mean() == pytest.approx(float(x.mean()), rel=0.02)
    assert dropout(x.astype(jnp.bfloat16), 0.3, key).dtype == jnp.bfloat16


def test_draws_have_the_declared_deviation():
    spec = ParamSpec((3, 100, 50), ("layers", None, None), Initializer("normal", 0.2))
    got = np.asarray(draw("normal", spec.shape, spec.stacked, "float32", jax.random.key(0), spec.init.scale))
    assert got.std() == pytest.approx(0.2, rel=0.02) and abs(got.mean()) < 0.01
    assert np.abs(got[0] - got[1]).max() > 0.1
    constant = draw("constant", (4,), False, "bfloat16", jax.random.key(0), 0.0)
    assert constant.dtype == jnp.bfloat16 and not np.any(np.asarray(constant, np.float32))
