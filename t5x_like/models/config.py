"""The config of a whole model: stacks of layers, inputs and head. ``families`` has the published ones.

Imports no JAX.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal

from t5x_like.core.batch import TOKENS, WEIGHTS, BatchArray
from t5x_like.core.config import Config
from t5x_like.core.errors import UserError, require
from t5x_like.core.ranges import BelowOne, NonNegativeFloat, NonNegativeInt, OffOrPositive, PositiveInt
from t5x_like.layers.block import Layer
from t5x_like.layers.feed_forward import ActivationName, activation
from t5x_like.layers.init import FanIn, Init
from t5x_like.layers.norms import Norm
from t5x_like.layers.stack import Stack
from t5x_like.models.inputs import Inputs, Tokens

if TYPE_CHECKING:
    import jax

    from t5x_like.layers.module import Module

Shape = Literal["encoder-decoder", "decoder-only", "encoder-only"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Side(Stack):
    """An encoder or a decoder.

    Attributes:
      inputs: front end, from a batch's arrays to activations.
      embedding_norm: norm of these with positions added (BERT); none: no norm.
      embedding_dropout: rate of dropout after that.
    """

    inputs: Inputs = Tokens()
    embedding_norm: Norm | None = None
    embedding_dropout: BelowOne = 0.0


@dataclasses.dataclass(frozen=True)
class HeadTransform(Config, where="model.head_transform"):
    """Linear map, activation and norm before the logits (BERT's masked-LM head).

    Attributes:
      activation: function between the linear map and the norm.
      norm: norm before the logits.
      bias: whether the linear map has biases.
    """

    activation: ActivationName
    norm: Norm
    bias: bool = True

    def declare(self, width: int, init: Init) -> Module:
        from t5x_like.layers.module import Linear, Module

        linear = Linear(width, width, ("embed", None), init.kernel(width), self.bias)
        return Module(self, linear=linear, norm=self.norm.declare(width))

    def apply(self, parts: Module, x_BLD: jax.Array) -> jax.Array:
        """[B, L, D] before the logits."""
        return parts.norm(activation(self.activation, parts.linear(x_BLD)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(Config, where="model"):
    """A model.

    Attributes:
      vocab_size: rows of the token table, and logits per token, V.
      d_model: width of the residual stream, D.
      encoder, decoder: sides of the model; one may be missing.
      init: initial values of parameters.
      embedding_init_std: standard deviation of tables of tokens and positions.
      tied_head: whether logits come from the token table.
      scale_tied_logits: whether such logits are divided by sqrt(D) (T5 1.0).
      head_bias: whether logits have a bias.
      head_transform: transform before the logits; none: no transform.
      logits_soft_cap: cap of the logits, cap * tanh(logits / cap); 0 is off.
      future_heads: transforms for predicting further tokens ahead in training (Gloeckle et al. 2024).
      dtype: dtype of activations; parameters are float32.
      attention_backend: backend of attention; auto: kernels where the device has them.
      scan_layers: whether repeated layers are one compiled loop; off compiles each, which a CPU runs faster.
      remat: activations recomputed for gradients instead of kept: ``none``; ``dots``, all but matrix products and
        attention; ``full``, all.
    """

    vocab_size: PositiveInt
    d_model: PositiveInt
    encoder: Side | None = None
    decoder: Side | None = None
    init: Init = FanIn()
    embedding_init_std: NonNegativeFloat = 1.0
    tied_head: bool = False
    scale_tied_logits: bool = False
    head_bias: bool = False
    head_transform: HeadTransform | None = None
    logits_soft_cap: OffOrPositive = 0.0
    future_heads: NonNegativeInt = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    attention_backend: Literal["auto", "tpu", "gpu", "cudnn", "xla"] = "auto"
    scan_layers: bool = True
    remat: Literal["none", "dots", "full"] = "none"

    def __post_init__(self):
        require(bool(self.sides), "model", "neither an encoder nor a decoder", "one or both")
        for _, side in self.sides:
            side.check(self.d_model)
        for side, layer in self._unlike_layers():
            crossed, wanted = layer.cross is not None, side == "decoder" and self.encoder is not None
            require(
                crossed == wanted, f"model.{side}.cross", "cross-attention" if crossed else "no cross-attention",
                "cross-attention in the layers of a decoder that has an encoder, and nowhere else",
            )  # fmt: skip
        if self.scale_tied_logits and not self.tied_head:
            raise UserError("model.scale_tied_logits", "on with model.tied_head=false", "model.tied_head=true")
        if self.future_heads and self.shape != "decoder-only":
            raise UserError("model.future_heads", f"got {self.future_heads}", "0 unless the model is decoder-only")

    @property
    def sides(self) -> tuple[tuple[str, Side], ...]:
        """(name, side) of the sides that exist."""
        both = (("encoder", self.encoder), ("decoder", self.decoder))
        return tuple((name, side) for name, side in both if side is not None)

    @property
    def shape(self) -> Shape:
        if self.encoder is not None and self.decoder is not None:
            return "encoder-decoder"
        return "encoder-only" if self.decoder is None else "decoder-only"

    @property
    def has_encoder(self) -> bool:
        return self.encoder is not None

    @property
    def has_decoder(self) -> bool:
        return self.decoder is not None

    def side(self, name: str) -> Side:
        """The side of this name, which must exist."""
        return dict(self.sides)[name]

    def arrays(self) -> dict[str, BatchArray]:
        """The arrays of a batch that the model and a token loss read. Segments and positions may be left out."""
        found: dict[str, BatchArray] = {}
        for name, side in self.sides:
            found |= side.inputs.arrays(name)
            found |= {f"{name}_segments": TOKENS, f"{name}_positions": TOKENS}
        return found | {"targets": TOKENS, "weights": WEIGHTS}

    @property
    def orders_by_column(self) -> bool:
        """Whether some layer depends on columns instead of the positions of the batch."""
        return any(
            layer.mixer.by_column or not (layer.mixer.positions or side.positions).reads_positions
            for _, side in self.sides for _, layer in side.layers()
        )  # fmt: skip

    def check_length(self, length: int) -> None:
        """Raises UserError if positions end before ``length``."""
        for name, side in self.sides:
            most = side.positions.length
            if 0 < most < length:
                where = f"model.{name}.positions.length"
                raise UserError(where, f"{most} rows for a length of {length}", f"at least {length}")

    def check_attention(self, platform: str) -> None:
        """Raises UserError if attention is to be computed by kernels for other devices than ``platform``."""
        kernels = {"tpu": ("tpu",), "gpu": ("gpu", "cudnn")}.get(platform, ())
        if self.attention_backend not in ("auto", "xla", *kernels):
            here = "".join(f", {name}" for name in kernels)
            raise UserError(
                "model.attention_backend", f"got {self.attention_backend} on {platform}", f"auto, xla{here}",
                "model.attention_backend=auto",
            )  # fmt: skip

    def check_sizes(self, ways: Mapping[str, int]) -> None:
        """Raises UserError unless the mesh divides heads and widths, which no parameter's shape shows.

        Args:
          ways: logical axis to the number of its parts on the mesh.
        """
        fields = {"heads": "heads", "kv_heads": "kv_heads", "mlp": "width", "vocab": "vocab_size"}
        sizes = [("vocab", self.vocab_size)]
        sizes += [size for _, layer in self._unlike_layers() for part in layer.parts.values()
                  for size in part.split_sizes.items()]  # fmt: skip
        for axis, size in sizes:
            if size % ways.get(axis, 1):
                raise UserError(
                    f"model.{fields.get(axis, axis)}",
                    f"{size}, which the {ways[axis]} parts of axis {axis!r} on this mesh do not divide",
                    f"a multiple of {ways[axis]}",
                    "padding the vocabulary" if axis == "vocab" else "a smaller mesh.tensor",
                )

    def _unlike_layers(self) -> Iterator[tuple[str, Layer]]:
        """(side, layer) of all unlike layers."""
        for name, side in self.sides:
            for _, layer in side.layers():
                yield name, layer
