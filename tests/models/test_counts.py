"""Parameter counts are the published ones, without a device; FLOPs are those of the matrix products."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from tiny_models import built, random_batch, tiny

from t5x_like.arrays.trees import flatten
from t5x_like.config import MeshConfig, Run, TokenLoss
from t5x_like.core.config import override
from t5x_like.core.loading import load_run
from t5x_like.layers.param import abstract
from t5x_like.layers.positions import T5Relative
from t5x_like.models import families
from t5x_like.models.counts import activation_bytes, forward_flops, logits_bytes, parameter_count, train_flops
from t5x_like.models.transformer import make_model
from t5x_like.sharding.mesh import make_placement
from t5x_like.train.setup import make_setup
from t5x_like.train.step import compile_step

UL2_20B = dict(d_model=4096, heads=16, head_dim=256, d_ff=16384, encoder_layers=32, decoder_layers=32)
PUBLISHED = [
    *[(families.t5_1_0, size, {}, count) for size, count in (
        ("small", 60_506_624), ("base", 222_903_552), ("large", 737_668_096), ("3b", 2_851_598_336),
        ("11b", 11_307_321_344))],
    *[(families.t5_1_1, size, {}, count) for size, count in (
        ("small", 76_961_152), ("base", 247_577_856), ("large", 783_150_080), ("xl", 2_849_757_184),
        ("xxl", 11_135_332_352))],
    *[(families.mt5, size, {}, count) for size, count in (
        ("small", 300_176_768), ("base", 582_401_280), ("xxl", 12_921_057_280))],
    (families.byt5, "base", {}, 581_653_248),
    (families.t5_1_1, "xxl", UL2_20B, 19_591_209_984),
    # Pile-T5: T5 1.1 with a table of relative biases in every layer
    *[(families.t5_1_1, size, dict(positions=T5Relative(own_tables=True)), count) for size, count in (
        ("base", 247_586_304), ("xl", 2_849_804_288), ("xxl", 11_135_426_560))],
]  # fmt: skip


@pytest.mark.parametrize(
    "family, size, fields, count", PUBLISHED, ids=[f"{f.__name__}-{s}-{c}" for f, s, _, c in PUBLISHED]
)
def test_t5_family(family, size, fields, count):
    assert parameter_count(make_model(family(size, **fields))[1]) == count


def test_other_families():
    """GPT-2 small has 124,439,808 parameters and TinyLlama 1,100,048,384 by their cards; BERT base with its masked-LM
    head has 109,514,298 without the pooler."""
    assert parameter_count(make_model(families.gpt2())[1]) == 124_439_808
    assert parameter_count(make_model(families.llama())[1]) == 1_100_048_384
    assert parameter_count(make_model(families.bert())[1]) == 109_514_298


def test_flops_counted_by_hand():
    config = tiny("t5_1_1")
    specs = built(config)[1]
    S, L, D, inner, F, V = 11, 9, 16, 32, 24, 40
    encoder = 2 * (4 * D * inner + 3 * D * F) * S
    decoder = 2 * ((6 * D * inner + 3 * D * F) * L + 2 * D * inner * S) + V * D * L
    scores = 2 * 2 * inner * (S * S + L * (L + 1) / 2 + L * S)
    assert forward_flops(config, specs, S, L) == 2 * (encoder + decoder + scores)
    assert train_flops(config, specs, S, L) == 3 * forward_flops(config, specs, S, L)


def test_flops_of_a_tied_head_and_a_window():
    tied, own = tiny("gpt2"), tiny("gpt2", tied_head=False)
    assert forward_flops(tied, built(tied)[1], 0, 9) == forward_flops(own, built(own)[1], 0, 9)
    near = tiny("gpt2", window=2)
    saved = forward_flops(tied, built(tied)[1], 0, 9) - forward_flops(near, built(near)[1], 0, 9)
    assert saved == 2 * (2 * 2 * 32) * 9 * (5 - 3)  # of 5 keys a query on average, 3 are left


def test_names_of_parameters_are_the_same_scanned_or_not():
    one, other = (make_model(tiny("umt5", scan_layers=scan))[1] for scan in (True, False))
    assert flatten(one) == flatten(other)
    assert flatten(one)["decoder/layers/attention/inner/position_bias"].shape == (2, 8, 4)
    assert "decoder/position_bias" not in flatten(one)


def kept(config, rows: int) -> int:
    structure, specs = make_model(config)
    params = abstract(specs)
    batch = jax.eval_shape(lambda: random_batch(config, rows=rows))

    def loss(params, batch):
        return TokenLoss()(nnx.merge(structure, params), batch, None)["loss"][0]

    return activation_bytes(loss, params, batch)


def test_activations_counted_by_hand():
    """Of tanh(x W) V: x, the tanh that both gradients read and its own, and the sum of squares' argument."""
    params = {"w": jax.ShapeDtypeStruct((8, 16), jnp.float32), "v": jax.ShapeDtypeStruct((16, 4), jnp.float32)}
    x = jax.ShapeDtypeStruct((32, 8), jnp.float32)

    def loss(params, x):
        return jnp.sum(jnp.square(jnp.tanh(x @ params["w"]) @ params["v"]))

    assert 4 * (32 * 8 + 32 * 16 + 32 * 4) <= activation_bytes(loss, params, x) <= 4 * (32 * 8 + 2 * 32 * 16 + 32 * 4)
    bare = activation_bytes(jax.checkpoint(loss), params, x)
    assert bare == 4 * 32 * 8


