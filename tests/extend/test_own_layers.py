"""Kinds of layers, positions, front ends and families defined outside the package: each is one file, used as it lies in
a folder of a user's, and goes through the same model, loss, decoding and conversion as those that come with it."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_models import compiled, first, random_batch, random_params, relative_error, tiny

from t5x_like.arrays.keys import named
from t5x_like.arrays.trees import flatten
from t5x_like.config import AdamW, MeshConfig, TokenLoss
from t5x_like.convert.hugging_face import from_hugging_face, to_hugging_face
from t5x_like.core.loading import load_module
from t5x_like.layers.param import initialize
from t5x_like.layers.stack import Group
from t5x_like.models.counts import forward_flops
from t5x_like.models.transformer import make_model
from t5x_like.optim.optimizer import make_optimizer
from t5x_like.sharding.mesh import make_placement
from t5x_like.train.setup import Setup
from t5x_like.train.step import compile_step

OWN = Path(__file__).parent / "own"


@pytest.fixture
def own(tmp_path):
    """Loads a user's file from a folder outside the package."""

    def load(name: str):
        return load_module(Path(shutil.copy(OWN / f"{name}.py", tmp_path)))

    return load


def with_layers(config, *layers, times: int = 2, **side):
    decoder = dataclasses.replace(config.decoder, groups=(Group(times, layers),), **side)
    return dataclasses.replace(config, decoder=decoder)


def logits_of(config, params=None):
    structure, specs = make_model(config)
    params = random_params(specs) if params is None else params
    batch = random_batch(config)
    return np.asarray(compiled(lambda p: nnx.merge(structure, p).logits(batch))(params)), params, batch


def assert_scanned_is_unrolled(config):
    scanned, params, _ = logits_of(dataclasses.replace(config, scan_layers=True))
    unrolled, *_ = logits_of(dataclasses.replace(config, scan_layers=False), params)
    assert np.isfinite(scanned).all() and relative_error(scanned, unrolled) < 1e-5
    return params


def test_positions(own):
    chosen = own("positions").RootDistance()
    config = tiny("llama")
    config = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, positions=chosen))
    params = flatten(assert_scanned_is_unrolled(config))
    assert params["decoder/position_bias"].shape == (4,)  # one table for the stack
    wanted, tree, _ = logits_of(config)
    tree["decoder"]["position_bias"] = tree["decoder"]["position_bias"] + 3.0
    assert relative_error(logits_of(config, tree)[0], wanted) > 1e-3


def test_a_mixer_of_its_own_beside_attention_and_its_cache(own):
    layer = first(tiny("llama"))
    mine = dataclasses.replace(layer, mixer=own("mixer").RunningMean())
    config = with_layers(tiny("llama"), mine, layer)
    params = flatten(assert_scanned_is_unrolled(config))
    assert params["decoder/layers/0/running_mean/inner/decay"].shape == (2, 16)
    assert "decoder/layers/1/attention/inner/query/kernel" in params
    structure, specs = make_model(config)
    params, tokens = random_params(specs), random_batch(config)["decoder_tokens"]
    batch = {"decoder_tokens": tokens, "decoder_segments": jnp.ones_like(tokens)}
    wanted = nnx.merge(structure, params).logits(batch)
    model = nnx.merge(structure, params)
    cache, parts = model.start_cache(*tokens.shape), []
    for start, stop in ((0, 4), (4, 5), (5, 9)):
        places = jnp.broadcast_to(jnp.arange(start, stop, dtype=jnp.int32), (tokens.shape[0], stop - start))
        part = {"decoder_tokens": tokens[:, start:stop], "decoder_positions": places}
        part["decoder_segments"] = jnp.ones_like(places)
        x, cache = model.decode(part, cache, jnp.int32(start), jnp.ones_like(tokens))
        parts.append(model.head().logits(x))
    assert relative_error(jnp.concatenate(parts, axis=1), wanted) < 1e-5


def test_experts_give_side_losses_metrics_and_statistics(own):
    layer = first(tiny("llama"))
    experts = own("experts").Experts(count=3, width=12)
    config = with_layers(tiny("llama"), layer, dataclasses.replace(layer, feed_forward=experts))
    assert_scanned_is_unrolled(config)
    outs = []
    for scan in (True, False):
        structure, specs = make_model(dataclasses.replace(config, scan_layers=scan))
        params, batch = random_params(specs), random_batch(config)
        outs.append(compiled(lambda p, structure=structure, batch=batch: nnx.merge(structure, p).run(batch)[1])(params))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5), *outs)
    out = outs[0]
    tokens = batch["decoder_tokens"].size
    assert float(out.losses["balance"][1]) == float(out.metrics["largest_load"][1]) == 2 * tokens  # two such layers
    assert 0 < float(out.losses["balance"][0]) / (2 * tokens) < 0.03
    load = out.statistics["decoder"]["layers"]["1"]["feed_forward"]["inner"]["bias"]
    assert load.shape == (2, 3) and np.asarray(load).sum(-1).tolist() == [tokens, tokens]
    assert load.shape == flatten(specs)["decoder/layers/1/feed_forward/inner/bias"].shape


