"""Prefix language modelling: the first part of a text is read in both directions, the rest is predicted.

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
class PrefixLM:
    """Prefix language modelling as in T5 (Raffel et al. 2020, section 3.2.3): the prefix of L tokens is uniform in [1,
    L).

    Each document ends in EOS, and each document's share of a row has a prefix of its own. A decoder alone reads prefix
    and rest in one sequence; an encoder-decoder reads the prefix in the encoder and writes the rest in the decoder.
    """

    shapes: ClassVar[tuple[Shape, ...]] = ("decoder-only", "encoder-decoder")
    joins_documents: ClassVar[bool] = False
    has_prefix: ClassVar[bool] = True
    inputs_end_in_eos: ClassVar[bool] = False
    minimum_length: ClassVar[int] = 2

    def piece_length(self, data: DataConfig, shape: Shape) -> int:
        """Raw tokens per row: for an encoder-decoder as many as fit however they are split."""
        return data.input_length if shape == "decoder-only" else min(self.capacity(data, shape)) + 1

    def lengths(self, piece_length: int, shape: Shape) -> tuple[int, ...]:
        """(tokens,), or the most (encoder, decoder) tokens that any split of the piece makes."""
        return (piece_length,) if shape == "decoder-only" else (piece_length - 1, piece_length - 1)

    def capacity(self, data: DataConfig, shape: Shape) -> tuple[int, ...]:
        """(tokens,) or (encoder, decoder) tokens per row; both sides are alike if the config does not say."""
        if shape == "decoder-only":
            return (data.input_length,)
        return data.input_length, data.target_length or data.input_length

    def check(self, tokenizer: Tokenizer, data: DataConfig, shape: Shape) -> None:
        """Raises ``UserError``: no EOS, or a target length for a decoder alone."""
        require_special_ids(tokenizer)
        if shape == "decoder-only":
            require_no_target_length(data, "prefix language modelling of a decoder")

    def example(self, tokens: np.ndarray, rng: np.random.Generator, tokenizer: Tokenizer) -> Example:
        """inputs: the prefix; targets: the rest. A single token is all prefix, with nothing to predict."""
        from t5x_like.input_pipeline.corrupt import prefix_split

        prefix = prefix_split(len(tokens), rng) if len(tokens) > 1 else len(tokens)
        return Example(tokens[:prefix], tokens[prefix:])
