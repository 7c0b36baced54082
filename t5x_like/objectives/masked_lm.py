"""BERT's pretraining: some tokens are hidden, and the encoder says what they were.

Knows lengths and special ids; the masking itself is ``input_pipeline.corrupt.masked_lm``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.config import DataConfig, Shape
from t5x_like.input_pipeline.example import Example
from t5x_like.objectives.requirements import require_no_target_length, require_special_ids

if TYPE_CHECKING:
    import numpy as np

    from t5x_like.input_pipeline.tokenizers import Tokenizer


@dataclass(frozen=True)
class MaskedLM:
    """Masked language modelling as in BERT (Devlin et al. 2019, section 3.1), without next-sentence prediction.

    Of the chosen tokens 80% are masked, 10% replaced at random and 10% kept; the loss is on all of the chosen ones, by
    explicit weights, for a kept token cannot be told by its id. Each document ends in EOS, which is never chosen.

    Attributes:
      mask_rate: the share of tokens chosen.
    """

    mask_rate: float = 0.15

    shapes: ClassVar[tuple[Shape, ...]] = ("encoder-only",)
    joins_documents: ClassVar[bool] = False
    has_prefix: ClassVar[bool] = False
    inputs_end_in_eos: ClassVar[bool] = False
    minimum_length: ClassVar[int] = 1

    def __post_init__(self):
        if not 0.0 < self.mask_rate < 1.0:
            raise UserError("objective.mask_rate", str(self.mask_rate), "a share between 0 and 1", "0.15")

    def piece_length(self, data: DataConfig, shape: Shape) -> int:
        """Raw tokens per row: ``data.input_length``."""
        return data.input_length

    def lengths(self, piece_length: int, shape: Shape) -> tuple[int, ...]:
        """(tokens,) of a piece: as many as it has."""
        return (piece_length,)

    def capacity(self, data: DataConfig, shape: Shape) -> tuple[int, ...]:
        """(tokens,) per row."""
        return (data.input_length,)

    def check(self, tokenizer: Tokenizer, data: DataConfig, shape: Shape) -> None:
        """Raises ``UserError``: no mask id, no EOS, or a target length."""
        require_special_ids(tokenizer)
        require_no_target_length(data, "masked language modelling")
        if tokenizer.mask_id is None:
            raise UserError(
                "data.corpus.tokenizer",
                "the vocabulary has no piece <mask>",
                "a tokenizer that has one",
                "SentencePiece(path=''), which trains one, or Bytes()",
            )

    def example(self, tokens: np.ndarray, rng: np.random.Generator, tokenizer: Tokenizer) -> Example:
        """inputs: the tokens after masking; targets: the tokens; weights: 1 where chosen."""
        from t5x_like.input_pipeline.corrupt import masked_lm

        if tokenizer.mask_id is None:
            raise TypeError("check() was not called: the tokenizer has no mask id")
        special = tokenizer.special_ids
        return Example(*masked_lm(tokens, rng, self.mask_rate, tokenizer.vocab_size, tokenizer.mask_id, special))
