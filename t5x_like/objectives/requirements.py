"""What several objectives share: checks of lengths, shapes and the tokenizer's special ids, and mode tokens (Tay et al.
2023, UL2, section 3.1.3), a piece before the inputs that says which denoising is asked for. An objective's field
``mode`` names the piece; empty is none.

Knows configs and the tokenizer protocol.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.config import DataConfig

if TYPE_CHECKING:
    import numpy as np

    from t5x_like.input_pipeline.tokenizers.base import Tokenizer

_TOKENIZER = "data.corpus.tokenizer"


def require_special_ids(tokenizer: Tokenizer, others: Mapping[str, int] | None = None) -> None:
    """Raises ``UserError`` unless padding, EOS and ``others`` (name to id) are inside the vocabulary and different.

    Only padding and EOS may be one id, in a vocabulary that has no padding: segments tell what is padding, never ids.
    Decoders start from the padding id, in training and in generation alike, whichever it is.
    """
    named = {"padding": tokenizer.pad_id, "EOS": tokenizer.eos_id, **(others or {})}
    taken: dict[int, str] = {}
    for name, identifier in named.items():
        if not 0 <= identifier < tokenizer.vocab_size:
            got = f"no {name} id (it is {identifier} of {tokenizer.vocab_size})"
            raise UserError(_TOKENIZER, got, "a tokenizer that has one")
        other = taken.setdefault(identifier, name)
        if other != name and (other, name) != ("padding", "EOS"):
            raise UserError(_TOKENIZER, f"{other} and {name} have the same id, {identifier}", "an id for each")


def require_mask_id(tokenizer: Tokenizer) -> int:
    """The id of masked tokens. Raises ``UserError`` if there is none."""
    if tokenizer.mask_id is None:
        suggestion = "SentencePiece(path=''), which trains one, or Bytes()"
        raise UserError(_TOKENIZER, "the vocabulary has no piece <mask>", "a tokenizer that has one", suggestion)
    return tokenizer.mask_id


def require_sentinels(tokenizer: Tokenizer, count: int, reason: str, suggestion: str) -> dict[str, int]:
    """The first ``count`` sentinels, name to id. Raises ``UserError`` for fewer, with the ``reason``."""
    found = tokenizer.sentinel_ids
    if len(found) < count:
        raise UserError(f"{_TOKENIZER}.sentinels", f"{len(found)}, but {reason}", f"{count} or more", suggestion)
    return {f"<extra_id_{i}>": identifier for i, identifier in enumerate(found[:count])}


def piece_id(tokenizer: Tokenizer, piece: str, where: str, suggestion: str) -> int:
    """The id of exactly ``piece``. Raises ``UserError`` at field ``where`` if the vocabulary has none."""
    identifier = tokenizer.find(piece)
    if identifier is None:
        raise UserError(where, f"{piece!r} is no piece of the vocabulary", "a piece that it has", suggestion)
    return identifier


def require_target_length(data: DataConfig, needed: int) -> None:
    """Raises ``UserError`` if ``data.target_length`` is set and too short for targets of ``needed`` tokens."""
    if 0 < data.target_length < needed:
        got = f"{data.target_length}, but data.input_length={data.input_length} makes targets of {needed} tokens"
        raise UserError("data.target_length", got, f"0 or {needed} and more")


def require_input_length(data: DataConfig, least: int, name: str) -> None:
    """Raises ``UserError`` if ``data.input_length`` leaves no room for text."""
    if data.input_length < least:
        raise UserError("data.input_length", f"{data.input_length}, too short for {name}", f"{least} or more")


def mode_ids(mode: str, tokenizer: Tokenizer) -> dict[str, int]:
    """Name to id of the mode, or nothing. Raises ``UserError`` if the vocabulary does not have it."""
    suggestion = "SentencePiece(symbols=('[NLU]', '[NLG]', '[S2S]')) as data.corpus.tokenizer, or mode='' for none"
    return {mode: piece_id(tokenizer, mode, "objective.mode", suggestion)} if mode else {}


def with_mode(mode: str, inputs: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """(inputs,) ids with the mode's before them, int32; ``inputs`` themselves where there is no mode."""
    if not mode:
        return inputs
    import numpy as np

    return np.concatenate([list(mode_ids(mode, tokenizer).values()), inputs], dtype=np.int32)
