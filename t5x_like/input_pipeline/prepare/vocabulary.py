"""The vocabulary of a corpus or mixture: opened, or trained on its training split into the cache, once.

Knows corpora and SentencePiece's trainer as a function of texts; must not know how tokens are used.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.config import Corpus, Mixture, SentencePiece, TokenizerConfig, cache_folder, corpora
from t5x_like.input_pipeline.disk import held_lock
from t5x_like.input_pipeline.prepare.published import make_once
from t5x_like.input_pipeline.sources.arrow import Parquet
from t5x_like.input_pipeline.sources.csv_files import Csv
from t5x_like.input_pipeline.sources.files import COMPRESSIONS
from t5x_like.input_pipeline.sources.json_lines import JsonLines
from t5x_like.input_pipeline.sources.source import FileSource
from t5x_like.input_pipeline.sources.splits import documents_of_split
from t5x_like.input_pipeline.sources.text import TextFiles
from t5x_like.input_pipeline.tokenizers.base import Tokenizer
from t5x_like.input_pipeline.tokenizers.tokenizer import open_tokenizer
from t5x_like.input_pipeline.tokenizers.training import TRAINER_VERSION, train_sentencepiece

Say = Callable[[str], None]  # gets a line of text


def load_tokenizer(corpus: Corpus | Mixture, cache: str = "", progress: Say | None = None) -> Tokenizer:
    """The tokenizer of ``corpus``; a SentencePiece model without a path is trained into the cache at the first call.

    Args:
      corpus: corpus with its tokenizer, and the text to train on where there is no model yet.
      cache: cache folder, as ``DataConfig.cache``.
      progress: function of a line of text, called when training begins and ends.

    Raises:
      UserError: from ``open_tokenizer``, ``train_sentencepiece`` and ``read_documents``.
    """
    return open_tokenizer(tokenizer_config(corpus, cache, progress))


def tokenizer_config(corpus: Corpus | Mixture, cache: str = "", progress: Say | None = None) -> TokenizerConfig:
    """The tokenizer of ``corpus`` as it can be opened anywhere: with its path. Arguments as of ``load_tokenizer``."""
    config = corpus.tokenizer
    if isinstance(config, SentencePiece) and not config.path:
        return replace(config, path=str(trained_model_path(corpus, cache, progress)))
    return config


def tokenizer_place(corpus: Corpus | Mixture, cache: str = "") -> TokenizerConfig:
    """``tokenizer_config`` without training: the path may be one of no file yet. Raises as the sources do."""
    config = corpus.tokenizer
    if isinstance(config, SentencePiece) and not config.path:
        return replace(config, path=str(_model_path(_read_of(corpus), config, cache)))
    return config


def trained_model_path(corpus: Corpus | Mixture, cache: str = "", progress: Say | None = None) -> Path:
    """The model file trained for ``corpus`` in the cache folder; trains it on the training split if it is missing.

    For a mixture it is trained on all of its corpora, each in proportion to its size, whatever the rates. The name
    holds a digest of what is read and how: a change of texts, filters, held-out share or options is another file.

    Args:
      corpus: the texts and the options.
      cache: the cache folder, as ``DataConfig.cache``.
      progress: function of a line of text, called when training begins and ends.

    Raises:
      UserError: from ``train_sentencepiece`` and ``read_documents``.
    """
    config = corpus.tokenizer
    if not isinstance(config, SentencePiece):
        raise TypeError("only SentencePiece models are trained")
    corpus = _read_of(corpus)
    path = _model_path(corpus, config, cache)
    if not path.is_file():
        with held_lock(path.with_suffix(".lock")):
            if not path.is_file():
                make_once(cache, path, lambda: _train(corpus, config, path, progress or (lambda line: None)))
    return path


def _read_of(corpus: Corpus | Mixture) -> Corpus | Mixture:
    """What of a corpus its tokenizer is trained on."""
    return corpus.window_of(0) if isinstance(corpus, Corpus) and corpus.window else corpus


def _model_path(corpus: Corpus | Mixture, config: SentencePiece, cache: str) -> Path:
    texts_of = []
    for each in corpora(corpus):
        source = each.source
        texts_of.append((source.digest(), source.reading(), repr(each.filters), each.bad_documents, each.heldout))
    key = (texts_of, repr(replace(config, path="")), TRAINER_VERSION)
    digest = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
    return cache_folder(cache) / "tokenizers" / f"{corpus.name}-{digest}.model"


def source_by_suffix(paths: Sequence[str], field: str = "text") -> FileSource:
    """The source that files of one kind are, by their names: ``.jsonl``, ``.csv``, ``.tsv``, ``.parquet``, else text.

    Raises:
      UserError: files of several kinds.
    """
    with_fields = {
        ".jsonl": JsonLines, ".ndjson": JsonLines, ".json": JsonLines, ".csv": Csv, ".tsv": Csv, ".parquet": Parquet,
    }  # fmt: skip
    kinds = {with_fields.get(_suffix(path)) for path in paths}
    if len(kinds) > 1:
        raise UserError("FILE", "files of several kinds", "text, or one of .jsonl, .csv (or .tsv) and .parquet")
    kind = kinds.pop()
    return TextFiles(tuple(paths)) if kind is None else kind(tuple(paths), field)


def _suffix(path: str) -> str:
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    return next((suffix for suffix in reversed(suffixes) if suffix not in COMPRESSIONS), "")


def _train(corpus: Corpus | Mixture, config: SentencePiece, path: Path, progress: Say) -> None:
    progress(f"training a tokenizer of {config.vocab_size:,} pieces ({config.model}) on {corpus.name}")
    start = time.monotonic()
    texts = itertools.chain.from_iterable(map(_training_texts, corpora(corpus)))
    train_sentencepiece(texts, path, config.vocab_size, config.model, config.sentinels, config.symbols)
    progress(f"tokenizer trained in {time.monotonic() - start:.0f} s: {path}")


def _training_texts(corpus: Corpus) -> Iterator[str]:
    def read() -> Iterator[str]:
        documents = corpus.source.texts(corpus.bad_documents)
        return (text for text in documents if not corpus.filters.drops(text))

    return documents_of_split(read, corpus.heldout, "train")
