"""Numbers of models, objectives, losses and tokenizers that cannot work are refused, in Python and as text alike."""

from __future__ import annotations

import dataclasses
import math

import pytest

from t5x_like.config import (
    UL2,
    Attention,
    Autoregressive,
    Dropout,
    FeedForward,
    FillInTheMiddle,
    HuggingFaceTokenizer,
    IidDenoising,
    LayerNorm,
    Learned,
    MaskedLM,
    Normal,
    PermutationLM,
    Rope,
    Sampling,
    SentencePiece,
    SpanCorruption,
    T5Relative,
    TokenLoss,
    UserError,
    uniform,
)
from t5x_like.core.config import override

NAN, INF = math.nan, math.inf
MODEL = uniform(vocab_size=40, d_model=16, d_ff=24, heads=4, head_dim=8, decoder_layers=1)
ATTENTION, FEED_FORWARD = Attention(heads=4, head_dim=8), FeedForward(width=8)
WHOLE = (0, -1, 2**31, 2**63, 10**400)
WRONG = {
    (MODEL, "vocab_size"): WHOLE,
    (MODEL, "d_model"): WHOLE,
    (MODEL, "embedding_init_std"): (-1.0, NAN, INF, 1e39),
    (MODEL, "logits_soft_cap"): (-1.0, NAN, INF, 1e-40),
    (MODEL, "future_heads"): (-1, 2**31),
    (ATTENTION, "heads"): WHOLE,
    (ATTENTION, "head_dim"): WHOLE,
    (ATTENTION, "kv_heads"): (-1, 2**63),
    (ATTENTION, "soft_cap"): (-1.0, NAN, INF, 1e-40),
    (ATTENTION, "window"): (-1, 2**31),
    (ATTENTION, "dropout"): (-0.1, 1.0, NAN, 1 - 2.0**-30),
    (FEED_FORWARD, "width"): WHOLE,
    (Dropout(), "residual"): (-0.1, 1.0, NAN, INF),
    (LayerNorm(), "eps"): (-1e-6, NAN, INF),
    (Normal(), "stddev"): (-1.0, NAN, INF),
    (Rope(), "theta"): (0.0, 0.5, -1.0, NAN, INF, 1e-38),
    (T5Relative(), "buckets"): (0, -4, 6, 2**63),
    (T5Relative(), "max_distance"): (0, -1, 16, 2**31),
    (Learned(8), "length"): WHOLE,
    (TokenLoss(), "z_loss"): (-1e-4, NAN, INF),
    (TokenLoss(), "label_smoothing"): (-0.1, 1.1, NAN),
    (TokenLoss(), "chunk"): (-1, 2**31),
    (Autoregressive(), "future_tokens"): (-1, 2**31),
    (Autoregressive(), "future_weight"): (0.0, -1.0, NAN, INF),
    (SpanCorruption(), "noise_density"): (0.0, 1.0, -0.1, NAN, INF),
    (SpanCorruption(), "mean_span_length"): (0.5, 0.0, NAN, INF),
    (IidDenoising(), "noise_density"): (0.0, 1.0, NAN),
    (MaskedLM(), "mask_rate"): (0.0, 1.0, NAN),
    (PermutationLM(), "predicted"): (0.0, 1.0, NAN),
    (FillInTheMiddle(), "rate"): (-0.1, 1.1, NAN),
    (FillInTheMiddle(), "spm_rate"): (-0.1, 1.1, NAN),
    (SentencePiece(), "sentinels"): (-1, 2**63),
    (SentencePiece(), "vocab_size"): (-1, 10, 2**63),
    (HuggingFaceTokenizer("x"), "vocab_size"): (-1, 2**63),
    (Sampling(), "temperature"): (-1.0, NAN, INF, 1e-40),
    (Sampling(), "top_p"): (0.0, 1.1, NAN, 1e-40),
    (Sampling(), "top_k"): (-1, 2**31),
    (Sampling(), "max_new_tokens"): WHOLE,
}


@pytest.mark.parametrize("config, field", WRONG, ids=lambda value: value if isinstance(value, str) else None)
def test_a_number_that_cannot_work_is_refused(config, field):
    for value in WRONG[config, field]:
        for change in (
            lambda value=value: dataclasses.replace(config, **{field: value}),
            lambda value=value: override(config, [f"{field}={value}"]),
        ):
            with pytest.raises(UserError) as error:
                change()
            assert error.value.where.endswith(field) or field == "max_distance", (value, error.value)
            assert str(value) in error.value.got and error.value.allowed, (value, error.value)


@pytest.mark.parametrize("rates", [(-1.0,) * 7, (0.0,) * 7, (1.0,), (NAN,) * 7, (INF,) * 7])
def test_rates_of_a_mixture(rates):
    with pytest.raises(UserError, match="objective.rates"):
        UL2(rates=rates)


@pytest.mark.parametrize(
    "build",
    [
        lambda: dataclasses.replace(MODEL, dtype="float16"),
        lambda: uniform(vocab_size=40, d_model=16, d_ff=24, heads=4, head_dim=8, decoder_layers=1, norm="scale"),
        lambda: uniform(vocab_size=40, d_model=16, d_ff=24, heads=4, head_dim=8, decoder_layers=1, norm="RMSNorm"),
        lambda: uniform(vocab_size=40, d_model=16, d_ff=24, heads=4, head_dim=8, decoder_layers=1, placement="behind"),
        lambda: FeedForward(width=8, activation="swish"),  # type: ignore[arg-type]
        lambda: dataclasses.replace(MODEL, remat="some"),
        lambda: SentencePiece(model="word"),  # type: ignore[arg-type]
        lambda: FillInTheMiddle(loss_on="prefix"),  # type: ignore[arg-type]
    ],
)
def test_a_choice_that_there_is_not_is_refused_in_python(build):
    with pytest.raises(UserError) as error:
        build()
    assert error.value.allowed
