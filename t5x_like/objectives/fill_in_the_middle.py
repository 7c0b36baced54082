"""Infilling for a decoder that stands alone: the middle of a text is moved behind its prefix and suffix.

Knows ids and lengths; changes no token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from t5x_like.core.errors import require
from t5x_like.core.ranges import Probability
from t5x_like.input_pipeline.config import DataConfig, Shape
from t5x_like.objectives.base import Example, Objective, piece_id, require_input_length, require_special_ids

if TYPE_CHECKING:
    import numpy as np

    from t5x_like.input_pipeline.tokenizers.base import Tokenizer

LossOn = Literal["all", "middle"]


@dataclass(frozen=True)
class FillInTheMiddle(Objective):
    """Fill in the middle (Bavarian et al. 2022) at the level of tokens: each document's share of a row is either plain
    text for language modelling or prefix, suffix and middle in one of two orders, PSM and SPM, which end in EOS.
    A text of a single token stays plain.

    Attributes:
      rate: probability that a text is reordered.
      spm_rate: probability of the order SPM among reordered texts.
      pieces: pieces of the vocabulary before prefix, suffix and middle.
      loss_on: tokens with loss: all, as in the paper, or only middle and EOS of reordered texts; of plain ones all.
    """

    rate: Probability = 0.5
    spm_rate: Probability = 0.5
    pieces: tuple[str, str, str] = ("<extra_id_0>", "<extra_id_1>", "<extra_id_2>")
    loss_on: LossOn = "all"

    shapes: ClassVar[tuple[Shape, ...]] = ("decoder-only",)

    @property
    def added_tokens(self) -> int:
        """Three markers, and EOS behind a middle whose document does not end in the row."""
        return 4

    def check(self, tokenizer: Tokenizer, data: DataConfig, shape: Shape) -> None:
        """Raises ``UserError``: a marker that is no piece of the vocabulary, no EOS, no room, a target length."""
        where, suggestion = "objective.pieces", "three sentinels, or SentencePiece(symbols=...) with the pieces"
        super().check(tokenizer, data, shape)
        require(len(set(self.pieces)) == 3, where, self.pieces, "three different pieces", suggestion)
        require_special_ids(tokenizer, {each: piece_id(tokenizer, each, where, suggestion) for each in self.pieces})
        require_input_length(data, self.added_tokens + 1, "three markers and EOS")

    def example(self, tokens: np.ndarray, rng: np.random.Generator, tokenizer: Tokenizer) -> Example:
        """No inputs; targets: the text, plain or reordered; weights only where the loss is on the middle."""
        import numpy as np

        if rng.random() >= self.rate or len(tokens) < 2:
            return Example(tokens[:0], tokens)
        pre, suf, mid = (piece_id(tokenizer, each, "objective.pieces", "") for each in self.pieces)
        whole, middle = fill_in_the_middle(tokens, rng, self.spm_rate, (pre, suf, mid), tokenizer.eos_id)
        weights = None
        if self.loss_on == "middle":
            weights = np.zeros(len(whole), np.float32)
            weights[-middle:] = 1.0
        return Example(whole[:0], whole, weights)


def fill_in_the_middle(
    tokens: np.ndarray, rng: np.random.Generator, spm_rate: float, marker_ids: tuple[int, int, int], eos_id: int
) -> tuple[np.ndarray, int]:
    """Text with its middle moved to the end (Bavarian et al. 2022, sections 3 and 3.1).

    Two cuts, each uniform over all places with both ends, make prefix, middle and suffix; any may be empty.

    - PSM: PRE prefix SUF suffix MID middle EOS
    - SPM: PRE SUF suffix MID prefix middle EOS (their variant 2, which shares its markers with PSM)

    Args:
      tokens: (length,) ids; if EOS is the last of them, it stays the last.
      rng: random numbers.
      spm_rate: probability of SPM.
      marker_ids: PRE, SUF, MID.
      eos_id: id that ends the middle: the model's sign that it has met the suffix.

    Returns:
      (length + 3 or 4,) int32 ids, and the number of tokens of middle and EOS at their end.
    """
    import numpy as np

    text = tokens[:-1] if len(tokens) and tokens[-1] == eos_id else tokens
    first, last = np.sort(rng.integers(0, len(text) + 1, 2)).tolist()
    pre, suf, mid = marker_ids
    if rng.random() < spm_rate:
        parts = ((pre, suf), text[last:], (mid,), text[:last], (eos_id,))
    else:
        parts = ((pre,), text[:first], (suf,), text[last:], (mid,), text[first:last], (eos_id,))
    return np.concatenate(parts, dtype=np.int32), last - first + 1
