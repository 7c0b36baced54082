"""Llama (Touvron et al. 2023) and models with its names."""

from __future__ import annotations

from typing import Any

from t5x_like.layers.init import Normal
from t5x_like.layers.norms import RMSNorm
from t5x_like.layers.positions import Rope
from t5x_like.models.config import ModelConfig
from t5x_like.models.families.names import Family
from t5x_like.models.families.uniform import uniform


def llama(**overrides: Any) -> ModelConfig:
    """Llama's block, by default at the size of TinyLlama 1.1B; overrides are fields of ``uniform``."""
    return uniform(
        overrides,
        vocab_size=32000,
        d_model=2048,
        d_ff=5632,
        heads=32,
        kv_heads=4,
        head_dim=64,
        decoder_layers=22,
        activation="silu",
        norm=RMSNorm(1e-5),
        positions=Rope(),
        init=Normal(),
        embedding_init_std=0.02,
    )


def modules(config: ModelConfig) -> dict[str, str]:
    """Llama's names."""
    layer, ours = "model.layers.{}", "decoder/layers"
    projections = ("query", "key", "value", "out")
    return {
        "token_embedding": "model.embed_tokens",
        **{f"{ours}/attention/inner/{x}": f"{layer}.self_attn.{x[0]}_proj" for x in projections},
        f"{ours}/attention/norm": f"{layer}.input_layernorm",
        **{f"{ours}/feed_forward/inner/{x}": f"{layer}.mlp.{x}_proj" for x in ("gate", "up", "down")},
        f"{ours}/feed_forward/norm": f"{layer}.post_attention_layernorm",
        "decoder/final_norm": "model.norm",
        "output_head": "lm_head",
    }


FAMILY = Family("Llama", lambda c: c.shape == "decoder-only" and isinstance(c.sides[0][1].positions, Rope), modules)
