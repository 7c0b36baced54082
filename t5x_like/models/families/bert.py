"""BERT (Devlin et al. 2019)."""

from __future__ import annotations

from typing import Any

from t5x_like.layers.init import Normal
from t5x_like.layers.norms import LayerNorm
from t5x_like.layers.positions import Learned
from t5x_like.models.config import HeadTransform, ModelConfig
from t5x_like.models.families.names import Family
from t5x_like.models.families.uniform import Dropout, uniform
from t5x_like.models.inputs import Tokens


def bert(**overrides: Any) -> ModelConfig:
    """BERT base with its masked-LM head; overrides are fields of ``uniform``."""
    return uniform(
        overrides,
        vocab_size=30522,
        d_model=768,
        d_ff=3072,
        heads=12,
        head_dim=64,
        encoder_layers=12,
        activation="gelu",
        gated=False,
        norm=LayerNorm(1e-12),
        placement="post",
        positions=Learned(512),
        inputs=Tokens(types=2),
        bias=True,
        embedding_norm=True,
        tied_head=True,
        head_bias=True,
        head_transform=HeadTransform("gelu", LayerNorm(1e-12)),
        init=Normal(),
        embedding_init_std=0.02,
        dropout=Dropout(embedding=0.1, attention=0.1, residual=0.1),
    )


def modules(config: ModelConfig) -> dict[str, str]:
    """BERT's names, with its masked-LM head."""
    layer, ours = "bert.encoder.layer.{}", "encoder/layers"
    return {
        "token_embedding": "bert.embeddings.word_embeddings",
        "encoder_positions": "bert.embeddings.position_embeddings",
        "encoder_inputs/types": "bert.embeddings.token_type_embeddings",
        "encoder_embedding_norm": "bert.embeddings.LayerNorm",
        **{f"{ours}/attention/inner/{x}": f"{layer}.attention.self.{x}" for x in ("query", "key", "value")},
        f"{ours}/attention/inner/out": f"{layer}.attention.output.dense",
        f"{ours}/attention/norm": f"{layer}.attention.output.LayerNorm",
        f"{ours}/feed_forward/inner/up": f"{layer}.intermediate.dense",
        f"{ours}/feed_forward/inner/down": f"{layer}.output.dense",
        f"{ours}/feed_forward/norm": f"{layer}.output.LayerNorm",
        "output_transform/linear": "cls.predictions.transform.dense",
        "output_transform/norm": "cls.predictions.transform.LayerNorm",
        "output_head": "cls.predictions",
    }


FAMILY = Family("BERT", lambda c: c.shape == "encoder-only" and isinstance(c.sides[0][1].positions, Learned), modules)
