"""Text to token ids and back: SentencePiece models, bytes and ``tokenizer.json`` files, behind one small protocol.

Knows vocabularies and their special ids; must not know objectives or models.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.tokenizers.base import Tokenizer
from t5x_like.input_pipeline.tokenizers.config import Bytes, HuggingFaceTokenizer, SentencePiece, TokenizerConfig
from t5x_like.input_pipeline.tokenizers.pieces import sentinel_piece


def config_of_file(path: str, symbols: Sequence[str] = ()) -> TokenizerConfig:
    """What a config would say of a vocabulary file: ``bytes``, a ``.json`` or else a SentencePiece model.

    It has the sentinels that the file holds; those of a model that holds none lie beyond it, as in published T5's.
    Which pieces of a SentencePiece model are ``symbols``, it cannot tell.
    """
    if path == "bytes":
        return Bytes()
    json = path.endswith(".json")
    config = HuggingFaceTokenizer(path) if json else SentencePiece(0, sentinels=0, symbols=tuple(symbols), path=path)
    opened = open_tokenizer(config)
    held = next(i for i in itertools.count() if opened.find(sentinel_piece(i)) is None)
    return replace(config, sentinels=held or (0 if json else SentencePiece.sentinels))


def open_tokenizer(config: TokenizerConfig) -> Tokenizer:
    """The tokenizer that ``config`` describes, which has its path; opened once for as long as its file stays the same.

    Raises:
      UserError: from the ``open`` of its kind; or a file whose vocabulary is not of the size that ``config`` says.
    """
    path = Path(config.path).expanduser()
    status = path.stat() if path.is_file() else None
    tokenizer = _open(config, (status.st_size, status.st_mtime_ns) if status else (0, 0))
    if config.path and config.vocab_size not in (0, tokenizer.vocab_size):
        got = f"{config.vocab_size}, but {path} holds {tokenizer.vocab_size} ids (sentinels included)"
        allowed = f"{tokenizer.vocab_size}, or 0 for whatever the file holds"
        raise UserError("data.corpus.tokenizer.vocab_size", got, allowed)
    return tokenizer


@functools.lru_cache(maxsize=8)
def _open(config: TokenizerConfig, status: tuple[int, int]) -> Tokenizer:
    # ``status`` (size and time of change) is part of the key only, so that a file that has changed is read again.
    return config.open()


def check_vocabulary(tokenizer: Tokenizer, model_vocab_size: int) -> None:
    """Raises ``UserError`` unless every id of ``tokenizer`` has a row in a model with ``model_vocab_size`` of them."""
    if tokenizer.vocab_size > model_vocab_size:
        padded = f"{-(-tokenizer.vocab_size // 128) * 128}, the next multiple of 128"
        got = f"{model_vocab_size}, but the tokenizer has {tokenizer.vocab_size} ids"
        raise UserError("model.vocab_size", got, f"{tokenizer.vocab_size} or more", padded)
