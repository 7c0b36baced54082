"""T5's first baseline: each token is dropped independently, and the decoder writes the dropped ones.

Knows ids and lengths. The largest lengths of inputs and targets are known beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from t5x_like.input_pipeline.config import DataConfig, Shape
from t5x_like.objectives import base
from t5x_like.objectives.base import Example, Objective, Share
from t5x_like.objectives.span_corruption import keep_and_mark

if TYPE_CHECKING:
    import numpy as np

    from t5x_like.input_pipeline.tokenizers.base import Tokenizer


@dataclass(frozen=True)
class IidDenoising(Objective):
    """Independent denoising as in T5 (Raffel et al. 2020, section 3.1.4): each token is corrupted with a chance of its
    own, and each run of corrupted tokens becomes one sentinel. Documents are joined without separators.

    Lengths are random. Inputs are never longer than the text and EOS, so that a piece is as long as the inputs may be.
    Targets have room for three standard deviations above their mean, the sentinels likewise; in about one example of a
    thousand that is too little, and the end of its text is left uncorrupted.

    Attributes:
      noise_density: probability that a token goes to the targets.
    """

    noise_density: Share = 0.15

    shapes: ClassVar[tuple[Shape, ...]] = ("encoder-decoder",)
    joins_documents: ClassVar[bool] = True
    inputs_end_in_eos: ClassVar[bool] = True

    def piece_length(self, data: DataConfig, shape: Shape) -> int:
        """Raw tokens per row: one less than ``data.input_length``, for EOS."""
        return data.input_length - 1

    def lengths(self, piece_length: int, shape: Shape) -> tuple[int, ...]:
        """The most (encoder, decoder) tokens of a piece, EOS included."""
        return piece_length + 1, iid_limits(piece_length, self.noise_density)[1]

    def check(self, tokenizer: Tokenizer, data: DataConfig, shape: Shape) -> None:
        """Raises ``UserError``: too few sentinels for a full piece, targets that do not fit, no EOS."""
        piece = self.piece_length(data, shape)
        runs, targets = iid_limits(piece, self.noise_density)
        reason = f"{piece} tokens with objective.noise_density={self.noise_density} may be cut into {runs} runs"
        super().check(tokenizer, data, shape)
        sentinels = base.require_sentinels(tokenizer, runs, reason, "a shorter data.input_length")
        base.require_special_ids(tokenizer, sentinels)
        base.require_target_length(data, targets)

    def example(self, tokens: np.ndarray, rng: np.random.Generator, tokenizer: Tokenizer) -> Example:
        """inputs: the kept tokens, a sentinel for each run, EOS; targets: each sentinel and its run, EOS."""
        return Example(*iid_denoising(tokens, rng, self.noise_density, tokenizer.sentinel_ids, tokenizer.eos_id))


def iid_limits(raw_length: int, density: float) -> tuple[int, int]:
    """(sentinels, target tokens with EOS) that ``iid_denoising`` of ``raw_length`` tokens uses at most.

    Three standard deviations above the mean, rounded up, or all that is possible if that is less. Let X be 1 for a
    corrupted token, of chance p. A gap begins at a token with chance q = p (1 - p), and never at two in a row, so that
    of n tokens the number of gaps has the variance n q (1 - 3 q). A token takes X (2 - X of the token before) places in
    the targets, its sentinel counted: the mean is m = p (2 - p), the variance p (4 - 3 p) - m^2, and the covariance of
    neighbours p m - m^2.
    """
    p, n = density, raw_length
    q, m = p * (1.0 - p), p * (2.0 - p)
    gaps = n * q + 3.0 * math.sqrt(max(n * q * (1.0 - 3.0 * q), 0.0))
    places = n * m + 3.0 * math.sqrt(max(n * (p * (4.0 - 3.0 * p) - m * m + 2.0 * (p * m - m * m)), 0.0))
    return min(math.ceil(gaps), (n + 1) // 2), min(math.ceil(places), n + 1 if n else 0) + 1


def iid_denoising(
    tokens: np.ndarray, rng: np.random.Generator, density: float, sentinel_ids: Sequence[int] | np.ndarray, eos_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Each token is corrupted independently; each run of corrupted tokens becomes one sentinel (T5, section
    3.1.4).

    In about one text of a thousand more tokens are drawn than ``iid_limits`` has room for; from the first that does not
    fit to the end of the text, all are then left as they are.

    Args:
      tokens: (raw_length,) ids.
      rng: random numbers; one is drawn for each token.
      density: probability of each token to be corrupted.
      sentinel_ids: sentinels in the order of their runs, at least the number that ``iid_limits`` gives.
      eos_id: id appended to both results.

    Returns:
      inputs (at most raw_length + 1) and targets (at most as ``iid_limits`` says), int32.
    """
    import numpy as np

    runs_limit, places_limit = iid_limits(len(tokens), density)
    # A kept token before the first, so that the sentinel of each run has a place before the run in the targets.
    is_noise = np.zeros(len(tokens) + 1, bool)
    is_noise[1:] = rng.random(len(tokens)) < density
    begins = is_noise[1:] & ~is_noise[:-1]
    runs = np.cumsum(begins)
    fits = (runs <= runs_limit) & (runs + np.cumsum(is_noise[1:]) < places_limit)
    is_noise[1:] &= fits
    starts = np.flatnonzero(begins & fits) + 1
    padded = np.concatenate(((0,), tokens), dtype=np.int32)
    sentinels = np.asarray(sentinel_ids[: len(starts)], np.int32)
    is_kept = ~is_noise
    is_kept[0] = False
    inputs = keep_and_mark(padded, is_kept, starts, sentinels, eos_id)
    return inputs, keep_and_mark(padded, is_noise, starts - 1, sentinels, eos_id)
