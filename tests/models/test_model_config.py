"""Every check of a model's config names the field, shows the value, and says what is allowed."""

from __future__ import annotations

import pytest
from tiny_models import tiny

from t5x_like.core.errors import UserError
from t5x_like.layers.config import Dropout
from t5x_like.models import families


def refused(function, *args, **fields) -> str:
    with pytest.raises(UserError) as error:
        function(*args, **fields)
    assert error.value.allowed or error.value.suggestion
    return str(error.value)


@pytest.mark.parametrize(
    "fields, where, parts",
    [
        *[({name: 0}, f"model.{name}", ["got 0"]) for name in ("d_model", "d_ff", "heads", "head_dim")],
        (dict(positions="none", buckets=0), "model.buckets", ["got 0"]),
        (dict(positions="none", max_distance=0), "model.max_distance", ["got 0"]),
        (dict(kv_heads=3), "model.kv_heads", ["3 does not divide model.heads = 4", "1, 2, 4"]),
        (dict(kv_heads=-1), "model.kv_heads", ["-1"]),
        (dict(kv_heads=8), "model.kv_heads", ["8 does not divide"]),
        (dict(positions="rope", head_dim=7), "model.head_dim", ["got 7", "even"]),
        (dict(positions="sinusoidal", d_model=15), "model.d_model", ["got 15", "even"]),
        (dict(buckets=6), "model.buckets", ["got 6", "a multiple of 4"]),
        (dict(buckets=32, max_distance=16), "model.buckets", ["model.max_distance = 16"]),
        (dict(positions="rope", bias_per_layer=True), "model.bias_per_layer", ["model.positions=t5"]),
        *[({name: -1}, f"model.{name}", ["got -1", "0 or more"])
          for name in ("attention_soft_cap", "window", "norm_eps", "init_std")],  # fmt: skip
        (dict(vocab_size=0), "model.vocab_size", ["got 0"]),
        (dict(encoder_layers=0), "model.encoder_layers", ["got 0", "encoder-decoder", "1 or more"]),
        (dict(decoder_layers=-2), "model.decoder_layers", ["got -2"]),
        (dict(shape="decoder-only"), "model.encoder_layers", ["got 2 with model.shape=decoder-only", "allowed: 0"]),
        (dict(shape="encoder-only"), "model.decoder_layers", ["got 2 with model.shape=encoder-only"]),
        (dict(positions="learned"), "model.max_length", ["got 0 with model.positions=learned"]),
        (dict(max_length=5), "model.max_length", ["got 5", "0 unless model.positions=learned"]),
        (dict(scale_tied_logits=True), "model.scale_tied_logits", ["model.tied_head=true"]),
        (dict(token_types=2), "model.token_types", ["got 2", "encoder-only"]),
        (dict(logits_soft_cap=-1.0), "model.logits_soft_cap", ["got -1.0"]),
        (dict(embedding_init_std=-1.0), "model.embedding_init_std", ["got -1.0"]),
    ],
)
def test_checks(fields, where, parts):
    text = refused(tiny, "t5_1_1", **fields)
    for part in [where, *parts]:
        assert part in text


@pytest.mark.parametrize("place", ["embedding", "attention", "residual", "hidden", "final"])
@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_dropout_rates(place, rate):
    assert f"model.dropout.{place}: got {rate}" in refused(Dropout, **{place: rate})


def test_sizes_by_name():
    assert "did you mean 'large'?" in refused(families.t5_1_1, "larg")


def test_length_of_learned_positions():
    config = tiny("gpt2", max_length=32)
    config.check_length(32)
    assert "model.max_length: 32 rows for a length of 33" in refused(config.check_length, 33)
    tiny("llama").check_length(10_000)


def test_tensor_parallel_sizes():
    tiny("t5_1_1").check_tensor(4)
    text = refused(tiny("llama").check_tensor, 4)
    assert text.startswith("model.kv_heads: 2, which mesh.tensor = 4 does not divide")
    assert "model.heads: 4, which mesh.tensor = 8" in refused(tiny("t5_1_1").check_tensor, 8)
    assert "model.vocab_size: 41" in refused(tiny("t5_1_1", vocab_size=41).check_tensor, 2)
