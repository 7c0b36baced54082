"""GPT-2 (Radford et al. 2019)."""

from __future__ import annotations

from typing import Any

from t5x_like.layers.init import Normal
from t5x_like.layers.norms import LayerNorm
from t5x_like.layers.positions import Learned
from t5x_like.models.config import ModelConfig
from t5x_like.models.families.names import Family
from t5x_like.models.families.uniform import Dropout, uniform


def gpt2(**overrides: Any) -> ModelConfig:
    """GPT-2 small; overrides are fields of ``uniform``."""
    return uniform(
        overrides,
        vocab_size=50257,
        d_model=768,
        d_ff=3072,
        heads=12,
        head_dim=64,
        decoder_layers=12,
        gated=False,
        norm=LayerNorm(1e-5),
        positions=Learned(1024),
        bias=True,
        tied_head=True,
        init=Normal(depth_scaled=True),
        embedding_init_std=0.02,
        dropout=Dropout.gpt2(0.1),
    )


def modules(config: ModelConfig) -> dict[str, str]:
    """GPT-2's names; its kernels are [in, out] as ours and hold query, key and value side by side."""
    layer, ours = "transformer.h.{}", "decoder/layers"
    return {
        "token_embedding": "transformer.wte",
        "decoder_positions": "transformer.wpe",
        **{f"{ours}/attention/inner/{x}": f"{layer}.attn.c_attn" for x in ("query", "key", "value")},
        f"{ours}/attention/inner/out": f"{layer}.attn.c_proj",
        f"{ours}/attention/norm": f"{layer}.ln_1",
        f"{ours}/feed_forward/inner/up": f"{layer}.mlp.c_fc",
        f"{ours}/feed_forward/inner/down": f"{layer}.mlp.c_proj",
        f"{ours}/feed_forward/norm": f"{layer}.ln_2",
        "decoder/final_norm": "transformer.ln_f",
    }


def fits(config: ModelConfig) -> bool:
    return config.shape == "decoder-only" and isinstance(config.side("decoder").positions, Learned)


FAMILY = Family("GPT-2", fits, modules, turned=False)
