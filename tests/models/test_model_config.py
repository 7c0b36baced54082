"""Every check of a model's config names the field, shows the value, and says what is allowed."""

from __future__ import annotations

import dataclasses

import pytest
from tiny_models import first, tiny

from t5x_like.core.errors import UserError
from t5x_like.layers.init import Normal
from t5x_like.layers.norms import RMSNorm
from t5x_like.layers.positions import Learned, Rope, Sinusoidal, T5Relative
from t5x_like.layers.stack import Group
from t5x_like.models import families
from t5x_like.models.config import Side
from t5x_like.models.families import Dropout
from t5x_like.models.inputs import Features, Tokens
from t5x_like.sharding.rules import RULES, axis_ways


def refused(function, *args, **fields) -> str:
    with pytest.raises(UserError) as error:
        function(*args, **fields)
    assert error.value.allowed or error.value.suggestion
    return str(error.value)


@pytest.mark.parametrize(
    "fields, where, parts",
    [
        *[({name: 0}, f"model.{name}", ["got 0"]) for name in ("d_model", "d_ff", "heads", "head_dim")],
        (dict(kv_heads=3), "model.kv_heads", ["3 does not divide model.heads = 4", "1, 2, 4"]),
        (dict(kv_heads=-1), "model.kv_heads", ["-1"]),
        (dict(kv_heads=8), "model.kv_heads", ["8 does not divide"]),
        (dict(positions=Rope(), head_dim=7), "model.head_dim", ["got 7", "even"]),
        (dict(positions=Sinusoidal(), d_model=15), "model.d_model", ["got 15", "even"]),
        *[({name: -1}, f"model.{name}", ["got -1", "0 or more"]) for name in ("attention_soft_cap", "window")],
        (dict(vocab_size=0), "model.vocab_size", ["got 0"]),
        (dict(encoder_layers=0, decoder_layers=0), "model", ["neither an encoder nor a decoder"]),
        (dict(decoder_layers=-2), "model.decoder_layers", ["got -2"]),
        (dict(scale_tied_logits=True), "model.scale_tied_logits", ["model.tied_head=true"]),
        (dict(logits_soft_cap=-1.0), "model.logits_soft_cap", ["got -1.0"]),
        (dict(embedding_init_std=-1.0), "model.embedding_init_std", ["got -1.0"]),
        (dict(future_heads=1), "model.future_heads", ["got 1", "decoder-only"]),
        (dict(windows=3), "windows", ["no such field of a model", "did you mean 'window'?"]),
    ],
)
def test_checks(fields, where, parts):
    text = refused(tiny, "t5_1_1", **fields)
    for part in [where, *parts]:
        assert part in text


@pytest.mark.parametrize(
    "build, where, part",
    [
        (lambda: T5Relative(buckets=0), "model.positions.buckets", "got 0"),
        (lambda: T5Relative(buckets=6), "model.positions.buckets", "a multiple of 4"),
        (lambda: T5Relative(32, 16), "model.positions.buckets", "max_distance = 16"),
        (lambda: Rope(0.0), "model.positions.theta", "got 0.0"),
        (lambda: Learned(0), "model.positions.length", "got 0"),
        (lambda: RMSNorm(-1.0), "model.norm.eps", "got -1.0"),
        (lambda: Normal(stddev=-1.0), "model.init.stddev", "got -1.0"),
        (lambda: Tokens(types=-1), "model.inputs.types", "got -1"),
        (lambda: Features(0), "model.inputs.size", "got 0"),
        (lambda: Group(0, (first(tiny("llama")),)), "model.groups.times", "got 0"),
        (lambda: Group(1, ()), "model.groups.pattern", "no layer"),
        (lambda: Side(groups=()), "model.groups", "no layer"),
    ],
)
def test_checks_of_choices(build, where, part):
    text = refused(build)
    assert text.startswith(where) and part in text


def test_cross_attention_is_where_it_must_be():
    both, alone = tiny("t5_1_1"), tiny("llama")
    text = refused(dataclasses.replace, both, encoder=None)
    assert text.startswith("model.decoder.cross: got cross-attention")
    text = refused(dataclasses.replace, both, decoder=alone.decoder)
    assert text.startswith("model.decoder.cross: got no cross-attention")


def test_layers_of_unlike_heads_share_no_table():
    layer = first(tiny("t5_1_1"), "encoder")
    other = dataclasses.replace(layer, mixer=dataclasses.replace(layer.mixer, heads=2))
    side = dataclasses.replace(tiny("t5_1_1").encoder, groups=(Group(1, (layer, other)),))
    text = refused(dataclasses.replace, tiny("t5_1_1"), encoder=side)
    assert "layers of 2, 4 heads cannot share one table" in text
    own = dataclasses.replace(side, positions=T5Relative(8, 12, own_tables=True))
    dataclasses.replace(tiny("t5_1_1"), encoder=own)


@pytest.mark.parametrize("place", ["embedding", "attention", "residual", "hidden", "final"])
@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_dropout_rates(place, rate):
    assert f"model.dropout.{place}: got {rate}" in refused(Dropout, **{place: rate})


def test_sizes_by_name():
    assert "did you mean 'large'?" in refused(families.t5_1_1, "larg")


def test_length_of_learned_positions():
    config = tiny("gpt2", positions=Learned(32))
    config.check_length(32)
    assert "model.decoder.positions.length: 32 rows for a length of 33" in refused(config.check_length, 33)
    tiny("llama").check_length(10_000)


def test_tensor_parallel_sizes():
    def ways(tensor):
        return axis_ways(RULES, {"tensor": tensor})

    tiny("t5_1_1").check_sizes(ways(4))
    text = refused(tiny("llama").check_sizes, ways(4))
    assert text.startswith("model.kv_heads: 2, which the 4 parts of axis 'kv_heads'")
    assert "model.heads: 4, which the 8 parts" in refused(tiny("t5_1_1").check_sizes, ways(8))
    assert "model.vocab_size: 41" in refused(tiny("t5_1_1", vocab_size=41).check_sizes, ways(2))
