"""T5's first baseline: each token is dropped or not by itself, and the decoder writes what was dropped.

Knows lengths and special ids; the corruption itself is ``objectives.spans.iid_denoising``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.config import DataConfig, Shape
from t5x_like.objectives.base import Example, Objective
from t5x_like.objectives.requirements import require_sentinels, require_special_ids, require_target_length

if TYPE_CHECKING:
    import numpy as np

    from t5x_like.input_pipeline.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True)
class IidDenoising(Objective):
    """Independent denoising as in T5 (Raffel et al. 2020, section 3.1.4): each token is corrupted with a chance of its
    own, and each run of corrupted tokens becomes one sentinel. Documents are joined without separators.

    Lengths are random. Inputs are never longer than the text and EOS, so that a piece is as long as the inputs may be.
    Targets have room for three standard deviations above their mean, the sentinels likewise; in about one example of a
    thousand that is too little, and the end of its text is left uncorrupted.

    Attributes:
      noise_density: the chance of a token to go to the targets.
    """

    noise_density: float = 0.15

    shapes: ClassVar[tuple[Shape, ...]] = ("encoder-decoder",)
    joins_documents: ClassVar[bool] = True
    inputs_end_in_eos: ClassVar[bool] = True

    def __post_init__(self):
        if not 0.0 < self.noise_density < 1.0:
            raise UserError("objective.noise_density", str(self.noise_density), "a share between 0 and 1", "0.15")

    def piece_length(self, data: DataConfig, shape: Shape) -> int:
        """Raw tokens per row: one less than ``data.input_length``, for EOS."""
        return data.input_length - 1

    def lengths(self, piece_length: int, shape: Shape) -> tuple[int, ...]:
        """The most (encoder, decoder) tokens of a piece, EOS included."""
        from t5x_like.objectives.spans import iid_limits

        return piece_length + 1, iid_limits(piece_length, self.noise_density)[1]

    def capacity(self, data: DataConfig, shape: Shape) -> tuple[int, ...]:
        """(encoder, decoder) tokens per row; the decoder's are what a full piece needs, if the config does not say."""
        return data.input_length, data.target_length or self.lengths(self.piece_length(data, shape), shape)[1]

    def check(self, tokenizer: Tokenizer, data: DataConfig, shape: Shape) -> None:
        """Raises ``UserError``: too few sentinels for a full piece, targets that do not fit, no EOS."""
        from t5x_like.objectives.spans import iid_limits

        piece = self.piece_length(data, shape)
        runs, targets = iid_limits(piece, self.noise_density)
        reason = f"{piece} tokens with objective.noise_density={self.noise_density} may be cut into {runs} runs"
        require_special_ids(tokenizer)
        require_special_ids(tokenizer, require_sentinels(tokenizer, runs, reason, "a shorter data.input_length"))
        require_target_length(data, targets)

    def example(self, tokens: np.ndarray, rng: np.random.Generator, tokenizer: Tokenizer) -> Example:
        """inputs: the kept tokens, a sentinel for each run, EOS; targets: each sentinel and its run, EOS."""
        from t5x_like.objectives.spans import iid_denoising

        return Example(*iid_denoising(tokens, rng, self.noise_density, tokenizer.sentinel_ids, tokenizer.eos_id))
