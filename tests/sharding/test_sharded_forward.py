"""One device and every mesh over eight give the same loss and gradients, with parameters that are really split; and
parameters born sharded are bit for bit those born on one device."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import built, compiled, loss_function, random_batch, relative_error, tiny

from t5x_like.arrays.trees import flatten
from t5x_like.layers.param import abstract, initialize
from t5x_like.ops.losses import LossConfig
from t5x_like.sharding.config import MeshConfig
from t5x_like.sharding.mesh import make_placement, use

MESHES = {
    "data 8": dict(data=8),
    "fsdp 8": dict(data=1, fsdp=8),
    "tensor 4 x data 2": dict(data=2, tensor=4),
    "2 x 2 x 2": dict(data=2, fsdp=2, tensor=2),
}
# A kernel of [layers, d_model 16, heads x head_dim 32] as each device holds it
QUERY_SHARDS = {
    "data 8": (2, 16, 32),
    "fsdp 8": (2, 2, 32),
    "tensor 4 x data 2": (2, 16, 8),
    "2 x 2 x 2": (2, 8, 16),
}
FAMILIES = ("t5_1_1", "gpt2", "bert")  # the three shapes

pytestmark = pytest.mark.skipif(len(jax.devices()) < 8, reason="needs 8 devices")


def gradients_on(placement, config, params, batch):
    """(loss, gradients) with arrays placed and activations constrained as training does."""
    function = jax.value_and_grad(loss_function(config, LossConfig(z_loss=1e-3, chunk=4)))
    with use(placement):
        return compiled(function)(params, batch)


@functools.lru_cache(maxsize=8)
def one_device(family: str):
    config = tiny(family)
    batch = random_batch(config, rows=8)
    return config, batch, *gradients_on(None, config, built(config)[2], batch)


@pytest.mark.parametrize(
    "family, mesh",
    [
        pytest.param(family, mesh, marks=() if (family, mesh) == ("t5_1_1", "2 x 2 x 2") else pytest.mark.slow)
        for family in FAMILIES
        for mesh in MESHES
    ],
)
def test_every_mesh_gives_what_one_device_gives(family, mesh):
    config, batch, loss, gradients = one_device(family)
    placement = make_placement(MeshConfig(**MESHES[mesh]))
    specs, params = built(config)[1:]
    split = jax.device_put(params, placement.of(specs))
    side = "encoder" if config.has_encoder else "decoder"
    query = split[side]["layers"]["attention"]["inner"]["query"]["kernel"]
    assert {shard.data.shape for shard in query.addressable_shards} == {QUERY_SHARDS[mesh]}
    assert len(query.addressable_shards) == 8
    rows = {name: jax.device_put(array, placement.batch) for name, array in batch.items()}
    assert {shard.data.shape[0] for shard in rows["targets"].addressable_shards} == {8 // placement.batch_ways}
    got, got_gradients = gradients_on(placement, config, split, rows)
    assert float(got) == pytest.approx(float(loss), abs=1e-5)
    wanted = flatten(gradients)
    for path, gradient in flatten(got_gradients).items():
        if not path.endswith("key/bias"):  # shifts all scores of a row alike: its gradient is 0 but for rounding
            assert relative_error(gradient, wanted[path]) < 2e-5, path


@pytest.mark.parametrize("mesh", [pytest.param("fsdp 8", marks=pytest.mark.slow), "2 x 2 x 2"])
def test_born_sharded_is_born_the_same(mesh):
    config = tiny("t5_1_1")
    specs, key = built(config)[1], jax.random.key(3)
    placement = make_placement(MeshConfig(**MESHES[mesh]))
    alone = flatten(compiled(lambda key: initialize(specs, key))(key))
    sharded = flatten(compiled(lambda key: initialize(specs, key), out_shardings=placement.of(specs))(key))
    for path, wanted in alone.items():
        assert np.asarray(sharded[path]).tobytes() == np.asarray(wanted).tobytes(), path
    split = [path for path, array in sharded.items() if not array.sharding.is_fully_replicated]
    assert {"token_embedding/table", "decoder/layers/feed_forward/inner/down/kernel"} <= set(split)
    described = flatten(abstract(specs, placement.of(specs)))
    for path, array in sharded.items():
        assert (described[path].shape, described[path].dtype) == (array.shape, array.dtype)
        assert described[path].sharding.is_equivalent_to(array.sharding, array.ndim), path


def test_initial_values_follow_their_declarations():
    specs = built(tiny("t5_1_1", d_model=64, d_ff=96, vocab_size=200))[1]
    encoder, decoder = specs["encoder"]["layers"], specs["decoder"]["layers"]
    few = {
        "encoder": {
            "layers": {"attention": {"inner": {n: encoder["attention"]["inner"][n] for n in ("query", "key")}}},
            "final_norm": specs["encoder"]["final_norm"],
        },
        "decoder": {"layers": {"feed_forward": {"inner": {"down": decoder["feed_forward"]["inner"]["down"]}}}},
        "token_embedding": specs["token_embedding"],
    }
    values = flatten(initialize(few, jax.random.key(0)))
    table = np.asarray(values["token_embedding/table"])
    assert np.std(table) == pytest.approx(1.0, rel=0.03)
    query = np.asarray(values["encoder/layers/attention/inner/query/kernel"])
    assert np.std(query) == pytest.approx((64 * 8) ** -0.5, rel=0.05)  # T5 divides here, not the scores
    assert np.std(values["encoder/layers/attention/inner/key/kernel"]) == pytest.approx(64**-0.5, rel=0.05)
    down = np.asarray(values["decoder/layers/feed_forward/inner/down/kernel"])
    assert np.std(down) == pytest.approx(96**-0.5, rel=0.05)
    assert abs(np.corrcoef(down[0].ravel(), down[1].ravel())[0, 1]) < 0.05  # layers draw apart
    assert np.all(np.asarray(values["encoder/final_norm/scale"]) == 1.0)
    assert {a.dtype for a in values.values()} == {jnp.dtype("float32")}
    again = flatten(initialize({"token_embedding": few["token_embedding"]}, jax.random.key(0)))
    np.testing.assert_array_equal(again["token_embedding/table"], table)  # whatever else is drawn
