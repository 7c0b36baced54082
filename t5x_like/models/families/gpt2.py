"""GPT-2 (Radford et al. 2019)."""

from __future__ import annotations

from typing import Any

from t5x_like.layers.init import Normal
from t5x_like.layers.norms import LayerNorm
from t5x_like.layers.positions import Learned
from t5x_like.models.config import ModelConfig
from t5x_like.models.families.names import Entry, Family, Names, linears, norms
from t5x_like.models.families.uniform import Dropout, uniform


def gpt2(**overrides: Any) -> ModelConfig:
    """GPT-2 small; overrides are fields of ``uniform``."""
    fields: dict[str, Any] = dict(
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
    return uniform(**(fields | overrides))


def names(config: ModelConfig) -> Names:
    """GPT-2's, whose own kernels are [in, out] as ours and hold query, key and value side by side."""
    attention, mlp, layer = "decoder/layers/attention", "decoder/layers/feed_forward", "transformer.h.{}"
    table: Names = {
        "transformer.wte.weight": Entry(("token_embedding/table",)),
        "transformer.wpe.weight": Entry(("decoder_positions/table",)),
    }
    for theirs, ours in (("weight", "kernel"), ("bias", "bias")):
        joined = tuple(f"{attention}/inner/{name}/{ours}" for name in ("query", "key", "value"))
        table[f"{layer}.attn.c_attn.{theirs}"] = Entry(joined)
    maps = {
        f"{layer}.attn.c_proj": f"{attention}/inner/out",
        f"{layer}.mlp.c_fc": f"{mlp}/inner/up",
        f"{layer}.mlp.c_proj": f"{mlp}/inner/down",
    }
    normed = {f"{layer}.ln_1": f"{attention}/norm", f"{layer}.ln_2": f"{mlp}/norm"}
    return table | linears(maps, turned=False) | norms(normed | {"transformer.ln_f": "decoder/final_norm"})


FAMILY = Family("GPT-2", lambda c: c.shape == "decoder-only" and isinstance(c.sides[0][1].positions, Learned), names)
