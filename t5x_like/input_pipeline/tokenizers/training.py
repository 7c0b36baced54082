"""Trains SentencePiece vocabularies from documents, losslessly: decoding gives back the text that was encoded.

Knows SentencePiece's trainer; must not know how tokens are used. No normalization, no dummy prefix, no removed spaces,
bytes for what has no piece; newline is a symbol of its own, so that texts keep their lines. (The one exception is the
character U+2581, which SentencePiece itself uses for a space.)
"""

from __future__ import annotations

import io
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from t5x_like.core.errors import UserError
from t5x_like.core.paths import write_atomically
from t5x_like.input_pipeline.tokenizers.config import SentencePieceModel
from t5x_like.input_pipeline.tokenizers.pieces import sentinel_piece
from t5x_like.input_pipeline.tokenizers.sentencepiece import MASK_PIECE, require_symbols

# Bump when the options below change, so that models trained with the old ones are not taken for new ones.
TRAINER_VERSION = 2
# SentencePiece counts pieces per "sentence" and skips long ones: documents are cut at spaces into chunks of about this
# many characters, and at most this many chunks (about 80 MB of text), drawn evenly, are learned from.
_CHUNK_CHARACTERS = 2000
_MOST_CHUNKS = 40_000
# Part of the result (sums of floats are taken per thread), so fixed and not taken from the machine.
_THREADS = 8


def train_sentencepiece(
    texts: Iterable[str], path: str | Path, vocab_size: int, model: SentencePieceModel = "unigram",
    sentinels: int = 100, symbols: Sequence[str] = (),
) -> None:  # fmt: skip
    """Trains a SentencePiece model on ``texts`` and writes it to ``path`` (whole, or not at all).

    Ids: padding 0, EOS 1, unknown 2, no BOS; then ``<mask>``, newline, the sentinels ``<extra_id_i>`` and ``symbols``
    as user-defined symbols, the 256 bytes, and the learned pieces. The same texts give the same file on any machine.

    Raises:
      UserError: no text, a vocabulary larger than the text can fill or too small for its characters, a symbol that is
        one of the other pieces or a single character.
    """
    import sentencepiece

    defined = [MASK_PIECE, "\n", *map(sentinel_piece, range(sentinels))]
    require_symbols(symbols)
    if taken := {"<pad>", "</s>", "<unk>", *defined}.intersection(symbols):
        raise UserError("data.corpus.tokenizer.symbols", repr(min(taken)), "texts that are no pieces already")
    model_file = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(_sample_chunks(texts)), model_writer=model_file, vocab_size=vocab_size,
            model_type=model, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, user_defined_symbols=[*defined, *symbols],
            byte_fallback=True, character_coverage=0.9995, normalization_rule_name="identity",
            remove_extra_whitespaces=False, add_dummy_prefix=False, allow_whitespace_only_pieces=True,
            split_digits=True, max_sentence_length=8 * _CHUNK_CHARACTERS, num_threads=_THREADS, minloglevel=2,
        )  # fmt: skip
    except RuntimeError as error:
        raise _explain(str(error), vocab_size) from None
    write_atomically(Path(path), model_file.getvalue())


class Sample:
    """Passes texts on, and keeps the beginning of what it passed.

    Attributes:
      texts: the first texts, together at most ``characters`` characters.
    """

    def __init__(self, texts: Iterable[str], characters: int = 1_000_000):
        self.texts: list[str] = []
        self._source, self._wanted = texts, characters

    def __iter__(self) -> Iterator[str]:
        for text in self._source:
            if self._wanted > 0:
                self.texts.append(text[: self._wanted])
                self._wanted -= len(text)
            yield text


def _sample_chunks(texts: Iterable[str]) -> list[str]:
    """At most ``_MOST_CHUNKS`` chunks of ``texts``, each equally likely to be in (reservoir sampling, fixed seed)."""
    kept: list[str] = []
    draw = random.Random(0)
    for seen, chunk in enumerate(_chunks(texts), 1):
        if len(kept) < _MOST_CHUNKS:
            kept.append(chunk)
        elif (place := draw.randrange(seen)) < _MOST_CHUNKS:
            kept[place] = chunk
    return kept


def _chunks(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        start = 0
        while start < len(text):
            end = start + _CHUNK_CHARACTERS
            if end < len(text):
                # Cut before a space or newline: pieces carry their space in front.
                border = max(text.rfind(" ", start + 1, end), text.rfind("\n", start + 1, end))
                end = border if border > start else end
            yield text[start:end]
            start = end


def _explain(message: str, vocab_size: int) -> UserError:
    where = "data.corpus.tokenizer.vocab_size"
    if match := re.search(r"set it to a value <= (\d+)", message):
        largest = match[1]
        return UserError(where, f"{vocab_size} is more than this text can fill", f"at most {largest}", largest)
    if match := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        smallest = match[1]
        got = f"{vocab_size} does not hold the characters of this text"
        return UserError(where, got, f"at least {smallest}", smallest)
    if "sentences_.empty()" in message:
        return UserError("data.corpus.source", "no text to train a tokenizer on", "at least one document with text")
    return UserError("data.corpus.tokenizer", f"SentencePiece could not train: {message}")
