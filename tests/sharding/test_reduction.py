"""One sum of gradients a step: the same gradients as with one in every layer."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from tiny_models import compiled, random_batch, tiny
from tiny_runs import assert_close

from t5x_like.arrays.trees import flatten
from t5x_like.layers.param import initialize
from t5x_like.losses import TokenLoss
from t5x_like.models.families import Dropout
from t5x_like.models.transformer import make_model
from t5x_like.optim import AdamW
from t5x_like.optim.optimizer import make_optimizer
from t5x_like.sharding.config import MeshConfig
from t5x_like.sharding.mesh import make_placement, use
from t5x_like.sharding.reduction import copying_axes, data_parallel_gradient
from t5x_like.train.feed import to_devices
from t5x_like.train.setup import Setup
from t5x_like.train.step import sums_and_gradient

pytestmark = pytest.mark.skipif(len(jax.devices()) < 8, reason="needs 8 devices")


@functools.lru_cache(maxsize=1)
def model():
    config = tiny("t5_1_1", encoder_layers=1, decoder_layers=1, dropout=Dropout.t5(0.2))
    structure, specs = make_model(config)
    batch = {name: jax.device_get(array) for name, array in random_batch(config, rows=8).items()}
    return structure, specs, batch


def gradients(mesh: MeshConfig, micro_batches: int):
    structure, specs, batch = model()
    placement = make_placement(mesh)
    optimizer = make_optimizer(AdamW(learning_rate=1e-3), specs, 10)
    setup = Setup(structure, specs, optimizer, TokenLoss(), micro_batches)
    params = initialize(specs, jax.random.key(0), placement.of(specs))

    def call(params, batch, key):
        with use(placement):
            return data_parallel_gradient(functools.partial(sums_and_gradient, setup), placement)(params, batch, key)

    sums, gradient = compiled(call)(params, to_devices(placement, batch, (0, 1)), jax.random.key(1))
    return {name: np.asarray(pair) for name, pair in sums.items()}, flatten(jax.device_get(gradient))


@pytest.mark.parametrize(
    "sizes, micro_batches",
    [
        pytest.param(dict(data=2, fsdp=2, tensor=2), 2, marks=pytest.mark.slow),
        pytest.param(dict(data=8), 1, marks=pytest.mark.slow),
        pytest.param(dict(data=4, tensor=2), 2, marks=pytest.mark.slow),
        pytest.param(dict(data=4, fsdp=2), 1, marks=pytest.mark.slow),
    ],
)
def test_once_a_step_is_once_a_layer(sizes, micro_batches):
    """Dropout of every kind included, attention's too: rows keep their numbers."""
    once = gradients(MeshConfig(**sizes), micro_batches)
    per_layer = gradients(MeshConfig(**sizes, reduce="per_layer"), micro_batches)
    for got, wanted in zip(once, per_layer, strict=True):
        assert_close(got, wanted)


def test_where_nothing_is_copied_the_function_is_left_alone():
    def function(params, batch, key):
        return params

    for sizes in (dict(data=1, fsdp=8), dict(data=1, tensor=8), dict(data=8, reduce="per_layer")):
        assert data_parallel_gradient(function, make_placement(MeshConfig(**sizes))) is function
    assert data_parallel_gradient(function, None) is function
    assert copying_axes(make_placement(MeshConfig(data=2, fsdp=4))) == ("data",)
