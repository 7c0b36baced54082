"""Published models as configs. Sizes of the T5 family: Raffel et al. 2020, table 1 of the papers, and the published
cards.

Every function takes overrides for any field: ``gpt2(vocab_size=8192, d_model=256)``.
"""

from __future__ import annotations

from typing import Any

from t5x_like.core.errors import UserError, nearest
from t5x_like.layers.config import Dropout
from t5x_like.models.config import ModelConfig

# d_model, heads, head_dim, d_ff, encoder layers, decoder layers
Size = tuple[int, int, int, int, int, int]

T5_1_0: dict[str, Size] = {
    "small": (512, 8, 64, 2048, 6, 6),
    "base": (768, 12, 64, 3072, 12, 12),
    "large": (1024, 16, 64, 4096, 24, 24),
    "3b": (1024, 32, 128, 16384, 24, 24),
    "11b": (1024, 128, 128, 65536, 24, 24),
}
T5_1_1: dict[str, Size] = {
    "small": (512, 6, 64, 1024, 8, 8),
    "base": (768, 12, 64, 2048, 12, 12),
    "large": (1024, 16, 64, 2816, 24, 24),
    "xl": (2048, 32, 64, 5120, 24, 24),
    "xxl": (4096, 64, 64, 10240, 24, 24),
}
BYT5: dict[str, Size] = {"base": (1536, 12, 64, 3968, 18, 6)}


def _size(sizes: dict[str, Size], size: str) -> dict[str, Any]:
    if size not in sizes:
        raise UserError("size", f"got {size!r}", ", ".join(sizes), nearest(size, sizes))
    names = ("d_model", "heads", "head_dim", "d_ff", "encoder_layers", "decoder_layers")
    return dict(zip(names, sizes[size], strict=True))


def t5_1_0(size: str = "small", **overrides: Any) -> ModelConfig:
    """T5 1.0 (Raffel et al. 2020): ReLU, one table for both stacks and the logits."""
    fields: dict[str, Any] = dict(
        vocab_size=32128, activation="relu", gated=False, scale_attention=False, tied_head=True, scale_tied_logits=True
    )
    return ModelConfig(**(fields | _size(T5_1_0, size) | overrides))


def t5_1_1(size: str = "small", **overrides: Any) -> ModelConfig:
    """T5 1.1: gated GELU and an output head of its own."""
    fields: dict[str, Any] = dict(vocab_size=32128, scale_attention=False)
    return ModelConfig(**(fields | _size(T5_1_1, size) | overrides))


def mt5(size: str = "small", **overrides: Any) -> ModelConfig:
    """mT5 (Xue et al. 2021): T5 1.1 with a vocabulary of many languages."""
    return t5_1_1(size, **({"vocab_size": 250112} | overrides))


def umt5(size: str = "small", **overrides: Any) -> ModelConfig:
    """umT5 (Chung et al. 2023): a table of relative biases per layer."""
    return t5_1_1(size, **({"vocab_size": 256384, "bias_per_layer": True} | overrides))


def byt5(size: str = "base", **overrides: Any) -> ModelConfig:
    """ByT5 (Xue et al. 2022): bytes, and three times as many layers in the encoder as in the decoder."""
    fields: dict[str, Any] = dict(vocab_size=384, scale_attention=False)
    return ModelConfig(**(fields | _size(BYT5, size) | overrides))


def transformer_2017(**overrides: Any) -> ModelConfig:
    """The Transformer's base model (Vaswani et al. 2017): post-norm, sinusoids, one table for everything."""
    fields: dict[str, Any] = dict(
        vocab_size=37000,
        d_model=512,
        d_ff=2048,
        heads=8,
        head_dim=64,
        encoder_layers=6,
        decoder_layers=6,
        activation="relu",
        gated=False,
        norm="layer",
        norm_placement="post",
        positions="sinusoidal",
        bias=True,
        tied_head=True,
        scale_embeddings=True,
        dropout=Dropout(embedding=0.1, residual=0.1),
    )
    fields["embedding_init_std"] = overrides.get("d_model", fields["d_model"]) ** -0.5
    return ModelConfig(**(fields | overrides))


def gpt2(**overrides: Any) -> ModelConfig:
    """GPT-2 small (Radford et al. 2019)."""
    fields: dict[str, Any] = dict(
        shape="decoder-only",
        vocab_size=50257,
        d_model=768,
        d_ff=3072,
        heads=12,
        head_dim=64,
        decoder_layers=12,
        gated=False,
        norm="layer",
        norm_eps=1e-5,
        positions="learned",
        max_length=1024,
        bias=True,
        tied_head=True,
        init="normal",
        embedding_init_std=0.02,
        depth_scaled_init=True,
        dropout=Dropout.gpt2(0.1),
    )
    return ModelConfig(**(fields | overrides))


def llama(**overrides: Any) -> ModelConfig:
    """Llama's block (Touvron et al. 2023), by default at the size of TinyLlama 1.1B."""
    fields: dict[str, Any] = dict(
        shape="decoder-only",
        vocab_size=32000,
        d_model=2048,
        d_ff=5632,
        heads=32,
        kv_heads=4,
        head_dim=64,
        decoder_layers=22,
        activation="silu",
        norm_eps=1e-5,
        positions="rope",
        init="normal",
        embedding_init_std=0.02,
    )
    return ModelConfig(**(fields | overrides))


def bert(**overrides: Any) -> ModelConfig:
    """BERT base (Devlin et al. 2019) with its masked-LM head."""
    fields: dict[str, Any] = dict(
        shape="encoder-only",
        vocab_size=30522,
        d_model=768,
        d_ff=3072,
        heads=12,
        head_dim=64,
        encoder_layers=12,
        activation="gelu",
        gated=False,
        norm="layer",
        norm_eps=1e-12,
        norm_placement="post",
        positions="learned",
        max_length=512,
        token_types=2,
        bias=True,
        embedding_norm=True,
        tied_head=True,
        head_bias=True,
        head_transform=True,
        init="normal",
        embedding_init_std=0.02,
        dropout=Dropout(embedding=0.1, attention=0.1, residual=0.1),
    )
    return ModelConfig(**(fields | overrides))
