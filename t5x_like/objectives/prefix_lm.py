"""Prefix language modelling: the first part of a text is read in both directions, the rest is predicted.

Knows lengths and special ids only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from t5x_like.input_pipeline.config import DataConfig, Shape
from t5x_like.objectives.base import Example, Objective, mode_ids, require_special_ids, with_mode

if TYPE_CHECKING:
    import numpy as np

    from t5x_like.input_pipeline.tokenizers.base import Tokenizer


@dataclass(frozen=True)
class PrefixLM(Objective):
    """Prefix language modelling as in T5 (Raffel et al. 2020, section 3.2.3): the prefix of L tokens is uniform in [1,
    L).

    Each document ends in EOS, and each document's share of a row has a prefix of its own. A decoder alone reads prefix
    and rest in one sequence; an encoder-decoder reads the prefix in the encoder and writes the rest in the decoder.

    Attributes:
      mode: piece of the vocabulary put before each prefix, such as ``[S2S]``; empty: none.
    """

    mode: str = ""

    shapes: ClassVar[tuple[Shape, ...]] = ("decoder-only", "encoder-decoder")
    has_prefix: ClassVar[bool] = True
    minimum_length: ClassVar[int] = 2

    @property
    def added_tokens(self) -> int:
        """1 for the mode."""
        return int(bool(self.mode))

    def piece_length(self, data: DataConfig, shape: Shape) -> int:
        """Raw tokens per row: for an encoder-decoder as many as fit however they are split."""
        if shape == "decoder-only":
            return super().piece_length(data, shape)
        encoder, decoder = self.capacity(data, shape)
        return min(encoder - self.added_tokens, decoder) + 1

    def lengths(self, piece_length: int, shape: Shape) -> tuple[int, ...]:
        """(tokens,), or the most (encoder, decoder) tokens that any split of the piece makes."""
        if shape == "decoder-only":
            return super().lengths(piece_length, shape)
        return piece_length - 1 + self.added_tokens, piece_length - 1

    def capacity(self, data: DataConfig, shape: Shape) -> tuple[int, ...]:
        """(tokens,) or (encoder, decoder) tokens per row; both sides are alike if the config does not say."""
        both = data.input_length, data.target_length or data.input_length
        return both[:1] if shape == "decoder-only" else both

    def check(self, tokenizer: Tokenizer, data: DataConfig, shape: Shape) -> None:
        """Raises ``UserError``: no EOS, no such mode, or a target length for a decoder alone."""
        super().check(tokenizer, data, shape)
        require_special_ids(tokenizer, mode_ids(self.mode, tokenizer))

    def example(self, tokens: np.ndarray, rng: np.random.Generator, tokenizer: Tokenizer) -> Example:
        """inputs: the mode and the prefix; targets: the rest. A single token is all prefix, nothing is predicted."""
        prefix = prefix_split(len(tokens), rng) if len(tokens) > 1 else len(tokens)
        return Example(with_mode(self.mode, tokens[:prefix], tokenizer), tokens[prefix:])


def prefix_split(length: int, rng: np.random.Generator) -> int:
    """Length of the prefix of ``length`` tokens (2 or more): uniform in [1, length)."""
    return int(rng.integers(1, length))
