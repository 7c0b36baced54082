"""T5's pretraining: spans of the text are replaced by sentinels, and the decoder writes the spans.

Knows lengths and special ids; the corruption itself is ``objectives.spans.span_corruption``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.config import DataConfig, Shape
from t5x_like.objectives.base import Example, Objective
from t5x_like.objectives.modes import mode_ids, with_mode
from t5x_like.objectives.requirements import (
    require_input_length,
    require_no_target_length,
    require_sentinels,
    require_special_ids,
    require_target_length,
)

if TYPE_CHECKING:
    import numpy as np

    from t5x_like.input_pipeline.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True)
class SpanCorruption(Objective):
    """Span corruption as in T5 (Raffel et al. 2020, section 3.3.4): documents are joined without separators, as there.

    A decoder alone reads the corrupted text in both directions, then writes the spans behind it.

    Attributes:
      noise_density: the share of tokens that go to the targets.
      mean_span_length: tokens per span, in the mean.
      mode: a piece of the vocabulary put before the inputs, such as ``[NLU]``; empty: none.
    """

    noise_density: float = 0.15
    mean_span_length: float = 3.0
    mode: str = ""

    shapes: ClassVar[tuple[Shape, ...]] = ("encoder-decoder", "decoder-only")
    joins_documents: ClassVar[bool] = True
    has_prefix: ClassVar[bool] = True
    inputs_end_in_eos: ClassVar[bool] = True
    minimum_length: ClassVar[int] = 2

    def __post_init__(self):
        if not 0.0 < self.noise_density < 1.0:
            raise UserError("objective.noise_density", str(self.noise_density), "a share between 0 and 1", "0.15")
        if self.mean_span_length < 1.0:
            raise UserError("objective.mean_span_length", str(self.mean_span_length), "1.0 or more tokens", "3.0")

    def piece_length(self, data: DataConfig, shape: Shape) -> int:
        """Raw tokens that corrupted fill ``data.input_length``: 568 for 512 with the defaults."""
        from t5x_like.objectives.spans import raw_length_for, raw_length_within

        room = data.input_length - bool(self.mode)
        find = raw_length_within if shape == "decoder-only" else raw_length_for
        return find(room, self.noise_density, self.mean_span_length)

    def lengths(self, piece_length: int, shape: Shape) -> tuple[int, ...]:
        """(encoder, decoder) tokens of a piece, or of both together in one sequence; EOS and mode included."""
        from t5x_like.objectives.spans import span_lengths

        inputs, targets = span_lengths(piece_length, self.noise_density, self.mean_span_length)
        inputs += bool(self.mode)
        return (inputs + targets,) if shape == "decoder-only" else (inputs, targets)

    def capacity(self, data: DataConfig, shape: Shape) -> tuple[int, ...]:
        """(encoder, decoder) tokens per row; the decoder's are what a full piece needs, if the config does not say."""
        if shape == "decoder-only":
            return (data.input_length,)
        return data.input_length, data.target_length or self.lengths(self.piece_length(data, shape), shape)[1]

    def check(self, tokenizer: Tokenizer, data: DataConfig, shape: Shape) -> None:
        """Raises ``UserError``: too few sentinels for a full piece, lengths that do not suit, no EOS, no such mode."""
        from t5x_like.objectives.spans import noise_counts

        require_special_ids(tokenizer)
        require_input_length(data, (6 if shape == "decoder-only" else 4) + bool(self.mode), "span corruption")
        piece = self.piece_length(data, shape)
        _, spans = noise_counts(piece, self.noise_density, self.mean_span_length)
        sentinels = require_sentinels(
            tokenizer,
            spans,
            f"{piece} tokens with objective.noise_density={self.noise_density} and "
            f"objective.mean_span_length={self.mean_span_length} are cut into {spans} spans",
            "shorter data.input_length, or a longer objective.mean_span_length",
        )
        require_special_ids(tokenizer, sentinels | mode_ids(self.mode, tokenizer))
        if shape == "decoder-only":
            require_no_target_length(data, "span corruption of a decoder")
        else:
            require_target_length(data, self.lengths(piece, shape)[1])

    def example(self, tokens: np.ndarray, rng: np.random.Generator, tokenizer: Tokenizer) -> Example:
        """inputs: mode, kept tokens, a sentinel for each span, EOS; targets: each sentinel and its span, EOS."""
        from t5x_like.objectives.spans import span_corruption

        inputs, targets = span_corruption(
            tokens, rng, self.noise_density, self.mean_span_length, tokenizer.sentinel_ids, tokenizer.eos_id
        )
        return Example(with_mode(self.mode, inputs, tokenizer), targets)
