"""The interface of objectives and batches: the example, the base of objectives, and what several of them share: checks
of lengths and of the tokenizer's special ids, and mode tokens (Tay et al. 2023, UL2, section 3.1.3), a piece before the
inputs that says which denoising is asked for; an objective's field ``mode`` names the piece, and empty is none.

Lies in this folder, below the objectives, so that the pipeline need not import them. Imports no numpy at run time, so
that configs load fast.
"""

from __future__ import annotations

import abc
import bisect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from t5x_like.core.config import Config
from t5x_like.core.errors import UserError
from t5x_like.core.ranges import Range
from t5x_like.input_pipeline.config import DataConfig, Shape

if TYPE_CHECKING:
    import numpy as np

    from t5x_like.input_pipeline.tokenizers.base import Tokenizer

_TOKENIZER = "data.corpus.tokenizer"
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


def longest_piece(size: Callable[[int], int], room: int, least: int) -> int:
    """The largest number of tokens, from ``least``, whose ``size`` fits in ``room``; it never falls with the number."""
    return bisect.bisect_right(range(2**40), room, lo=least, key=size) - 1


def require_special_ids(tokenizer: Tokenizer, others: Mapping[str, int] | None = None) -> None:
    """Raises ``UserError`` unless padding, EOS and ``others`` (name to id) are inside the vocabulary and different.

    Only padding and EOS may be one id, in a vocabulary that has no padding: segments tell what is padding, never ids.
    Decoders start from the padding id, in training and in generation alike, whichever it is.
    """
    named = {"padding": tokenizer.pad_id, "EOS": tokenizer.eos_id, **(others or {})}
    taken: dict[int, str] = {}
    for name, identifier in named.items():
        if not 0 <= identifier < tokenizer.vocab_size:
            got = f"no {name} id (it is {identifier} of {tokenizer.vocab_size})"
            raise UserError(_TOKENIZER, got, "a tokenizer that has one")
        other = taken.setdefault(identifier, name)
        if other != name and (other, name) != ("padding", "EOS"):
            raise UserError(_TOKENIZER, f"{other} and {name} have the same id, {identifier}", "an id for each")


def require_mask_id(tokenizer: Tokenizer) -> int:
    """The id of masked tokens. Raises ``UserError`` if there is none."""
    if tokenizer.mask_id is None:
        suggestion = "SentencePiece(path=''), which trains one, or Bytes()"
        raise UserError(_TOKENIZER, "the vocabulary has no piece <mask>", "a tokenizer that has one", suggestion)
    return tokenizer.mask_id


def require_sentinels(tokenizer: Tokenizer, count: int, reason: str, suggestion: str) -> dict[str, int]:
    """The first ``count`` sentinels, name to id. Raises ``UserError`` for fewer, with the ``reason``."""
    found = tokenizer.sentinel_ids
    if len(found) < count:
        raise UserError(f"{_TOKENIZER}.sentinels", f"{len(found)}, but {reason}", f"{count} or more", suggestion)
    return {f"<extra_id_{i}>": identifier for i, identifier in enumerate(found[:count])}


def piece_id(tokenizer: Tokenizer, piece: str, where: str, suggestion: str) -> int:
    """The id of exactly ``piece``. Raises ``UserError`` at field ``where`` if the vocabulary has none."""
    identifier = tokenizer.find(piece)
    if identifier is None:
        raise UserError(where, f"{piece!r} is no piece of the vocabulary", "a piece that it has", suggestion)
    return identifier


def require_target_length(data: DataConfig, needed: int) -> None:
    """Raises ``UserError`` if ``data.target_length`` is set and too short for targets of ``needed`` tokens."""
    if 0 < data.target_length < needed:
        got = f"{data.target_length}, but data.input_length={data.input_length} makes targets of {needed} tokens"
        raise UserError("data.target_length", got, f"0 or {needed} and more")


def require_input_length(data: DataConfig, least: int, name: str) -> None:
    """Raises ``UserError`` if ``data.input_length`` leaves no room for text."""
    if data.input_length < least:
        raise UserError("data.input_length", f"{data.input_length}, too short for {name}", f"{least} or more")


def mode_ids(mode: str, tokenizer: Tokenizer) -> dict[str, int]:
    """Name to id of the mode, or nothing. Raises ``UserError`` if the vocabulary does not have it."""
    suggestion = "SentencePiece(symbols=('[NLU]', '[NLG]', '[S2S]')) as data.corpus.tokenizer, or mode='' for none"
    return {mode: piece_id(tokenizer, mode, "objective.mode", suggestion)} if mode else {}


def with_mode(mode: str, inputs: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """(inputs,) ids with the mode's before them, int32; ``inputs`` themselves where there is no mode."""
    if not mode:
        return inputs
    import numpy as np

    return np.concatenate([list(mode_ids(mode, tokenizer).values()), inputs], dtype=np.int32)
