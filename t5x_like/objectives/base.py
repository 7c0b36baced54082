"""The interface of objectives and batches: the example, and the base of objectives.

Lies in this folder, below the objectives, so that the pipeline need not import them. Imports no numpy at run time, so
that configs load fast.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from t5x_like.core.config import Config
from t5x_like.core.errors import UserError
from t5x_like.core.ranges import Range
from t5x_like.input_pipeline.config import DataConfig, Shape
from t5x_like.objectives.requirements import require_special_ids

if TYPE_CHECKING:
    import numpy as np

    from t5x_like.input_pipeline.tokenizers.base import Tokenizer

Share = Annotated[float, Range(5e-324, 1 - 2**-53, "between 0 and 1")]


@dataclass(frozen=True, eq=False)
class Example:
    """One training example, before it is laid out for a model; its ids are all data, id 0 too.

    Attributes:
      inputs: (inputs,) ids that are read: by an encoder, or as the visible prefix of a decoder-only model.
      targets: (targets,) ids that are predicted; for an encoder-only model as many as ``inputs``.
      weights: (targets,) float32 weight of each target in the loss; None: all 1.
      positions: (inputs,) int32 positions of the inputs of an encoder-only model; None: counted from 0.
      order: (inputs,) int32 visible pairs, for the feature ``encoder_order``; see ``objectives.permutation_lm``.
    """

    inputs: np.ndarray
    targets: np.ndarray
    weights: np.ndarray | None = None
    positions: np.ndarray | None = None
    order: np.ndarray | None = None


class Objective(Config, abc.ABC, where="objective"):
    """Makes examples of pieces of text; the base of the frozen dataclasses in t5x_like/objectives.

    By default an objective reads ``data.input_length`` tokens of text, one for one, on a single side. A mixture of
    objectives makes no examples: it names its ``streams``.

    Attributes:
      shapes: model shapes that it can train.
      joins_documents: whether a piece that crosses the border of two documents is one example (as in T5). Otherwise
        each document ends in EOS, and each document's share of the piece is an example of its own, in a segment of its
        own, so that attention never crosses the border.
      has_prefix: whether a decoder-only model sees ``Example.inputs`` in both directions.
      inputs_end_in_eos: whether inputs end in EOS, so that a prompt must too.
      minimum_length: least number of tokens of a piece that makes an example.
      needs_position_ids: whether positions differ from the columns, so that the model must take them from the batch:
        learned, sinusoidal or rotary.
      future_tokens, future_weight: number of tokens beyond the next that a decoder predicts too, and the weight of
        their loss.
    """

    shapes: ClassVar[tuple[Shape, ...]] = ()
    joins_documents: ClassVar[bool] = False
    has_prefix: ClassVar[bool] = False
    inputs_end_in_eos: ClassVar[bool] = False
    minimum_length: ClassVar[int] = 1
    needs_position_ids: ClassVar[bool] = False
    future_tokens: int = 0
    future_weight: float = 0.0

    @property
    def added_tokens(self) -> int:
        """Largest number of tokens that an example has, on its longest side, beyond those of its text. Where documents
        are not joined, each document's share of a row is an example and needs this room."""
        return 0

    def streams(self) -> tuple[tuple[float, Objective], ...]:
        """(rate, objective) of each member of a mixture; only the proportions of the rates count."""
        return ((1.0, self),)

    def loss(self, token: Any) -> Any:
        """The ``losses.Loss`` to minimize: by default the cross-entropy of the targets.

        Args:
          token: this cross-entropy, a ``losses.TokenLoss`` with the values of the run's ``train`` fields.
        """
        return token

    def extras(self, shape: Shape) -> tuple[str, ...]:
        """Names of the arrays that a batch has beyond those that every batch for a model of ``shape`` has."""
        return ("decoder_prefix",) if self.has_prefix and shape == "decoder-only" else ()

    def prompt(self, tokens: list[int], tokenizer: Tokenizer) -> list[int]:
        """The prompt that a model trained so expects for the text ``tokens``: with EOS if inputs end in it."""
        return [*tokens, tokenizer.eos_id] if self.inputs_end_in_eos else tokens

    def capacity(self, data: DataConfig, shape: Shape) -> tuple[int, ...]:
        """Tokens per row: (encoder, decoder) for an encoder-decoder, else (tokens,). The decoder's are what a full
        piece needs, if the config does not say."""
        if shape != "encoder-decoder":
            return (data.input_length,)
        return data.input_length, data.target_length or self.lengths(self.piece_length(data, shape), shape)[1]

    def piece_length(self, data: DataConfig, shape: Shape) -> int:
        """Raw tokens that fill one row: text is cut to this length."""
        return data.input_length - self.added_tokens

    def lengths(self, piece_length: int, shape: Shape) -> tuple[int, ...]:
        """Tokens per side (as ``capacity``) that a piece needs at most; depends on nothing else, so packing can
        plan."""
        return (piece_length + self.added_tokens,) * (2 if shape == "encoder-decoder" else 1)

    def check(self, tokenizer: Tokenizer, data: DataConfig, shape: Shape) -> None:
        """Raises ``UserError`` where tokenizer, lengths and shape do not suit the objective: no padding or EOS id, or a
        target length for one sequence that is both read and predicted. One that asks for more says so too."""
        if not self.shapes:
            raise TypeError(f"{type(self).__name__} does not say which shapes of model it can train")
        require_special_ids(tokenizer)
        if data.target_length and shape != "encoder-decoder":
            got = f"{data.target_length}, but {type(self).__name__} has one sequence only here"
            raise UserError("data.target_length", got, "0", "data.input_length")

    def example(self, tokens: np.ndarray, rng: np.random.Generator, tokenizer: Tokenizer) -> Example:
        """The example of (length,) ``tokens``, with random numbers of ``rng``."""
        raise TypeError(f"{type(self).__name__} makes no examples; those that it is a mixture of do: streams()")
