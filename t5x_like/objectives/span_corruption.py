"""T5's pretraining: spans of the text are replaced by sentinels, and the decoder writes the spans.

Knows lengths and special ids; the corruption itself is ``input_pipeline.corrupt.span_corruption``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.config import DataConfig, Shape
from t5x_like.input_pipeline.example import Example
from t5x_like.objectives.requirements import require_special_ids

if TYPE_CHECKING:
    import numpy as np

    from t5x_like.input_pipeline.tokenizers import Tokenizer


@dataclass(frozen=True)
class SpanCorruption:
    """Span corruption as in T5 (Raffel et al. 2020, section 3.1.4): documents are joined without separators, as there.

    Attributes:
      noise_density: the share of tokens that go to the targets.
      mean_span_length: tokens per span, in the mean.
    """

    noise_density: float = 0.15
    mean_span_length: float = 3.0

    shapes: ClassVar[tuple[Shape, ...]] = ("encoder-decoder",)
    joins_documents: ClassVar[bool] = True
    has_prefix: ClassVar[bool] = False
    inputs_end_in_eos: ClassVar[bool] = True
    minimum_length: ClassVar[int] = 2

    def __post_init__(self):
        if not 0.0 < self.noise_density < 1.0:
            raise UserError("objective.noise_density", str(self.noise_density), "a share between 0 and 1", "0.15")
        if self.mean_span_length < 1.0:
            raise UserError("objective.mean_span_length", str(self.mean_span_length), "1.0 or more tokens", "3.0")

    def piece_length(self, data: DataConfig, shape: Shape) -> int:
        """Raw tokens that corrupted fill ``data.input_length``: 568 for 512 with the defaults."""
        from t5x_like.input_pipeline.corrupt import raw_length_for

        return raw_length_for(data.input_length, self.noise_density, self.mean_span_length)

    def lengths(self, piece_length: int, shape: Shape) -> tuple[int, ...]:
        """(encoder, decoder) tokens of a piece, EOS included."""
        from t5x_like.input_pipeline.corrupt import span_lengths

        return span_lengths(piece_length, self.noise_density, self.mean_span_length)

    def capacity(self, data: DataConfig, shape: Shape) -> tuple[int, ...]:
        """(encoder, decoder) tokens per row; the decoder's are what a full piece needs, if the config does not say."""
        return data.input_length, data.target_length or self.lengths(self.piece_length(data, shape), shape)[1]

    def check(self, tokenizer: Tokenizer, data: DataConfig, shape: Shape) -> None:
        """Raises ``UserError``: too few sentinels for a full piece, targets that do not fit, no EOS."""
        from t5x_like.input_pipeline.corrupt import noise_counts

        require_special_ids(tokenizer)
        piece = self.piece_length(data, shape)
        _, spans = noise_counts(piece, self.noise_density, self.mean_span_length)
        sentinels = len(tokenizer.sentinel_ids)
        if spans > sentinels:
            raise UserError(
                "data.corpus.tokenizer.sentinels",
                f"{sentinels}, but {piece} tokens with objective.noise_density={self.noise_density} and "
                f"objective.mean_span_length={self.mean_span_length} are cut into {spans} spans",
                f"{spans} or more",
                "shorter data.input_length, or a longer objective.mean_span_length",
            )
        needed = self.lengths(piece, shape)[1]
        if data.target_length and data.target_length < needed:
            raise UserError(
                "data.target_length",
                f"{data.target_length}, but data.input_length={data.input_length} makes targets of {needed} tokens",
                f"0 or {needed} and more",
            )

    def example(self, tokens: np.ndarray, rng: np.random.Generator, tokenizer: Tokenizer) -> Example:
        """inputs: the kept tokens, a sentinel for each span, EOS; targets: each sentinel and its span, EOS."""
        from t5x_like.input_pipeline.corrupt import span_corruption

        return Example(
            *span_corruption(
                tokens, rng, self.noise_density, self.mean_span_length, tokenizer.sentinel_ids, tokenizer.eos_id
            )
        )
