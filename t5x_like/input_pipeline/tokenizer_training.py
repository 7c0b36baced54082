"""Trains SentencePiece vocabularies from documents, losslessly: decoding gives back the text that was encoded.

Knows SentencePiece's trainer; must not know how tokens are used. No normalization, no dummy prefix, no removed spaces,
bytes for what has no piece; newline is a symbol of its own, so that texts keep their lines. (The one exception is the
character U+2581, which SentencePiece itself uses for a space.)
"""

from __future__ import annotations

import hashlib
import io
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from t5x_like.core.errors import UserError
from t5x_like.core.paths import write_atomically
from t5x_like.input_pipeline.config import Corpus, SentencePiece, SentencePieceModel, cache_folder
from t5x_like.input_pipeline.locks import held_lock
from t5x_like.input_pipeline.sources import read_documents, source_digest
from t5x_like.input_pipeline.splits import documents_of_split

MASK_PIECE = "<mask>"
# Bump when the options below change, so that models trained with the old ones are not taken for new ones.
TRAINER_VERSION = 1
# SentencePiece counts pieces per "sentence" and skips long ones: documents are cut at spaces into chunks of about this
# many characters, and at most this many chunks (about 80 MB of text), drawn evenly, are learned from.
_CHUNK_CHARACTERS = 2000
_MOST_CHUNKS = 40_000
# Part of the result (sums of floats are taken per thread), so fixed and not taken from the machine.
_THREADS = 8


def train_sentencepiece(
    texts: Iterable[str],
    path: str | Path,
    vocab_size: int,
    model: SentencePieceModel = "unigram",
    sentinels: int = 100,
) -> None:
    """Trains a SentencePiece model on ``texts`` and writes it to ``path`` (whole, or not at all).

    Ids: padding 0, EOS 1, unknown 2, no BOS; then ``<mask>``, newline and the sentinels ``<extra_id_i>`` as
    user-defined symbols, the 256 bytes, and the learned pieces. The same texts give the same file on any machine.

    Raises:
      UserError: no text, a vocabulary larger than the text can fill or too small for its characters.
    """
    import sentencepiece

    model_file = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(_sample_chunks(texts)),
            model_writer=model_file,
            vocab_size=vocab_size,
            model_type=model,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            user_defined_symbols=[MASK_PIECE, "\n", *(f"<extra_id_{i}>" for i in range(sentinels))],
            byte_fallback=True,
            character_coverage=0.9995,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            max_sentence_length=8 * _CHUNK_CHARACTERS,
            num_threads=_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _explain(str(error), vocab_size) from None
    write_atomically(Path(path), model_file.getvalue())


def trained_model_path(corpus: Corpus, cache: str = "") -> Path:
    """The model file trained for ``corpus`` in the cache folder; trains it on the training split if it is missing.

    The name holds a digest of the texts, the options and the held-out share: a change of any of them is another file.

    Raises:
      UserError: from ``train_sentencepiece`` and ``read_documents``.
    """
    config = corpus.tokenizer
    if not isinstance(config, SentencePiece):
        raise TypeError("only SentencePiece models are trained")
    key = (
        source_digest(corpus.source),
        repr(corpus.source),
        repr(replace(config, path="")),
        corpus.heldout,
        TRAINER_VERSION,
    )
    digest = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
    path = cache_folder(cache) / "tokenizers" / f"{corpus.name}-{digest}.model"
    if not path.is_file():
        with held_lock(path.with_suffix(".lock")):
            if not path.is_file():
                texts = documents_of_split(lambda: read_documents(corpus.source), corpus.heldout, "train")
                train_sentencepiece(texts, path, config.vocab_size, config.model, config.sentinels)
    return path


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
        return UserError(
            where, f"{vocab_size} does not hold the characters of this text", f"at least {smallest}", smallest
        )
    if "sentences_.empty()" in message:
        return UserError("data.corpus.source", "no text to train a tokenizer on", "at least one document with text")
    return UserError("data.corpus.tokenizer", f"SentencePiece could not train: {message}")
