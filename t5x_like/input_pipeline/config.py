"""What a run file says about its data: corpora and mixtures of them, tokenizer, lengths, packing.

Holds frozen dataclasses only, of types that go to JSON and back, and imports neither numpy nor any reader, so that the
command line can load and print a run in milliseconds. Must not know how any of it is done.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from t5x_like.core import paths
from t5x_like.core.buckets import DRIVERS
from t5x_like.core.config import Config
from t5x_like.core.errors import UserError, require
from t5x_like.core.ranges import INT32_MAX, BelowOne, NonNegativeFloat, NonNegativeInt, PositiveInt, Range, Size
from t5x_like.core.storage import ALLOWED, is_address
from t5x_like.input_pipeline.sources.arrow import Parquet
from t5x_like.input_pipeline.sources.csv_files import Csv
from t5x_like.input_pipeline.sources.filters import Filters
from t5x_like.input_pipeline.sources.generator import PythonGenerator
from t5x_like.input_pipeline.sources.hugging_face import HuggingFaceDataset
from t5x_like.input_pipeline.sources.json_lines import JsonLines
from t5x_like.input_pipeline.sources.records import ArrayRecord, TfRecord
from t5x_like.input_pipeline.sources.source import Source
from t5x_like.input_pipeline.sources.splits import SplitName
from t5x_like.input_pipeline.sources.text import PackageText, TextFiles
from t5x_like.input_pipeline.sources.tfds_folder import TfdsBuilder
from t5x_like.input_pipeline.sources.window import Window
from t5x_like.input_pipeline.tokenizers.config import Bytes, HuggingFaceTokenizer, SentencePiece, TokenizerConfig

__all__ = [
    "ArrayRecord", "Bytes", "Corpus", "Csv", "DataConfig", "Filters", "HuggingFaceDataset", "HuggingFaceTokenizer",
    "JsonLines", "Mixture", "PackageText", "Packing", "Parquet", "Part", "Proportional", "PythonGenerator",
    "RateSchedule", "SentencePiece", "Shape", "Source", "TextFiles", "TfRecord", "TfdsBuilder",
    "TokenizerConfig", "cache_folder", "corpora",
]  # fmt: skip

Packing = Literal["concatenate", "first_fit", "best_fit", "none"]
BadDocuments = Literal["error", "skip"]
Shape = Literal["encoder-decoder", "decoder-only", "encoder-only"]


@dataclass(frozen=True)
class Corpus(Config, where="data.corpus", made_by="corpus"):
    """A body of text and how it becomes tokens; made by the function ``corpus()`` of a file in data/.

    Attributes:
      name: name of the corpus and its cache folder: letters, digits, ``-``, ``_`` and ``.``.
      source: source of the documents.
      tokenizer: the vocabulary.
      licence: licence of the text, in words.
      origin: origin of the text, in words or as an address.
      heldout: share of held-out documents, chosen by a hash of their text.
      deduplicate: whether to drop documents whose text equals that of an earlier one.
      filters: quality filters of documents.
      bad_documents: treatment of documents or files that cannot be read: stop, or skip and count them.
      window: number of documents per window of an endless source, which is tokenized and trained on window by window,
        at most two of them on disk; the first one has the held-out documents. 0: the source ends, and is tokenized
        whole.
    """

    name: str
    source: Source
    tokenizer: TokenizerConfig
    licence: str
    origin: str
    heldout: BelowOne = 0.05
    deduplicate: bool = False
    filters: Filters = Filters()
    bad_documents: BadDocuments = "error"
    window: Size = 0

    def __post_init__(self):
        _require_name(self.name)

    def window_of(self, number: int, side: SplitName = "train") -> Corpus:
        """One split of a window of an endless corpus, as a corpus of its own that holds nothing out."""
        source = Window(self.source, number, self.window, self.heldout, side)
        return replace(self, name=f"{self.name}-window{number}-{side}", source=source, heldout=0.0, window=0)


@dataclass(frozen=True)
class RateSchedule(Config, where="data.corpus.parts.rate"):
    """A rate that changes with the step: straight lines between points, constant before the first and after the last.

    Attributes:
      steps: steps of the points, ascending.
      rates: rates at these steps, 0 or more.
    """

    steps: tuple[NonNegativeInt, ...]
    rates: tuple[NonNegativeFloat, ...]

    def __post_init__(self):
        where = "data.corpus.parts.rate"
        counts = f"{len(self.steps)} steps, {len(self.rates)} rates"
        require(0 < len(self.steps) == len(self.rates), where, counts, "as many of each, at least 1")
        ascend = all(a < b for a, b in itertools.pairwise(self.steps))
        require(ascend, f"{where}.steps", self.steps, "ascending whole numbers, 0 or more")


@dataclass(frozen=True)
class Proportional(Config, where="data.corpus.parts.rate"):
    """A rate by size: min(training tokens, ``maximum``) ** (1 / ``temperature``), as in T5 (section 3.5.2) and mT5.

    Attributes:
      maximum: tokens beyond which a corpus counts as no larger; 0 is no limit.
      temperature: 1 is by size; the larger, the more even. mT5's language exponent 0.3 is a temperature of 1 / 0.3.
    """

    maximum: Size = 0
    # Below 0.05, sizes to its power are beyond what a float holds.
    temperature: Annotated[float, Range(0.05, math.inf, "0.05 or more, or infinity")] = 1.0  # infinite: all alike


Rate = NonNegativeFloat | RateSchedule | Proportional


@dataclass(frozen=True)
class Part(Config, where="data.corpus.parts"):
    """A share of a mixture.

    Attributes:
      corpus: a corpus, or a mixture of its own.
      rate: number of its rows for each row of a part with rate 1; only the proportions of rates count. A part of rate
        0 is left out.
      epochs: largest number of passes over it; its share then goes to all others, in proportion to their rates. 0 is
        no limit. Skipped batches count as taken.
      tokens: largest number of its tokens, likewise.
    """

    corpus: Corpus | Mixture
    rate: Rate = 1.0
    epochs: NonNegativeFloat = 0.0
    tokens: Size = 0

    def __post_init__(self):
        if isinstance(self.corpus, Mixture) and (self.epochs or self.tokens):
            raise UserError("data.corpus.parts", f"epochs or tokens of mixture {self.corpus.name!r}", "of a corpus")


@dataclass(frozen=True)
class Mixture(Config, where="data.corpus", made_by="corpus"):
    """Several corpora at given rates, over one vocabulary; may hold mixtures. What a row holds is of one corpus.

    Attributes:
      name: name of the mixture and of the tokenizer trained for it.
      parts: corpora, or mixtures, with their rates.
      tokenizer: the vocabulary of all parts, in place of their own.
    """

    name: str
    parts: tuple[Part, ...]
    tokenizer: TokenizerConfig

    def __post_init__(self):
        _require_name(self.name)
        if not self.parts:
            raise UserError("data.corpus.parts", "none", "one part or more")
        require(bool(self.active), "data.corpus.parts.rate", "0 for every part", "a number above 0 for one of them")
        names = [corpus.name for corpus in corpora(self)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UserError("data.corpus.parts", f"two corpora of the name {twice[0]!r}", "a name for each")
        endless = any(corpus.window for corpus in corpora(self))
        require(not endless, "data.corpus.parts.corpus.window", "an endless corpus", "none in a mixture")

    @property
    def active(self) -> tuple[Part, ...]:
        """The parts whose rate is not the number 0."""
        return tuple(part for part in self.parts if part.rate != 0)


def corpora(corpus: Corpus | Mixture) -> tuple[Corpus, ...]:
    """Every corpus of a mixture's active parts in order, with the mixture's vocabulary; a corpus itself."""

    if isinstance(corpus, Corpus):
        return (corpus,)
    inner = (each for part in corpus.active for each in corpora(part.corpus))
    return tuple(replace(each, tokenizer=corpus.tokenizer) for each in inner)


@dataclass(frozen=True)
class DataConfig(Config, where="data"):
    """The data half of a run.

    Attributes:
      corpus: the text and its tokenizer, or a mixture of several.
      input_length: tokens per row of the encoder, or of the decoder where there is no encoder.
      target_length: tokens per row of an encoder-decoder's decoder; 0: as many as the objective needs.
      packing: how documents fill rows. ``concatenate``: joined end to end and cut to the full length. ``first_fit``,
        ``best_fit``: cut to the length, never joined, several to a row. ``none``: one (cut) document per row.
      skip: ranges of batches never trained on, such as ``1000:1200`` (the second number is the first not skipped): each
        step after takes a later batch. A resumed run may change it, from the checkpoint's step on.
      cache: folder of token caches and trained tokenizers; empty: ``$T5X_LIKE_CACHE`` or ``~/.cache/t5x-like``. At an
        address each machine copies what it reads to that folder.
      prepare_processes: number of processes that tokenize; 0: one per core, or one for a small corpus.
      read_threads: number of threads that build batches ahead of the training step; 0: built on demand.
      worker_processes: number of processes that build batches instead of threads; each takes about 200 MB.
      prefetch_batches: number of batches that the threads, or each process, keep ready.
    """

    corpus: Corpus | Mixture
    input_length: Annotated[int, Range(4, INT32_MAX, "4 or more, at most 2^31 - 1")]
    target_length: NonNegativeInt = 0
    packing: Packing = "concatenate"
    skip: tuple[str, ...] = ()
    cache: str = ""
    prepare_processes: NonNegativeInt = 0
    read_threads: NonNegativeInt = 1
    worker_processes: NonNegativeInt = 0
    prefetch_batches: PositiveInt = 4

    places: ClassVar[tuple[str, ...]] = ("cache",)

    def __post_init__(self):
        if self.skipped() and isinstance(self.corpus, Corpus) and self.corpus.window:
            raise UserError("data.skip", "batches of a corpus with a window", "none: skip documents in its source")

    def skipped(self) -> tuple[tuple[int, int], ...]:
        """``skip`` as (first, one past the last) of each range, ascending, ranges that touch joined."""
        ranges: list[tuple[int, int]] = []
        for text in self.skip:
            match = re.fullmatch(r"\s*(\d[\d_]*)\s*:\s*(\d[\d_]*)\s*", text)
            first, end = (int(match[1]), int(match[2])) if match and len(text) < 100 else (0, 0)
            if end <= first:
                raise UserError("data.skip", repr(text), "FIRST:END with FIRST < END", "data.skip=1000:1200")
            ranges.append((first, end))
        joined: list[tuple[int, int]] = []
        for first, end in sorted(ranges):
            if joined and first <= joined[-1][1]:
                begin, before = joined.pop()
                first, end = begin, max(end, before)
            joined.append((first, end))
        return tuple(joined)


def cache_address(cache: str = "") -> str:
    """The address of the caches, of ``cache`` or else ``$T5X_LIKE_CACHE``; empty where they are a folder on a disk."""
    folder = cache or os.environ.get("T5X_LIKE_CACHE", "")
    return folder.rstrip("/") if is_address(folder) else ""


def cache_folder(cache: str = "") -> Path:
    """The folder of caches on this disk: ``cache`` if given, else ``$T5X_LIKE_CACHE``, else ``~/.cache/t5x-like``; of
    an address, that of the copies in the user's cache.

    Raises:
      UserError: an address of another kind than are supported.
    """
    if not (address := cache_address(cache)):
        return Path(cache).expanduser() if cache else paths.cache_folder()
    if address.partition("://")[0] not in DRIVERS:
        raise UserError("data.cache" if cache else "$T5X_LIKE_CACHE", repr(address), ALLOWED)
    return paths.cache_folder() / "copies" / re.sub(r"[^\w.-]+", "-", address)


def _require_name(name: str) -> None:
    fits = re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) is not None
    require(fits, "data.corpus.name", repr(name), "letters, digits, '-', '_' and '.'")
