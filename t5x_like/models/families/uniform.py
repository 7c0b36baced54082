"""Models whose layers are all alike, from a few sizes: the base of every family here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from t5x_like.core.config import Config
from t5x_like.core.errors import UserError, nearest
from t5x_like.core.ranges import BelowOne, NonNegativeInt, OffOrPositive, PositiveInt
from t5x_like.layers.attention import Attention
from t5x_like.layers.block import Layer, Placement
from t5x_like.layers.feed_forward import ActivationName, FeedForward
from t5x_like.layers.norms import Norm, RMSNorm
from t5x_like.layers.positions import NoPositions, Positions
from t5x_like.layers.stack import Group
from t5x_like.models.config import ModelConfig, Side
from t5x_like.models.inputs import Inputs, Tokens


@dataclasses.dataclass(frozen=True)
class Dropout(Config, where="model.dropout"):
    """Rates by place, for a whole model; each family has its own places, and 0 is off.

    Attributes:
      embedding: rate for the sum of embeddings.
      attention: rate for attention probabilities.
      residual: rate for the output of each attention and MLP, before it is added.
      hidden: rate inside the MLP.
      final: rate after the last norm of a stack.
    """

    embedding: BelowOne = 0.0
    attention: BelowOne = 0.0
    residual: BelowOne = 0.0
    hidden: BelowOne = 0.0
    final: BelowOne = 0.0

    @classmethod
    def t5(cls, rate: float) -> Dropout:
        return cls(rate, rate, rate, rate, rate)

    @classmethod
    def gpt2(cls, rate: float) -> Dropout:
        return cls(embedding=rate, attention=rate, residual=rate)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Uniform(Config, where="model"):
    """The sizes and choices of a model with one kind of layer on each side; a function of a family fills them in.

    Attributes:
      encoder_layers, decoder_layers: number of layers; 0: the side is missing.
      d_ff: width of the MLP's hidden layer.
      bias: whether linear maps have biases.
      final_norm: whether the stacks end in a norm; it is the layers' norm.
      embedding_norm: whether the sum of embeddings is normalized, by the layers' norm.

    All others are fields of the choices that receive them: see ``Attention``, ``FeedForward``, ``Layer``, ``Side``.
    """

    encoder_layers: NonNegativeInt = 0
    decoder_layers: NonNegativeInt = 0
    d_ff: PositiveInt
    heads: PositiveInt
    head_dim: PositiveInt
    kv_heads: NonNegativeInt = 0
    activation: ActivationName = "gelu_tanh"
    gated: bool = True
    norm: Norm = RMSNorm()
    placement: Placement = "pre"
    positions: Positions = NoPositions()
    bias: bool = False
    scaled: bool = True
    qk_norm: Norm | None = None
    attention_soft_cap: OffOrPositive = 0.0
    window: NonNegativeInt = 0
    dropout: Dropout = Dropout()
    inputs: Inputs = Tokens()
    embedding_norm: bool = False

    def side(self, layers: int, cross: bool) -> Side | None:
        """A stack of this many layers, with cross-attention or without; None for 0 layers."""
        if not layers:
            return None
        attention = Attention(
            heads=self.heads, head_dim=self.head_dim, kv_heads=self.kv_heads, bias=self.bias, scaled=self.scaled,
            qk_norm=self.qk_norm, soft_cap=self.attention_soft_cap, window=self.window,
            dropout=self.dropout.attention,
        )  # fmt: skip
        feed_forward = FeedForward(
            width=self.d_ff, activation=self.activation, gated=self.gated, bias=self.bias, dropout=self.dropout.hidden
        )
        layer = Layer(
            mixer=attention,
            feed_forward=feed_forward,
            cross=dataclasses.replace(attention, window=0) if cross else None,
            norm=self.norm,
            placement=self.placement,
            dropout=self.dropout.residual,
        )
        return Side(
            groups=(Group(layers, (layer,)),),
            positions=self.positions,
            final_norm=None if self.placement == "post" else self.norm,
            final_dropout=self.dropout.final,
            inputs=self.inputs,
            embedding_norm=self.norm if self.embedding_norm else None,
            embedding_dropout=self.dropout.embedding,
        )


def uniform(overrides: Mapping[str, Any] = MappingProxyType({}), /, **fields: Any) -> ModelConfig:
    """A model from the fields of ``Uniform`` and of ``ModelConfig``, but for its stacks; ``overrides`` come first.

    Raises:
      UserError: a field that neither has, or a value that does not fit.
    """
    fields |= overrides
    of_layers = {field.name for field in dataclasses.fields(Uniform)}
    of_model = {field.name for field in dataclasses.fields(ModelConfig)} - {"encoder", "decoder"}
    if unknown := sorted(fields.keys() - of_layers - of_model):
        known = [*sorted(of_layers), *sorted(of_model)]
        raise UserError(unknown[0], "no such field of a model", ", ".join(known), nearest(unknown[0], known))
    chosen = Uniform(**{name: value for name, value in fields.items() if name in of_layers})
    return ModelConfig(
        encoder=chosen.side(chosen.encoder_layers, cross=False),
        decoder=chosen.side(chosen.decoder_layers, cross=chosen.encoder_layers > 0),
        **{name: value for name, value in fields.items() if name in of_model},
    )


def of_size(sizes: dict[str, dict[str, int]], size: str) -> dict[str, int]:
    """The sizes of this name. Raises UserError for an unknown name."""
    if size not in sizes:
        raise UserError("size", f"got {size!r}", ", ".join(sizes), nearest(size, sizes))
    return sizes[size]
