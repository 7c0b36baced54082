"""Models of every kind of position and mask go through the kernels where they are asked for, and compute with them what
they compute without."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from tiny_models import built, compiled, loss_function, random_batch, relative_error, tiny

import pallas_kernels
from t5x_like.arrays.trees import flatten
from t5x_like.layers.positions import Alibi
from t5x_like.ops.losses import LossConfig

# family and changes
MODELS = {
    "t5, packed": ("t5_1_1", {}),
    "umt5, a table per layer": ("umt5", {}),
    "alibi, prefix": ("llama", dict(positions=Alibi())),
    "rope, window, grouped heads": ("llama", dict(window=3)),
    "bert, packed": ("bert", {}),
}


def configured(name: str, backend: str):
    family, changes = MODELS[name]
    return tiny(family, attention_backend=backend, **changes)


def batch_of(name: str, config):
    batch = random_batch(config, rows=2)
    if "prefix" in name:
        marks = np.zeros(batch["decoder_tokens"].shape, np.int32)
        marks[:, :4] = 1
        batch = {**batch, "decoder_prefix": jax.numpy.asarray(marks)}
    return batch


KERNELS = {
    "tpu": {"attention_forward", "attention_backward"},
    "gpu": {"attention_forward", "attention_dq", "attention_dkv"},
}


def look_into(jaxpr, kernels: set[str], shapes: set[tuple[int, ...]]) -> None:
    """Collects names of kernels, and shapes of everything computed outside them."""
    for equation in jaxpr.eqns:
        shapes |= {tuple(var.aval.shape) for var in equation.outvars if hasattr(var.aval, "shape")}
        if equation.primitive.name == "pallas_call":
            kernels.add(str(equation.params.get("name") or equation.params["name_and_src_info"].name))
            continue
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                look_into(inner, kernels, shapes)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("backend", ["tpu", "gpu", "xla"])
def test_training_goes_through_the_kernels(name, backend):
    config = configured(name, backend)
    batch = batch_of(name, config)
    kernels, shapes = set(), set()
    gradient = jax.grad(loss_function(config, LossConfig()))
    look_into(jax.make_jaxpr(gradient)(built(config)[2], batch).jaxpr, kernels, shapes)
    assert kernels == KERNELS.get(backend, set())
    lengths = {batch[key].shape[1] for key in batch if key.endswith("_tokens")}
    dense = [shape for shape in shapes if len(shape) >= 4 and set(shape[-2:]) <= lengths]
    assert bool(dense) == (backend == "xla"), dense  # the short rows of this test are one chunk there


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_they_compute_the_same(name, monkeypatch):
    interpreted = functools.partial(pallas_kernels.attention, interpret=True)
    results = {}
    for backend in ("xla", "tpu"):
        if backend == "tpu":
            monkeypatch.setattr(
                pallas_kernels, "attention", lambda *a, **k: interpreted(*a, **{**k, "interpret": True})
            )
        config = configured(name, backend)
        function = jax.value_and_grad(loss_function(config, LossConfig()))
        results[backend] = compiled(function)(built(config)[2], batch_of(name, config))
    (loss, gradients), (wanted, wanted_gradients) = results["tpu"], results["xla"]
    assert float(loss) == pytest.approx(float(wanted), abs=1e-5)
    flat = flatten(wanted_gradients)
    for path, gradient in flatten(gradients).items():
        if not path.endswith("key/bias"):  # its gradient is 0 but for rounding
            assert relative_error(gradient, flat[path]) < 2e-5, path
