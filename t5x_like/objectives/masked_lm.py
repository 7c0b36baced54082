"""BERT's pretraining: some tokens are hidden, and the encoder says what they were.

Knows lengths and special ids; the masking itself is ``objectives.masking``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.config import DataConfig, Shape
from t5x_like.objectives.base import Example, Objective
from t5x_like.objectives.requirements import require_mask_id, require_no_target_length, require_special_ids

if TYPE_CHECKING:
    import numpy as np

    from t5x_like.input_pipeline.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True)
class MaskedLM(Objective):
    """Masked language modelling as in BERT (Devlin et al. 2019, section 3.1), without next-sentence prediction.

    Of the chosen tokens 80% are masked, 10% replaced at random and 10% kept; the loss is on all of the chosen ones, by
    explicit weights, for a kept token cannot be told by its id. Each document ends in EOS, which is never chosen.

    Attributes:
      mask_rate: the share of tokens chosen.
      whole_words: the tokens of a word are chosen together, as in BERT's later models.
    """

    mask_rate: float = 0.15
    whole_words: bool = False

    shapes: ClassVar[tuple[Shape, ...]] = ("encoder-only",)

    def __post_init__(self):
        if not 0.0 < self.mask_rate < 1.0:
            raise UserError("objective.mask_rate", str(self.mask_rate), "a share between 0 and 1", "0.15")

    def check(self, tokenizer: Tokenizer, data: DataConfig, shape: Shape) -> None:
        """Raises ``UserError``: no mask id, no EOS, a target length, whole words of a vocabulary that begins none."""
        require_special_ids(tokenizer, {"<mask>": require_mask_id(tokenizer)})
        require_no_target_length(data, "masked language modelling")
        if self.whole_words and not tokenizer.word_starts.any():
            raise UserError(
                "objective.whole_words",
                "true, but no piece of the vocabulary begins a word",
                "a tokenizer that marks where words begin",
                "objective.whole_words=false",
            )

    def example(self, tokens: np.ndarray, rng: np.random.Generator, tokenizer: Tokenizer) -> Example:
        """inputs: the tokens after masking; targets: the tokens; weights: 1 where chosen."""
        from t5x_like.objectives.masking import masked_lm

        mask_id, special_ids = require_mask_id(tokenizer), tokenizer.special_ids
        word_starts = tokenizer.word_starts if self.whole_words else None
        size = tokenizer.vocab_size
        return Example(*masked_lm(tokens, rng, self.mask_rate, size, mask_id, special_ids, word_starts))
