"""Llama (Touvron et al. 2023) and models with its names."""

from __future__ import annotations

from typing import Any

from t5x_like.layers.init import Normal
from t5x_like.layers.norms import RMSNorm
from t5x_like.layers.positions import Rope
from t5x_like.models.config import ModelConfig
from t5x_like.models.families.names import Entry, Family, Names, linears, norms
from t5x_like.models.families.uniform import uniform


def llama(**overrides: Any) -> ModelConfig:
    """Llama's block, by default at the size of TinyLlama 1.1B; overrides are fields of ``uniform``."""
    fields: dict[str, Any] = dict(
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
    return uniform(**(fields | overrides))


def names(config: ModelConfig) -> Names:
    """Llama's."""
    attention, mlp, layer = "decoder/layers/attention", "decoder/layers/feed_forward", "model.layers.{}"
    letters = zip("qkvo", ("query", "key", "value", "out"), strict=True)
    maps = {f"{layer}.self_attn.{x}_proj": f"{attention}/inner/{name}" for x, name in letters}
    maps |= {f"{layer}.mlp.{name}_proj": f"{mlp}/inner/{name}" for name in ("gate", "up", "down")}
    normed = {
        f"{layer}.input_layernorm": f"{attention}/norm",
        f"{layer}.post_attention_layernorm": f"{mlp}/norm",
        "model.norm": "decoder/final_norm",
    }
    table = {"model.embed_tokens.weight": Entry(("token_embedding/table",))}
    table |= linears(maps, bias=False) | norms(normed, bias=False)
    return table if config.tied_head else table | {"lm_head.weight": Entry(("output_head/kernel",))}


FAMILY = Family("Llama", lambda c: c.shape == "decoder-only" and isinstance(c.sides[0][1].positions, Rope), names)
