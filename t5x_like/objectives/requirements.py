"""Checks that several objectives share: what they ask of lengths, shapes and the tokenizer's special ids.

Knows configs and the tokenizer protocol; computes nothing on tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.config import DataConfig

if TYPE_CHECKING:
    from t5x_like.input_pipeline.tokenizers import Tokenizer


def require_special_ids(tokenizer: Tokenizer) -> None:
    """Raises ``UserError`` unless the tokenizer has a padding and an EOS id, both inside its vocabulary."""
    for name, identifier in (("padding", tokenizer.pad_id), ("EOS", tokenizer.eos_id)):
        if not 0 <= identifier < tokenizer.vocab_size:
            raise UserError("data.corpus.tokenizer", f"no {name} id (it is {identifier})", "a tokenizer that has one")


def require_no_target_length(data: DataConfig, name: str) -> None:
    """Raises ``UserError`` if ``data.target_length`` is set where one sequence is both read and predicted."""
    if data.target_length:
        raise UserError(
            "data.target_length",
            f"{data.target_length}, but {name} here has one sequence only",
            "0",
            "data.input_length",
        )