def test_a_front_end_for_vectors_instead_of_tokens(own):
    config = tiny("t5_1_1")
    encoder = dataclasses.replace(config.encoder, inputs=own("patches").Pairs(5))
    config = dataclasses.replace(config, encoder=encoder)
    assert config.arrays()["encoder_pairs"].axes == ("batch", "length", "pair", "features")
    structure, specs = make_model(config)
    assert flatten(specs)["encoder_inputs/projection/kernel"].shape == (10, 16)
    params, batch = random_params(specs), dict(random_batch(config))
    del batch["encoder_tokens"]
    vectors = np.random.default_rng(0).normal(size=(2, 11, 2, 5)).astype(np.float32)

    def logits(vectors):
        return np.asarray(nnx.merge(structure, params).logits({"encoder_pairs": jnp.asarray(vectors), **batch}))

    one = logits(vectors)
    vectors[1, 9:] += 1.0  # padding, by the segments
    np.testing.assert_array_equal(logits(vectors), one)
    vectors[0, 3] += 1.0
    assert relative_error(logits(vectors)[0], one[0]) > 1e-3

    setup = Setup(structure, specs, make_optimizer(AdamW(), specs, 10), TokenLoss())
    placement = make_placement(MeshConfig(), jax.devices()[:1])
    with jax.debug_nans(True):
        state, metrics = compile_step(setup, placement)(
            setup.initial_state(placement, 0), {"encoder_pairs": jnp.asarray(vectors), **batch}
        )
    start = initialize(specs, named(jax.random.key(0), "params"))["encoder_inputs"]["projection"]["kernel"]
    moved = np.abs(np.asarray(state["params"]["encoder_inputs"]["projection"]["kernel"]) - np.asarray(start))
    assert float(metrics["loss"][0]) > 0 and float(metrics["finite"][0]) == 1 and (moved > 0).mean() > 0.9


def test_a_family_with_names_of_its_own(own):
    family = own("family")
    sizes = dict(vocab_size=40, d_model=16, heads=4, kv_heads=2, head_dim=8, d_ff=24)
    config = family.local_and_global(window=2, **sizes)
    assert_scanned_is_unrolled(config)
    wanted, params, _ = logits_of(config)
    far, *_ = logits_of(family.local_and_global(window=0, **sizes), params)
    assert relative_error(far, wanted) > 1e-3, "the window of every second layer"
    tensors = to_hugging_face(config, params, family.FAMILY)
    assert tensors["near.1.query.weight"].shape == (32, 16)
    back = flatten(from_hugging_face(config, tensors, family.FAMILY))
    for path, array in flatten(params).items():
        np.testing.assert_array_equal(back[path], array)


def test_groups_are_stacked_by_themselves_and_widths_differ():
    layer = first(tiny("llama"))
    wide = dataclasses.replace(layer, feed_forward=dataclasses.replace(layer.feed_forward, width=40))
    decoder = dataclasses.replace(tiny("llama").decoder, groups=(Group(1, (wide,)), Group(3, (layer,))))
    config = dataclasses.replace(tiny("llama"), decoder=decoder)
    params = flatten(assert_scanned_is_unrolled(config))
    assert params["decoder/layers_0/feed_forward/inner/up/kernel"].shape == (1, 16, 40)
    assert params["decoder/layers_1/feed_forward/inner/up/kernel"].shape == (3, 16, 24)
    uniform = dataclasses.replace(config, decoder=dataclasses.replace(decoder, groups=(Group(4, (layer,)),)))
    flops = [forward_flops(c, make_model(c)[1], 0, 9) for c in (config, uniform)]
    assert flops[0] - flops[1] == 2 * 3 * 16 * (40 - 24) * 9


def test_layers_alike_in_two_groups_compute_what_they_do_in_one():
    layer = first(tiny("llama"))
    one = tiny("llama", decoder_layers=3)
    split = dataclasses.replace(one.decoder, groups=(Group(1, (layer,)), Group(2, (layer,))))
    other = dataclasses.replace(one, decoder=split)
    wanted, params, _ = logits_of(one)
    layers = params["decoder"].pop("layers")
    params["decoder"]["layers_0"] = jax.tree.map(lambda a: a[:1], layers)
    params["decoder"]["layers_1"] = jax.tree.map(lambda a: a[1:], layers)
    assert relative_error(logits_of(other, params)[0], wanted) < 1e-6
