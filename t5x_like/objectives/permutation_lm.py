"""XLNet's pretraining: tokens are predicted in a random order, each from those before it in that order.

Knows ids and lengths. An order is one number for each slot of a sequence, so that a mask can be made of it
(``pallas_kernels.masks.Ordered``):

    a token of the text that is r-th in the order, from 0:         2 r + 1
    a slot in which the token that is r-th is to be predicted:     -2 r, r at least 1
    padding:                                                       0

A slot with number a sees the slots with number b where 0 < b <= |a|: a token sees itself and those before it, a slot of
prediction only those before its token, and nothing sees a slot of prediction. The first token in the order is not
predicted.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar

from t5x_like.core.errors import require
from t5x_like.input_pipeline.config import DataConfig, Shape
from t5x_like.objectives.base import Example, Objective, Share, longest_piece, require_mask_id, require_special_ids

if TYPE_CHECKING:
    import numpy as np

    from t5x_like.input_pipeline.tokenizers.base import Tokenizer


@dataclass(frozen=True)
class PermutationLM(Objective):
    """Permutation language modelling (Yang et al. 2019, sections 2.2 and 2.3): the last tokens of a random order are
    predicted, of L tokens floor(L predicted).

    XLNet's two streams lie in one row: behind the L tokens of a text stand the query slots, each with the mask id and
    the position of a token to be predicted. A slot sees the tokens before that one in the order, and nothing sees a
    slot, so that one pass of a plain encoder computes both. Each document ends in EOS, a token as any other.

    Attributes:
      predicted: share of tokens that are predicted (XLNet's 1 / K, K = 6).
    """

    predicted: Share = 1 / 6

    shapes: ClassVar[tuple[Shape, ...]] = ("encoder-only",)
    needs_position_ids: ClassVar[bool] = True

    def extras(self, shape: Shape) -> tuple[str, ...]:
        """``encoder_order``, from which the mask is made."""
        return ("encoder_order",)

    def piece_length(self, data: DataConfig, shape: Shape) -> int:
        """Raw tokens that fill a row together with their slots of prediction: 439 of 512 with the defaults."""
        return longest_piece(lambda length: self.lengths(length, shape)[0], data.input_length, 1)

    def lengths(self, piece_length: int, shape: Shape) -> tuple[int, ...]:
        """(tokens,): those of a piece and its slots of prediction."""
        return (piece_length + self._slots(piece_length),)

    def check(self, tokenizer: Tokenizer, data: DataConfig, shape: Shape) -> None:
        """Raises ``UserError``: no mask id, no EOS, a target length, a row too short to predict a single token."""
        super().check(tokenizer, data, shape)
        require_special_ids(tokenizer, {"<mask>": require_mask_id(tokenizer)})
        piece = self.piece_length(data, shape)
        got, fits = f"{self.predicted}, less than one of the {piece} tokens of a row", self._slots(piece) > 0
        require(fits, "objective.predicted", got, f"{1 / piece:.4f} or more", "a longer data.input_length")

    def example(self, tokens: np.ndarray, rng: np.random.Generator, tokenizer: Tokenizer) -> Example:
        """inputs: the tokens, then mask ids; targets and weights: at the mask ids the tokens that belong there."""
        import numpy as np

        length, queries = len(tokens), self._slots(len(tokens))
        order, places = permutation_order(length, queries, rng)
        inputs = np.full(length + queries, require_mask_id(tokenizer), np.int32)
        inputs[:length] = tokens
        targets = inputs.copy()
        targets[length:] = tokens[places]
        positions = np.concatenate([np.arange(length), places]).astype(np.int32)
        weights = (order < 0).astype(np.float32)
        return Example(inputs, targets, weights, positions, order)

    def _slots(self, length: int) -> int:
        # In whole numbers: a share of 1 / 49 of 49 tokens is 1, and the slots of a row's documents are together no more
        # than those of their sum. The first of the order is never predicted.
        share = Fraction(self.predicted).limit_denominator(10**6)
        return max(0, min(length * share.numerator // share.denominator, length - 1))


def permutation_order(length: int, queries: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A random order of ``length`` tokens; the last ``queries`` are predicted (Yang et al. 2019, sections 2.2 and 2.3).

    Args:
      length: number of tokens of the text.
      queries: number of predicted tokens, from 0 to length - 1, or 0 for an empty text.
      rng: random numbers.

    Returns:
      (length + queries,) int32 ``order``, as the module's text says, the tokens first and the slots of prediction
      behind them; (queries,) the places in the text of the tokens to be predicted, ascending.
    """
    import numpy as np

    rank = rng.permutation(length)
    predicted = np.flatnonzero(rank >= length - queries)
    return np.concatenate([2 * rank + 1, -2 * rank[predicted]]).astype(np.int32), predicted
