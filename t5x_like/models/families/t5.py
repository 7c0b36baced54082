"""T5 1.0 and 1.1, mT5, umT5, ByT5. Sizes: Raffel et al. 2020, table 1 of the papers, and the published cards.

Every function takes overrides for any field of ``uniform``: ``t5_1_1(vocab_size=8192, d_model=256)``.
"""

from __future__ import annotations

from typing import Any

from t5x_like.layers.positions import T5Relative
from t5x_like.models.config import ModelConfig
from t5x_like.models.families.names import Family
from t5x_like.models.families.uniform import of_size, uniform


def _sizes(**rows: tuple[int, int, int, int, int, int]) -> dict[str, dict[str, int]]:
    fields = ("d_model", "heads", "head_dim", "d_ff", "encoder_layers", "decoder_layers")
    return {name.lstrip("_"): dict(zip(fields, row, strict=True)) for name, row in rows.items()}


T5_1_0 = _sizes(
    small=(512, 8, 64, 2048, 6, 6), base=(768, 12, 64, 3072, 12, 12), large=(1024, 16, 64, 4096, 24, 24),
    _3b=(1024, 32, 128, 16384, 24, 24), _11b=(1024, 128, 128, 65536, 24, 24),
)  # fmt: skip
T5_1_1 = _sizes(
    small=(512, 6, 64, 1024, 8, 8), base=(768, 12, 64, 2048, 12, 12), large=(1024, 16, 64, 2816, 24, 24),
    xl=(2048, 32, 64, 5120, 24, 24), xxl=(4096, 64, 64, 10240, 24, 24),
)  # fmt: skip
BYT5 = _sizes(base=(1536, 12, 64, 3968, 18, 6))


def t5_1_0(size: str = "small", **overrides: Any) -> ModelConfig:
    """T5 1.0 (Raffel et al. 2020): ReLU, one table for both stacks and the logits."""
    return uniform(
        of_size(T5_1_0, size) | overrides, vocab_size=32128, activation="relu", gated=False, scaled=False,
        positions=T5Relative(), tied_head=True, scale_tied_logits=True,
    )  # fmt: skip


def t5_1_1(size: str = "small", **overrides: Any) -> ModelConfig:
    """T5 1.1: gated GELU and an output head of its own."""
    return uniform(of_size(T5_1_1, size) | overrides, vocab_size=32128, scaled=False, positions=T5Relative())


def mt5(size: str = "small", **overrides: Any) -> ModelConfig:
    """mT5 (Xue et al. 2021): T5 1.1 with a vocabulary of many languages."""
    return t5_1_1(size, **({"vocab_size": 250112} | overrides))


def umt5(size: str = "small", **overrides: Any) -> ModelConfig:
    """umT5 (Chung et al. 2023): a table of relative biases per layer."""
    return t5_1_1(size, **({"vocab_size": 256384, "positions": T5Relative(own_tables=True)} | overrides))


def byt5(size: str = "base", **overrides: Any) -> ModelConfig:
    """ByT5 (Xue et al. 2022): bytes, and three times as many layers in the encoder as in the decoder."""
    return uniform(of_size(BYT5, size) | overrides, vocab_size=384, scaled=False, positions=T5Relative())


def modules(config: ModelConfig) -> dict[str, str]:
    """Names of T5 1.0 and 1.1, mT5, ByT5; of umT5, where each layer has a table of its own."""
    found = {"token_embedding": "shared", "output_head": "lm_head"}
    for side, stack in config.sides:
        layers, block, last = f"{side}/layers", f"{side}.block.{{}}.layer", {"encoder": 1, "decoder": 2}[side]
        bias = "SelfAttention.relative_attention_bias.weight"
        for x in ("query", "key", "value", "out"):
            found[f"{layers}/attention/inner/{x}"] = f"{block}.0.SelfAttention.{x[0]}"
            found[f"{layers}/cross_attention/inner/{x}"] = f"{block}.1.EncDecAttention.{x[0]}"
        gated = getattr(stack.groups[0].pattern[0].feed_forward, "gated", False)
        for x, theirs in (("gate", "wi_0"), ("up", "wi_1" if gated else "wi"), ("down", "wo")):
            found[f"{layers}/feed_forward/inner/{x}"] = f"{block}.{last}.DenseReluDense.{theirs}"
        for place, x in ((0, "attention"), (1, "cross_attention"), (last, "feed_forward")):
            found[f"{layers}/{x}/norm"] = f"{block}.{place}.layer_norm"
        found[f"{layers}/attention/inner/position_bias"] = f"{block}.0.{bias}"
        found[f"{side}/position_bias"] = f"{side}.block.0.layer.0.{bias}"
        found[f"{side}/final_norm"] = f"{side}.final_layer_norm"
    return found


def fits(config: ModelConfig) -> bool:
    return config.shape == "encoder-decoder" and isinstance(config.side("encoder").positions, T5Relative)


FAMILY = Family("T5", fits, modules)