@pytest.mark.parametrize("family", ["t5_1_1", "llama", "bert"])
def test_activations_grow_with_rows_and_shrink_with_remat(family):
    config = tiny(family)
    weights = kept(config, 2) * 2 - kept(config, 4)  # gradients of the projection, which no row makes longer
    assert 0 <= weights <= 4 * (config.vocab_size * config.d_model + 200)
    sizes = [kept(tiny(family, remat=remat), 16) for remat in ("none", "dots", "full")]
    assert sizes[0] > 1.2 * sizes[1] > 1.44 * sizes[2]
    assert kept(tiny(family, scan_layers=False), 16) == pytest.approx(sizes[0], rel=0.1)


SHIPPED = {
    "t5_sotu": (), "gpt_sotu": (), "bert_sotu": (), "prefix_sotu": (), "byt5_python": (), "ul2_mixture": (),
    "gpt_sotu in micro-batches": ("train.batch_size=64", "train.micro_batches=4"),
    "gpt_sotu in chunks": ("train.logits_chunk=32",),
    "t5_1_1_base": ("train.batch_size=4",),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_memory_of_shipped_configs_is_within_a_quarter_of_the_compilers(name):
    """State, gradient, kept activations and logits, against the compiler's arguments and temporaries on a CPU."""
    run = override(load_run(name.split()[0], Run), SHIPPED[name])
    setup, placement = make_setup(run), make_placement(MeshConfig(), jax.devices()[:1])
    state, capacity = setup.abstract_state(placement), run.objective.capacity(run.data, run.model.shape)

    def batch_of(rows):
        lengths = {key: capacity[0] if key.startswith("encoder") else capacity[-1] for key in run.model.arrays()}
        arrays = {key: jax.ShapeDtypeStruct((rows, lengths[key]), a.dtype) for key, a in run.model.arrays().items()}
        extras = run.objective.extras(run.model.shape)
        return arrays | {key: jax.ShapeDtypeStruct((rows, capacity[-1]), "int32") for key in extras}

    def loss(params, batch):
        return setup.loss(setup.bind(params), batch, jax.random.key(0))["loss"][0]

    rows = run.train.batch_size // run.train.micro_batches
    found = activation_bytes(loss, state["params"], batch_of(rows))
    found += logits_bytes(run.model, rows, capacity[-1], run.train.logits_chunk)
    found += sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((state, state["params"])))
    memory = compile_step(setup, placement).lower(state, batch_of(run.train.batch_size)).compile().memory_analysis()
    assert memory is not None
    wanted = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    print(f"{name}: {found / 1e6:.1f} MB, compiler {wanted / 1e6:.1f} MB, {found / wanted - 1:+.0%}")
    assert 0.75 < found / wanted < 1.25
