"""A decoder over 4 stages, and an encoder-decoder with T5's bias over 2, are what they are on one device: loss, every
gradient, every parameter after a step; and each device holds only its stage's layers."""

import dataclasses

import jax
import numpy as np
from tiny_models import random_batch, tiny

from t5x_like.arrays.trees import flatten
from t5x_like.config import AdamW, MeshConfig, Rule, TokenLoss
from t5x_like.models.transformer import make_model
from t5x_like.optim.optimizer import make_optimizer
from t5x_like.sharding.mesh import make_placement, use
from t5x_like.train.setup import Setup
from t5x_like.train.step import compile_step, sums_and_gradient

CASES = (
    ("llama", dict(decoder_layers=4), MeshConfig(data=1, fsdp=2, stage=4)),
    ("t5_1_1", dict(encoder_layers=2, decoder_layers=4), MeshConfig(data=4, stage=2)),
)
for family, sizes, mesh in CASES:
    config = tiny(family, **sizes)
    structure, specs = make_model(config)
    setup = Setup(structure, specs, make_optimizer(AdamW(eps=1e-3), specs, 10), TokenLoss())
    batch, key = random_batch(config, rows=8), jax.random.key(0)
    one = make_placement(MeshConfig(), jax.devices()[:1])
    params = setup.initial_state(one, 0)["params"]
    wanted = jax.jit(lambda p: sums_and_gradient(setup, p, batch, key))(params)  # noqa: B023
    stepped, _ = compile_step(setup, one)(setup.initial_state(one, 0), batch)
    placement = make_placement(dataclasses.replace(mesh, rules=(Rule("layers", ("stage",)),)))

    def on_stages(params, placement=placement, setup=setup, batch=batch):
        with use(placement):
            return sums_and_gradient(setup, params, batch, key)  # noqa: B023

    state = setup.initial_state(placement, 0)
    kernel = flatten(state["params"])["decoder/layers/attention/inner/query/kernel"]
    assert kernel.addressable_shards[0].data.shape[0] == 4 // mesh.stage
    lowered = jax.jit(on_stages).lower(state["params"])
    assert "collective_permute" in lowered.as_text()
    found = lowered.compile()(state["params"])
    np.testing.assert_allclose(found[0]["loss"], wanted[0]["loss"], rtol=1e-5)
    for path, array in flatten(found[1]).items():
        np.testing.assert_allclose(array, flatten(wanted[1])[path], atol=1e-5, rtol=1e-5, err_msg=path)
    state, _ = compile_step(setup, placement)(state, batch)
    for path, array in flatten(state["params"]).items():
        np.testing.assert_allclose(array, flatten(stepped["params"])[path], atol=1e-5, err_msg=path)
    print(family, mesh.stage, "stages: equal")
