"""Plain language modelling: every token is predicted from those before it.

Knows lengths and special ids only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from t5x_like.core.ranges import NonNegativeInt, PositiveFloat
from t5x_like.input_pipeline.config import Shape
from t5x_like.objectives.base import Example, Objective

if TYPE_CHECKING:
    import numpy as np

    from t5x_like.input_pipeline.tokenizers.base import Tokenizer
    from t5x_like.losses.base import Loss
    from t5x_like.losses.token import TokenLoss


@dataclass(frozen=True)
class Autoregressive(Objective):
    """Left-to-right language modelling: L tokens of text are L targets, the first from the start token alone.

    Each document ends in EOS, and attention never crosses from one document to the next.

    Attributes:
      future_tokens: number of tokens beyond the next that are predicted too, each by a head of its own and in training
        only (Gloeckle et al. 2024); equal to the number of ``model.future_heads``. Targets are shifted on the device,
        within segments.
      future_weight: weight of the mean loss of these heads, beside the loss of the next token. DeepSeek-V3 has 0.3
        (2024, section 4.2); Gloeckle et al. weigh all heads alike, which is ``future_tokens`` here.
    """

    future_tokens: NonNegativeInt = 0
    future_weight: PositiveFloat = 0.3

    shapes: ClassVar[tuple[Shape, ...]] = ("decoder-only",)

    def loss(self, token: TokenLoss) -> Loss:
        """The loss of the next token, with that of ``future_tokens`` further ones."""
        from t5x_like.losses.future_tokens import FutureTokens

        return FutureTokens(token, self.future_weight) if self.future_tokens else token

    def example(self, tokens: np.ndarray, rng: np.random.Generator, tokenizer: Tokenizer) -> Example:
        """No inputs; targets: the tokens."""
        return Example(tokens[:0], tokens)
