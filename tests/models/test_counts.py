"""Parameter counts are the published ones, without a device; FLOPs are those of the matrix products."""

from __future__ import annotations

import pytest
from tiny_models import built, tiny

from t5x_like.arrays.trees import flatten
from t5x_like.layers.positions import T5Relative
from t5x_like.models import families
from t5x_like.models.counts import forward_flops, parameter_count, train_flops
from t5x_like.models.transformer import make_model

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
