"""Trains SentencePiece vocabularies from documents, losslessly: decoding gives back the text that was encoded.

Knows SentencePiece's trainer; must not know how tokens are used. No normalization, no dummy prefix, no removed spaces,
bytes for what has no piece; newline is a symbol of its own, so that texts keep their lines. (The one exception is the
character U+2581, which SentencePiece itself uses for a space.)
"""

from __future__ import annotations

import hashlib
import io
import itertools
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from t5x_like.core.config import structure, to_plain
from t5x_like.core.errors import UserError
from t5x_like.core.paths import write_atomically
from t5x_like.input_pipeline.config import Corpus, Mixture, SentencePiece, SentencePieceModel, cache_folder, corpora
from t5x_like.input_pipeline.disk import held_lock
from t5x_like.input_pipeline.sources.config import Csv, FileSource, JsonLines, Parquet, TextFiles
from t5x_like.input_pipeline.sources.source import read_documents, source_digest
from t5x_like.input_pipeline.sources.splits import documents_of_split
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
    texts: Iterable[str],
    path: str | Path,
    vocab_size: int,
    model: SentencePieceModel = "unigram",
    sentinels: int = 100,
    symbols: Sequence[str] = (),
) -> None:
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
            sentence_iterator=iter(_sample_chunks(texts)),
            model_writer=model_file,
            vocab_size=vocab_size,
            model_type=model,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            user_defined_symbols=[*defined, *symbols],
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


def trained_model_path(
    corpus: Corpus | Mixture, cache: str = "", progress: Callable[[str], None] | None = None
) -> Path:
    """The model file trained for ``corpus`` in the cache folder; trains it on the training split if it is missing.

    For a mixture it is trained on all of its corpora, each in proportion to its size, whatever the rates. The name
    holds a digest of what is read and how: a change of texts, filters, held-out share or options is another file.

    Args:
      corpus: the texts and the options.
      cache: the cache folder, as ``DataConfig.cache``.
      progress: called with a line of text when training begins and ends.

    Raises:
      UserError: from ``train_sentencepiece`` and ``read_documents``.
    """
    config = corpus.tokenizer
    if not isinstance(config, SentencePiece):
        raise TypeError("only SentencePiece models are trained")
    corpus = structure(type(corpus), to_plain(corpus), "data.corpus")  # 0 and 0.0 of a number field are one corpus
    texts_of = [
        (source_digest(each.source), repr(each.source), repr(each.filters), each.bad_documents, each.heldout)
        for each in corpora(corpus)
    ]
    key = (texts_of, repr(replace(config, path="")), TRAINER_VERSION)
    digest = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
    path = cache_folder(cache) / "tokenizers" / f"{corpus.name}-{digest}.model"
    if not path.is_file():
        with held_lock(path.with_suffix(".lock")):
            if not path.is_file():
                _train(corpus, config, path, progress or (lambda line: None))
    return path


class Sample:
    """Passes texts on, and keeps the beginning of what it passed.

    Attributes:
      texts: at most ``characters`` of them, from the first on.
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


def source_by_suffix(paths: Sequence[str], field: str = "text") -> FileSource:
    """The source that files of one kind are, by their names: ``.jsonl``, ``.csv``, ``.tsv``, ``.parquet``, else text.

    Raises:
      UserError: files of several kinds.
    """
    with_fields = {".jsonl": JsonLines, ".csv": Csv, ".tsv": Csv, ".parquet": Parquet}
    kinds = {with_fields.get(_suffix(path)) for path in paths}
    if len(kinds) > 1:
        raise UserError("FILE", "files of several kinds", "text, or one of .jsonl, .csv (or .tsv) and .parquet")
    kind = kinds.pop()
    return TextFiles(tuple(paths)) if kind is None else kind(tuple(paths), field)


def _suffix(path: str) -> str:
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    return next((suffix for suffix in reversed(suffixes) if suffix not in (".gz", ".zst")), "")


def _train(corpus: Corpus | Mixture, config: SentencePiece, path: Path, progress: Callable[[str], None]) -> None:
    progress(f"training a tokenizer of {config.vocab_size:,} pieces ({config.model}) on {corpus.name}")
    start = time.monotonic()
    texts = itertools.chain.from_iterable(map(_training_texts, corpora(corpus)))
    train_sentencepiece(texts, path, config.vocab_size, config.model, config.sentinels, config.symbols)
    progress(f"tokenizer trained in {time.monotonic() - start:.0f} s: {path}")


def _training_texts(corpus: Corpus) -> Iterator[str]:
    def read() -> Iterator[str]:
        documents = read_documents(corpus.source, corpus.bad_documents)
        return (text for text in documents if not corpus.filters.drops(text))

    return documents_of_split(read, corpus.heldout, "train")


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
