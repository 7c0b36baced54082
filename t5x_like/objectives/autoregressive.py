"""Plain language modelling: every token is predicted from those before it.

Knows lengths and special ids only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from t5x_like.input_pipeline.config import DataConfig, Shape
from t5x_like.input_pipeline.example import Example
from t5x_like.objectives.requirements import require_no_target_length, require_special_ids

if TYPE_CHECKING:
    import numpy as np

    from t5x_like.input_pipeline.tokenizers import Tokenizer


@dataclass(frozen=True)
class Autoregressive:
    """Left-to-right language modelling: L tokens of text are L targets, the first from the start token alone.

    Each document ends in EOS, and attention never crosses from one document to the next.
    """

    shapes: ClassVar[tuple[Shape, ...]] = ("decoder-only",)
    joins_documents: ClassVar[bool] = False
    has_prefix: ClassVar[bool] = False
    inputs_end_in_eos: ClassVar[bool] = False
    minimum_length: ClassVar[int] = 1

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
        """Raises ``UserError``: no EOS, or a target length."""
        require_special_ids(tokenizer)
        require_no_target_length(data, "autoregressive language modelling")

    def example(self, tokens: np.ndarray, rng: np.random.Generator, tokenizer: Tokenizer) -> Example:
        """No inputs; targets: the tokens."""
        return Example(tokens[:0], tokens)
