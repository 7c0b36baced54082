"""A scanned stack is an unrolled one; remat changes what is computed and not what comes out; dropout
follows its key."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from flax import nnx
from tiny_models import built, compiled, loss_function, random_batch, relative_error, tiny

from t5x_like.arrays.trees import flatten
from t5x_like.models.families import Dropout


@functools.lru_cache(maxsize=16)
def gradients(family: str, scan: bool, remat: str = "none", dropout: float = 0.0):
    """((loss, gradients), jaxpr) of a tiny model."""
    config = tiny(family, scan_layers=scan, remat=remat, dropout=Dropout.t5(dropout))
    params, batch = built(config)[2], random_batch(config)
    key = jax.random.key(0) if dropout else None
    traced = compiled(jax.value_and_grad(loss_function(config))).trace(params, batch, key)
    return traced.lower().compile()(params, batch, key), traced.jaxpr


def assert_same(one, other):
    (loss, grads), (other_loss, other_grads) = one, other
    assert float(loss) == pytest.approx(float(other_loss), abs=1e-5)
    wanted = flatten(other_grads)
    for path, gradient in flatten(grads).items():
        assert np.any(np.asarray(wanted[path]) != 0), path
        if path.endswith("key/bias"):  # shifts all scores of a row alike: its gradient is 0 but for rounding
            continue
        assert relative_error(gradient, wanted[path]) < 1e-5, path


def count(jaxpr, name: str) -> int:
    """How often a primitive stands in a jaxpr, inner ones included."""
    found = 0
    for equation in jaxpr.eqns:
        found += equation.primitive.name == name
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    found += count(inner, name)
    return found


@pytest.mark.parametrize(
    "family", ["t5_1_1", *(pytest.param(f, marks=pytest.mark.slow) for f in ("umt5", "bert", "llama"))]
)
def test_scanned_is_unrolled(family):
    scanned, unrolled = gradients(family, True), gradients(family, False)
    assert_same(scanned[0], unrolled[0])
    assert "scan" in str(scanned[1]) and "scan" not in str(unrolled[1])


@pytest.mark.slow
def test_scanned_is_unrolled_with_dropout():
    scanned, unrolled = gradients("t5_1_1", True, "none", 0.2), gradients("t5_1_1", False, "none", 0.2)
    assert_same(scanned[0], unrolled[0])
    without = gradients("t5_1_1", True)
    assert abs(float(scanned[0][0]) - float(without[0][0])) > 1e-3


@pytest.mark.parametrize(
    "family, scan",
    [
        ("llama", True),
        pytest.param("llama", False, marks=pytest.mark.slow),
        pytest.param("t5_1_1", True, marks=pytest.mark.slow),
        pytest.param("bert", True, marks=pytest.mark.slow),
    ],
)
def test_remat_computes_more_and_changes_nothing(family, scan):
    none, dots, full = (gradients(family, scan, remat) for remat in ("none", "dots", "full"))
    assert_same(dots[0], none[0])
    assert_same(full[0], none[0])
    products = [count(kind[1].jaxpr, "dot_general") for kind in (none, dots, full)]
    assert products[0] == products[1] < products[2], "no product is made twice, attention's included"
    norms = [count(kind[1].jaxpr, "rsqrt") for kind in (none, dots, full)]
    assert norms[0] < norms[1] == norms[2], norms


@pytest.mark.slow
def test_rematerialized_layers_draw_the_same_dropout():
    assert_same(gradients("t5_1_1", True, "full", 0.2)[0], gradients("t5_1_1", True, "none", 0.2)[0])


RATES = ("embedding", "attention", "residual", "hidden", "final")


def activations(rates: dict):
    """Compiled key -> activations of a tiny decoder-only model."""
    config = tiny("llama", dropout=Dropout(**rates))
    structure, _, params = built(config)
    batch = random_batch(config)
    return compiled(lambda key: nnx.merge(structure, params)(batch, key))


@functools.lru_cache(maxsize=1)
def without_dropout():
    return np.asarray(activations({})(None))


@pytest.mark.parametrize("place", RATES)
def test_dropout_by_place(place):
    """Each rate has its effect; the same key gives the same numbers, another key others."""
    function, without = activations({place: 0.5}), without_dropout()
    one, again, other = (np.asarray(function(jax.random.key(seed))) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert relative_error(one, other) > 0.05
    assert relative_error(one, without) > 0.05
    if place == "final":  # nothing comes after it, so the mean over keys is the value without
        mean = np.mean([np.asarray(function(key)) for key in jax.random.split(jax.random.key(2), 400)], axis=0)
        assert relative_error(mean, without) < 0.25  # five standard errors
        assert np.mean(one == 0) == pytest.approx(0.5, abs=0.08)


def test_no_key_is_no_dropout_and_zero_rates_ignore_the_key():
    np.testing.assert_allclose(activations({place: 0.5 for place in RATES})(None), without_dropout(), atol=1e-6)
    np.testing.assert_allclose(activations({})(jax.random.key(0)), without_dropout(), atol=1e-6)
