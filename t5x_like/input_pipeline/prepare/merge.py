"""The finished parts of a corpus joined into the files of a token cache: copies dropped, the splits told apart.

Knows part files and cache files; must not know texts or tokenizers. Reads the parts from front to back, a chunk of
documents at a time: what it holds of all documents at once is one bit each, and only while dropping copies.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from t5x_like.input_pipeline.disk import HashedFile, map_array, temporary_name
from t5x_like.input_pipeline.prepare.parts import DOCUMENT
from t5x_like.input_pipeline.sources.splits import SPLIT_NAMES, Division, SplitName
from t5x_like.input_pipeline.tokenizers.pieces import groups_of

_CHUNK_DOCUMENTS = 2**20  # at a time: 24 MB
_BUCKET_DOCUMENTS = 2**21  # whose hashes are sorted at a time: about 200 MB with what sorting needs
_WRITE_TOKENS = 2**20  # at a time, or the whole of a longer run of documents
_ENTRY = np.dtype([("hash", "<u8", (2,)), ("index", "<i8")])
CACHE_FILES = tuple(f"{name}.{what}" for name in SPLIT_NAMES for what in ("tokens", "offsets"))
_DROPPED = 2  # beside 0 for train and 1 for heldout, as in SPLIT_NAMES


@dataclass(frozen=True)
class PartFiles:
    """A finished part.

    Attributes:
      path: path of its folder.
      documents: number of its documents.
    """

    path: Path
    documents: int


@dataclass(frozen=True)
class Chunk:
    """Some neighbouring documents.

    Attributes:
      part: part that holds them.
      index: number of the first one among all documents.
      documents: (n,) of type ``DOCUMENT``.
      start: number of tokens of the part before them.
    """

    part: PartFiles
    index: int
    documents: np.ndarray
    start: int

    def tokens(self, dtype: str) -> np.ndarray:
        """(tokens,) ids of the documents end to end, read from disk when touched."""
        return map_array(self.part.path / "tokens", dtype)[self.start :][: self.documents["length"].sum()]

    @property
    def shares(self) -> np.ndarray:
        """(n,) float64, ``splits.hashed_share`` of each."""
        return (self.documents["hash"][:, 0] >> np.uint64(16)).astype(np.float64) / 2.0**48


class Marks:
    """One bit for each document, all 0 at first."""

    def __init__(self, count: int):
        self._bits = np.zeros(-(-count // 8), np.uint8)

    def set(self, indices: np.ndarray) -> None:
        np.bitwise_or.at(self._bits, indices >> 3, np.left_shift(1, indices & 7).astype(np.uint8))

    def get(self, start: int, count: int) -> np.ndarray:
        """(count,) bool."""
        bits = np.unpackbits(self._bits[start // 8 : -(-(start + count) // 8)], bitorder="little")
        return bits[start % 8 :][:count].astype(bool)

    def count(self) -> int:
        return int(np.bitwise_count(self._bits).sum())


def mark_copies(parts: Sequence[PartFiles], folder: Path) -> Marks:
    """Marks every document whose hash an earlier one has.

    The hashes are sorted into files by their first bits, so that one file at a time fits into memory: copies have the
    same bits.

    Args:
      parts: parts in the order of the corpus.
      folder: folder for the sorted files, which are removed again.
    """
    total = sum(part.documents for part in parts)
    marks = Marks(total)
    count = max(1, -(-total // _BUCKET_DOCUMENTS))
    limits = np.asarray([(number << 64) // count for number in range(1, count)], np.uint64)
    temporary = folder / temporary_name("copies")
    temporary.mkdir()
    buckets = [temporary / str(number) for number in range(count)]
    try:
        for chunk in _chunks(parts):
            entries = np.empty(len(chunk.documents), _ENTRY)
            entries["hash"] = chunk.documents["hash"]
            entries["index"] = chunk.index + np.arange(len(entries))
            entries = _without_copies(entries, marks)  # here already, so that one text cannot fill its bucket
            divided = np.split(entries, np.searchsorted(entries["hash"][:, 0], limits))
            for bucket, part in zip(buckets, divided, strict=True):
                with bucket.open("ab") as file:
                    file.write(part.tobytes())
        for bucket in buckets if total else ():  # not what lies there: a file system may put files of its own there
            _without_copies(np.fromfile(bucket, _ENTRY), marks)
            bucket.unlink()
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return marks


def _without_copies(entries: np.ndarray, marks: Marks) -> np.ndarray:
    """The entries sorted by hash, without those that have an earlier one's; these are marked.

    Entries with the same hash are given in the order of the corpus, which the sort keeps.
    """
    entries = entries[np.lexsort((entries["hash"][:, 1], entries["hash"][:, 0]))]
    copies = np.zeros(len(entries), bool)
    copies[1:] = (entries["hash"][1:] == entries["hash"][:-1]).all(1)
    marks.set(entries["index"][copies])
    return entries[~copies]


def survey(parts: Sequence[PartFiles], copies: Marks | None) -> tuple[float, float, bytes | None]:
    """What must be known of all documents that are no copies before they can be divided.

    Returns:
      The least and the greatest of their hashed shares; where it is one document, the ``splits.text_hash`` of it.
    """
    count, least, greatest, only = 0, np.inf, -np.inf, None
    for chunk in _chunks(parts):
        shares = chunk.shares
        kept = np.ones(len(shares), bool) if copies is None else ~copies.get(chunk.index, len(shares))
        if kept.any():
            only = chunk.documents["hash"][np.argmax(kept)].tobytes()
            count += int(kept.sum())
            least, greatest = min(least, shares[kept].min()), max(greatest, shares[kept].max())
    return float(least), float(greatest), only if count == 1 else None


def merge(
    parts: Sequence[PartFiles], dtype: str, copies: Marks | None, division: Division, cache: CacheWriter
) -> None:
    """Writes all documents that are not copies to their split; as ``Division.holds_out``, for many at a time."""
    for chunk in _chunks(parts):
        tokens = chunk.tokens(dtype)
        labels = (chunk.shares < division.border).astype(np.int8)
        if division.first and chunk.index == 0:
            labels[0] = SPLIT_NAMES.index("heldout")
        if copies is not None:
            labels[copies.get(chunk.index, len(labels))] = _DROPPED
        lengths = chunk.documents["length"]
        ends = np.cumsum(lengths)
        borders = np.flatnonzero(np.diff(labels)) + 1  # documents in a row of one kind are copied at once
        starts, stops = np.r_[0, borders], np.r_[borders, len(labels)]
        for kind, name in enumerate(SPLIT_NAMES):
            runs = labels[starts] == kind
            firsts = (ends[starts] - lengths[starts])[runs].tolist()
            pieces = (tokens[first:end] for first, end in zip(firsts, ends[stops - 1][runs].tolist(), strict=True))
            cache.write(name, pieces, lengths[labels == kind])


class CacheWriter:
    """The splits of a token cache, written from front to back.

    Args:
      files: the files of ``CACHE_FILES``, empty.
      dtype: dtype of the tokens.
    """

    def __init__(self, files: Mapping[str, HashedFile], dtype: str):
        self._files, self._dtype = files, dtype
        self._counts = {name: [0, 0] for name in SPLIT_NAMES}  # documents, tokens
        for name in SPLIT_NAMES:
            self._files[f"{name}.offsets"].write(np.zeros(1, "<i8").data)

    def write(self, name: SplitName, tokens: Iterable[np.ndarray], lengths: np.ndarray) -> None:
        """Adds documents of these lengths, which lie end to end in the arrays of ``tokens``, to a split."""
        counts = self._counts[name]
        self._files[f"{name}.offsets"].write((counts[1] + np.cumsum(lengths)).astype("<i8").data)
        counts[0] += len(lengths)
        for pieces in groups_of(tokens, _WRITE_TOKENS):
            joined = (np.concatenate(pieces) if len(pieces) > 1 else pieces[0]).astype(self._dtype, copy=False)
            self._files[f"{name}.tokens"].write(joined.data)
            counts[1] += len(joined)

    def splits(self, closed: Mapping[str, dict]) -> dict[str, dict]:
        """What the manifest says of each split, from what ``NewFolder.close`` says of the files."""
        return {
            name: {
                "documents": documents,
                "tokens": tokens,
                "files": {file: closed[file] for file in CACHE_FILES if file.startswith(f"{name}.")},
            }
            for name, (documents, tokens) in self._counts.items()
        }


def _chunks(parts: Sequence[PartFiles]) -> Iterator[Chunk]:
    index = 0
    for part in parts:
        start = 0
        for first in range(0, part.documents, _CHUNK_DOCUMENTS):
            count = min(_CHUNK_DOCUMENTS, part.documents - first)
            documents = np.fromfile(part.path / "documents", DOCUMENT, count, offset=first * DOCUMENT.itemsize)
            yield Chunk(part, index, documents, start)
            index += count
            start += int(documents["length"].sum())
