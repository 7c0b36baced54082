"""A corpus cut into parts, and one part tokenized into files: what every way to prepare shares.

Knows sources, filters, tokenizers and the work folder; must not know who runs a part (this process, a worker process,
Apache Beam), nor what becomes of it. Where the borders of parts lie follows from the source alone, so that any number
of processes, stopped and started at any moment, make the same files. Part 7 of the work folder is a folder that appears
when it is finished:

  000007/tokens       ids of its documents end to end, as in a token cache
  000007/documents    a record of type ``DOCUMENT`` for each
  000007/part.json    counts, and size and digest of the two
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, wait
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.config import Filters, Source, TokenizerConfig
from t5x_like.input_pipeline.disk import NewFolder, check_files, room_in, temporary_name
from t5x_like.input_pipeline.prepare.progress import Tally
from t5x_like.input_pipeline.prepare.token_cache import token_type
from t5x_like.input_pipeline.processes import team
from t5x_like.input_pipeline.sources.files import File, Unit, list_files
from t5x_like.input_pipeline.sources.splits import text_hash
from t5x_like.input_pipeline.tokenizers.base import Tokenizer
from t5x_like.input_pipeline.tokenizers.pieces import groups_of
from t5x_like.input_pipeline.tokenizers.tokenizer import open_tokenizer

# What is known of a document besides its tokens: how many, and ``splits.text_hash`` as two big-endian halves.
DOCUMENT = np.dtype([("length", "<i8"), ("hash", ">u8", (2,))])

# A part is a 64th of a corpus within these bounds: small enough that processes end together and little is lost by a
# kill, large enough that the files of a corpus of terabytes can be counted.
_PARTS, _SMALLEST_PART, _LARGEST_PART = 64, 10**6, 64 * 10**6
_UNIT_COST = 1000  # bytes that opening a file counts as, so that a part does not hold a million empty ones
# Documents are tokenized in groups of about this many characters: to spread them over threads, and to pay for what is
# done once per group seldom.
_GROUP_CHARACTERS = 1_000_000
_REPORT_SECONDS = 0.5
_MOST_KINDS = 20  # of documents that cannot be read, told apart
_NOTE = "part.json"
_OTHER_KINDS = "other reasons"


@dataclass(frozen=True)
class Work:
    """What all parts of a corpus have in common. Goes to other processes.

    Attributes:
      source, filters: those of the corpus.
      tokenizer: the vocabulary, with its path.
      fingerprint: digest of the vocabulary of the cache.
      skip_bad: whether to count documents that cannot be read, instead of raising.
      folder: the work folder.
    """

    source: Source
    tokenizer: TokenizerConfig
    fingerprint: str
    filters: Filters
    skip_bad: bool
    folder: str

    def open_tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises ``UserError`` if it is not the one that the work was planned with."""
        tokenizer = open_tokenizer(self.tokenizer)
        if tokenizer.fingerprint != self.fingerprint:
            got = "its file has changed while the corpus was prepared"
            raise UserError("data.corpus.tokenizer", got, "", "run again")
        return tokenizer


@dataclass(frozen=True)
class Part:
    """Neighbouring units of a source, tokenized together. Goes to other processes.

    Attributes:
      number: index of the part in the corpus, from 0.
      units: units to read, in order.
      stamp: ``stamp_of`` its files when the work was planned.
    """

    number: int
    units: tuple[Unit, ...]
    stamp: str = ""

    def __str__(self) -> str:
        where = ", ".join(unit.file for unit in self.units[:1]) + (", ..." if len(self.units) > 1 else "")
        return f"{self.number} ({where})"

    @property
    def size(self) -> int:
        """Bytes, about."""
        return sum(unit.size for unit in self.units)

    @property
    def identity(self) -> str:
        """A digest of what it reads, so that a part of other borders, or of files that were other ones in between, is
        not taken for it."""
        lines = (f"{unit.file}\0{unit.start}\0{unit.stop}\0{unit.size}" for unit in self.units)
        return hashlib.sha256("\n".join([self.stamp, *lines]).encode("utf-8", "surrogateescape")).hexdigest()


