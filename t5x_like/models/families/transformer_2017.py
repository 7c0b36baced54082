"""The first transformer (Vaswani et al. 2017)."""

from __future__ import annotations

from typing import Any

from t5x_like.layers.norms import LayerNorm
from t5x_like.layers.positions import Sinusoidal
from t5x_like.models.config import ModelConfig
from t5x_like.models.families.uniform import Dropout, uniform
from t5x_like.models.inputs import Tokens


def transformer_2017(**overrides: Any) -> ModelConfig:
    """The base model: post-norm, sinusoids, one table for everything; overrides are fields of ``uniform``."""
    return uniform(
        overrides,
        vocab_size=37000,
        d_model=512,
        d_ff=2048,
        heads=8,
        head_dim=64,
        encoder_layers=6,
        decoder_layers=6,
        activation="relu",
        gated=False,
        norm=LayerNorm(),
        placement="post",
        positions=Sinusoidal(),
        inputs=Tokens(scaled=True),
        bias=True,
        tied_head=True,
        dropout=Dropout(embedding=0.1, residual=0.1),
        embedding_init_std=overrides.get("d_model", 512) ** -0.5,
    )
