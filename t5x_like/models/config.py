"""A whole model as configured: the block's choices (``layers.config``) and what lies around the stacks. No JAX."""

from __future__ import annotations

import dataclasses
from typing import Literal

from t5x_like.core.errors import UserError
from t5x_like.layers.config import BlockConfig

Shape = Literal["encoder-decoder", "decoder-only", "encoder-only"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(BlockConfig):
    """A model. ``models.families`` has the published ones."""

    shape: Shape = "encoder-decoder"
    vocab_size: int
    encoder_layers: int = 0
    decoder_layers: int = 0
    max_length: int = 0  # rows of learned position tables; unused by other positions
    token_types: int = 0  # BERT's table of token types
    embedding_init_std: float = 1.0
    scale_embeddings: bool = False  # times sqrt(d_model) (Vaswani et al. 2017, section 3.4)
    embedding_norm: bool = False  # a norm on the sum of embeddings (BERT)
    tied_head: bool = False  # logits from the token table
    scale_tied_logits: bool = False  # logits / sqrt(d_model) (T5 1.0)
    head_bias: bool = False
    head_transform: bool = False  # linear, activation, norm before the logits (BERT's masked-LM head)
    logits_soft_cap: float = 0.0
    future_heads: int = 0  # transforms for predicting further tokens ahead in training (Gloeckle et al. 2024)

    def __post_init__(self):
        super().__post_init__()
        if self.vocab_size < 1:
            raise UserError("model.vocab_size", f"got {self.vocab_size}", "a whole number from 1")
        for side in ("encoder", "decoder"):
            layers, used = getattr(self, f"{side}_layers"), side in self.shape
            if used and layers < 1:
                raise UserError(f"model.{side}_layers", f"got {layers} with model.shape={self.shape}", "1 or more")
            if not used and layers:
                raise UserError(f"model.{side}_layers", f"got {layers} with model.shape={self.shape}", "0")
        if self.positions == "learned" and self.max_length < 1:
            raise UserError("model.max_length", f"got {self.max_length} with model.positions=learned", "1 or more")
        if self.positions != "learned" and self.max_length:
            raise UserError("model.max_length", f"got {self.max_length}", "0 unless model.positions=learned")
        if self.scale_tied_logits and not self.tied_head:
            raise UserError("model.scale_tied_logits", "on with model.tied_head=false", "model.tied_head=true")
        if self.token_types and self.shape != "encoder-only":
            raise UserError("model.token_types", f"got {self.token_types}", "0 unless model.shape=encoder-only")
        if self.future_heads and self.shape != "decoder-only":
            raise UserError("model.future_heads", f"got {self.future_heads}", "0 unless model.shape=decoder-only")
        for name in ("logits_soft_cap", "embedding_init_std", "future_heads"):
            if getattr(self, name) < 0:
                raise UserError(f"model.{name}", f"got {getattr(self, name)}", "0 or more")

    @property
    def has_encoder(self) -> bool:
        return self.encoder_layers > 0

    @property
    def has_decoder(self) -> bool:
        return self.decoder_layers > 0

    def check_length(self, length: int) -> None:
        """Raises UserError if learned positions end before ``length``."""
        if self.positions == "learned" and length > self.max_length:
            raise UserError(
                "model.max_length", f"{self.max_length} rows for a length of {length}", f"at least {length}"
            )

    def check_attention(self, platform: str) -> None:
        """Raises UserError if attention is to be computed by kernels for other devices than ``platform``."""
        kernels = {"tpu": ("tpu",), "gpu": ("gpu", "cudnn")}.get(platform, ())
        if self.attention_backend not in ("auto", "xla", *kernels):
            here = "".join(f", {name}" for name in kernels)
            raise UserError(
                "model.attention_backend", f"got {self.attention_backend} on {platform}", f"auto, xla{here}",
                "model.attention_backend=auto",
            )  # fmt: skip

    def check_tensor(self, tensor: int) -> None:
        """Raises UserError if heads or widths do not divide among ``tensor`` devices."""
        for name in ("heads", "key_heads", "d_ff", "vocab_size"):
            if getattr(self, name) % tensor:
                field = "kv_heads" if name == "key_heads" else name
                raise UserError(
                    f"model.{field}",
                    f"{getattr(self, name)}, which mesh.tensor = {tensor} does not divide",
                    f"a multiple of {tensor}",
                    "padding the vocabulary" if name == "vocab_size" else "a smaller mesh.tensor",
                )