@dataclass
class Counts:
    """What became of the documents of a part, or of several: sums over parts in order.

    Attributes:
      documents, tokens, text_bytes: numbers of tokenized documents, their tokens and UTF-8 bytes.
      empty: number of documents of white space only, or only of characters that the tokenizer drops.
      dropped: number of dropped documents by the filter's rule.
      bad: documents that cannot be read, by the kind of message: ``count``, and ``first``, the first message.
    """

    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0
    empty: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    bad: dict[str, dict] = field(default_factory=dict)

    def add(self, other: Counts) -> None:
        for name in ("documents", "tokens", "text_bytes", "empty"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for rule, count in other.dropped.items():
            self.dropped[rule] = self.dropped.get(rule, 0) + count
        for kind, bad in other.bad.items():
            self._count_bad(kind, bad["first"], bad["count"])

    def add_bad(self, error: UserError) -> None:
        self._count_bad(re.sub(r"\d+", "N", error.got), f"{error.where}: {error.got}", 1)

    def _count_bad(self, kind: str, first: str, count: int) -> None:
        kind = kind if kind in self.bad or len(self.bad) < _MOST_KINDS else _OTHER_KINDS
        self.bad.setdefault(kind, {"count": 0, "first": first})["count"] += count


class BadDocument(UserError):
    """A document that cannot be read, in a corpus that does not skip such documents."""


class SourceChanged(UserError):
    """What was tokenized is not one state of the source."""


# Called regularly with the progress of a part: documents, tokens, bytes of the source.
Report = Callable[[int, int, int], None]


def cut_into_parts(units: Sequence[Unit]) -> list[Part]:
    """The parts of a source. Every unit is in exactly one; concatenated they are ``units``."""
    size = min(max(sum(unit.size for unit in units) // _PARTS, _SMALLEST_PART), _LARGEST_PART)
    groups: list[list[Unit]] = [[]]
    cost = 0
    for unit in units:
        if cost >= size:
            groups.append([])
            cost = 0
        groups[-1].append(unit)
        cost += unit.size + _UNIT_COST
    return [Part(number, tuple(group)) for number, group in enumerate(groups) if group]


def stamp_of(units: Sequence[Unit], files: Mapping[str, File]) -> str:
    """A digest of size and stamp of the files that are read; of all files if a unit is of no single one.

    Args:
      units: units to read.
      files: files of the source, by their addresses.
    """
    addresses = dict.fromkeys(unit.file for unit in units)
    wanted = addresses if all(address in files for address in addresses) else files
    lines = (f"{files[address].size} {files[address].stamp}" for address in wanted)
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def read_part(source: Source, part: Part, done: Callable[[int], None]) -> Iterator[str | UserError]:
    """Yields the documents of a part in order, or the error in place of one that cannot be read.

    Args:
      source, part: the source, and the part to read.
      done: function of a unit's size in bytes, called after each unit.
    """
    for unit in part.units:
        yield from source.read_unit(unit)
        done(unit.size)


def tokenize_part(work: Work, part: Part, tokenizer: Tokenizer, report: Report, threads: bool = False) -> Counts:
    """Tokenizes a part into its files; see ``tokenize_documents``. Raises ``SourceChanged`` too."""
    read: list[int] = []  # bytes of each unit
    _require_unchanged(work.source, part)
    counts = tokenize_documents(
        work, part.number, part.identity, read_part(work.source, part, read.append), tokenizer,
        lambda documents, tokens, text: report(documents, tokens, max(sum(read), min(text, part.size))), threads,
        lambda: _require_unchanged(work.source, part),
    )  # fmt: skip
    report(counts.documents, counts.tokens, part.size)
    return counts


def tokenize_in_processes(work: Work, parts: Sequence[Part], processes: int, tally: Tally) -> dict[int, Counts]:
    """Tokenizes parts into their files in the work folder, each by one of several processes.

    Args:
      work: values that all parts share.
      parts: parts in order.
      processes: largest number of processes.
      tally: counter of progress, updated regularly for each part, and at its end.

    Returns:
      The counts of each part by its number.

    Raises:
      UserError: of the first part, in the order of the corpus, that has one; or a process that died.
    """
    with team(
        functools.partial(_tokenize, work), min(processes, len(parts)), "data.prepare_processes", "part"
    ) as submit:
        given = [submit(part, functools.partial(tally.advance, part.number)) for part in parts]
        wait(given, return_when=FIRST_EXCEPTION)
        for waiting in given:  # those before a failed one have begun: the first error of the corpus will be known
            waiting.cancel()
        wait(given)
        return {part.number: result.result() for part, result in zip(parts, given, strict=True)}


def _tokenize(work: Work, part: Part, report: Report) -> Counts:
    return tokenize_part(work, part, work.open_tokenizer(), report)


def tokenize_documents(
    work: Work, number: int, identity: str, items: Iterable[str | UserError], tokenizer: Tokenizer, report: Report,
    threads: bool = False, check: Callable[[], None] = lambda: None,
) -> Counts:  # fmt: skip
    """Tokenizes documents into the folder of part ``number``, which appears whole.

    Args:
      work: values that all parts share.
      number, identity: number and identity of the part.
      items: its documents in order, and errors in place of those that cannot be read.
      tokenizer: result of ``work.open_tokenizer()``.
      report: function of the progress, called every half second.
      threads: whether the tokenizer may use all cores.
      check: function called when all has been read; if it raises, the part stays unfinished.

    Returns:
      What became of them, as the part's ``part.json`` has it too.

    Raises:
      UserError: a document that cannot be read, if those are not to be skipped; no room on the disk.
    """
    counts, folder = Counts(), Path(work.folder)
    spoken = time.monotonic()
    with room_in(folder):
        part = NewFolder(folder / temporary_name(f"{number:06}"), ("tokens", "documents"))
    with part:
        for texts in groups_of(kept_documents(items, work, counts), _GROUP_CHARACTERS):
            ids, documents = _recorded(texts, tokenizer.encode_batch(texts, 0 if threads else 1), counts)
            if len(ids) and not 0 <= ids.min() <= ids.max() < tokenizer.vocab_size:
                raise RuntimeError(f"the tokenizer gave ids from {ids.min()} to {ids.max()} of {tokenizer.vocab_size}")
            with room_in(folder):
                part.files["tokens"].write(ids.astype(token_type(tokenizer.vocab_size)).data)
                part.files["documents"].write(documents.data)
            if time.monotonic() - spoken >= _REPORT_SECONDS:
                report(counts.documents, counts.tokens, counts.text_bytes)
                spoken = time.monotonic()
        check()
        with room_in(folder):
            final = part_path(folder, number)
            note = {"identity": identity, "counts": vars(counts), "files": part.close()}
            if not part.publish(final, _NOTE, note) and finished_part(folder, number, identity) is None:
                shutil.rmtree(final)  # of other borders or other files
                part.publish(final, _NOTE, note)
    return counts


def finished_part(folder: Path, number: int, identity: str) -> Counts | None:
    """The counts of a part that an earlier process has finished, its files checked; None if there is none."""
    path = part_path(folder, number)
    try:
        recorded = json.loads((path / _NOTE).read_text())
        check_files(path, recorded["files"], by_content=True)
        return Counts(**recorded["counts"]) if recorded["identity"] == identity else None
    except (OSError, ValueError, KeyError, TypeError, UserError):  # killed, or the machine lost its power
        return None


def part_path(folder: Path, number: int) -> Path:
    """The folder of a part."""
    return folder / f"{number:06}"


def kept_documents(items: Iterable[str | UserError], work: Work, counts: Counts) -> Iterator[str]:
    """The documents to tokenize; the others are counted, or the error of one is raised."""
    filtered = work.filters != Filters()
    for item in items:
        if isinstance(item, UserError):
            if not work.skip_bad:
                raise BadDocument(item.where, item.got, item.allowed, item.suggestion) from None
            counts.add_bad(item)
        elif not item or item.isspace():
            counts.empty += 1
        elif filtered and (rule := work.filters.drops(item)):
            counts.dropped[rule] = counts.dropped.get(rule, 0) + 1
        else:
            yield item


def _require_unchanged(source: Source, part: Part) -> None:
    addresses = dict.fromkeys(unit.file for unit in part.units)
    if all(map(os.path.isfile, addresses)):  # without listing the other files, perhaps a million
        files = {address: list_files((address,), ())[0] for address in addresses}
    else:
        files = {file.address: file for file in source.files()}
    if stamp_of(part.units, files) != part.stamp:
        raise source_changed()


def source_changed() -> SourceChanged:
    return SourceChanged("data.corpus.source", "a file has changed while it was read", "", "run again")


def _recorded(texts: list[str], encoded: Sequence[np.ndarray], counts: Counts) -> tuple[np.ndarray, np.ndarray]:
    """The ids of texts end to end, and a record of type ``DOCUMENT`` for each that has any; counted too."""
    lengths = np.asarray([len(each) for each in encoded])
    kept = [text.encode("utf-8", "surrogatepass") for text, length in zip(texts, lengths, strict=True) if length]
    counts.empty += len(texts) - len(kept)  # normalization left nothing of these
    documents = np.empty(len(kept), DOCUMENT)
    documents["length"] = lengths[lengths > 0]
    documents["hash"] = np.frombuffer(b"".join(map(text_hash, kept)), ">u8").reshape(-1, 2)
    counts.documents += len(kept)
    counts.tokens += int(lengths.sum())
    counts.text_bytes += sum(map(len, kept))
    return np.concatenate(encoded), documents
