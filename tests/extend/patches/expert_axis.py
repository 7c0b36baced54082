"""Experts over 4 devices, with rows split over them too, are what they are on one device; each device holds its own."""

import dataclasses

import jax
import numpy as np
from t5x_like.layers.experts import Experts
from tiny_models import first, random_batch, tiny

from t5x_like.arrays.trees import flatten
from t5x_like.config import AdamW, Group, MeshConfig, Rule, TokenLoss
from t5x_like.models.transformer import make_model
from t5x_like.optim.optimizer import make_optimizer
from t5x_like.sharding.mesh import make_placement, use
from t5x_like.train.setup import Setup
from t5x_like.train.step import sums_and_gradient

dense = tiny("llama")
for capacity in (4.0, 1.0):
    layer = dataclasses.replace(first(dense), feed_forward=Experts(count=4, width=24, capacity=capacity))
    decoder = dataclasses.replace(dense.decoder, groups=(Group(2, (first(dense), layer)),))
    config = dataclasses.replace(dense, decoder=decoder)
    structure, specs = make_model(config)
    setup = Setup(structure, specs, make_optimizer(AdamW(), specs, 10), TokenLoss())
    batch, key = random_batch(config, rows=8), jax.random.key(0)
    params = setup.initial_state(make_placement(MeshConfig(), jax.devices()[:1]), 0)["params"]
    wanted = jax.jit(lambda p: sums_and_gradient(setup, p, batch, key))(params)  # noqa: B023
    assert (wanted[0]["dropped"][0] > 0) == (capacity < 2)
    rules = (Rule("experts", ("expert",)), Rule("batch", ("data", "fsdp", "expert")))
    placement = make_placement(MeshConfig(data=2, expert=4, rules=rules))

    def on_mesh(params, placement=placement, setup=setup, batch=batch, key=key):
        with use(placement):
            return sums_and_gradient(setup, params, batch, key)

    params = setup.initial_state(placement, 0)["params"]
    kernel = flatten(params)["decoder/layers/1/feed_forward/inner/up"]
    assert kernel.shape == (2, 4, 16, 24) and kernel.addressable_shards[0].data.shape == (2, 1, 16, 24)
    found = jax.jit(on_mesh)(params, batch=jax.device_put(batch, placement.batch))
    for name in ("loss", "balance", "dropped"):
        np.testing.assert_allclose(found[0][name], wanted[0][name], rtol=1e-5, err_msg=name)
    for path, array in flatten(found[1]).items():
        np.testing.assert_allclose(array, flatten(wanted[1])[path], atol=1e-5, rtol=1e-5, err_msg=path)
    print("capacity", capacity, "equal")
