"""How the documents of a split fall into rows: each row's pieces of text, any row at once, by index.

Knows token splits and lengths; must not know what an objective does with a piece, nor the order of rows.
"""

from __future__ import annotations

import bisect
from typing import NamedTuple, Protocol

import numpy as np

from t5x_like.input_pipeline.batches.row_table import RowPacking, row_table
from t5x_like.input_pipeline.prepare.token_cache import TokenSplit


class Piece(NamedTuple):
    """A stretch of text that one example, or one for each document in it, is made of.

    Attributes:
      number: number of the piece in the split, or of its document; key of its random numbers.
      part: index of the cut of document ``number``, where pieces are cut from single documents; else 0.
      texts: ids, one (length,) int32 array for each document that it touches (or one for all).
    """

    number: int
    part: int
    texts: list[np.ndarray]


class Rows(Protocol):
    """The rows of one split.

    Attributes:
      count: number of rows in every epoch.
      tokens: number of tokens of all rows together, added EOS counted.
      left_out: number of tokens in no row of an epoch, because the rest of a text is too short.
    """

    count: int
    tokens: int
    left_out: int

    def lengths(self, rows: np.ndarray, shift: int) -> np.ndarray:
        """(rows,) int64 tokens of each of these rows; args as of ``pieces``."""
        ...

    def pieces(self, row: int, shift: int) -> list[Piece]:
        """What is in row ``row``.

        Args:
          row: index of the row, in range(count).
          shift: moves all borders where documents are joined, so that they differ between epochs.
        """
        ...

    def documents(self, row: int, shift: int) -> list[int]:
        """Indices of the documents that row ``row`` has text of; args as of ``pieces``."""
        ...


class JoinedRows:
    """Documents end to end, cut every ``length`` places: one piece a row.

    The text is taken as a ring: with a shift of the borders, one piece joins the end of the last document to the start
    of the first. So the number of pieces and their lengths are the same in every epoch, whatever the shift, every token
    is in exactly one piece, and all but the last are full. A last piece shorter than ``minimum`` is left out.

    Args:
      split: documents.
      length: places per piece.
      minimum: least length of the last piece.
      eos_id: id put after each document, where pieces are separated by document; None: neither.
      reserved: number of empty places before each document, for tokens that an example has beyond its text; not where
        documents are joined.
    """

    def __init__(self, split: TokenSplit, length: int, minimum: int, eos_id: int | None, reserved: int = 0):
        self._split, self._eos_id, self._length, self._reserved = split, eos_id, length, reserved
        self._added = 0 if eos_id is None else 1 + reserved  # places of a document beyond its tokens
        self._total = int(split.offsets[-1]) + self._added * len(split)
        minimum = 1 if reserved else minimum  # which of the places left out held tokens would change with the shift
        rest = self._total % length
        self.left_out = rest if rest < minimum else 0
        self.tokens = self._total - self.left_out - reserved * len(split)
        self.count = self._total // length + (rest >= minimum and rest > 0)

    def lengths(self, rows: np.ndarray, shift: int) -> np.ndarray:
        rows = np.asarray(rows, np.int64)
        lengths = np.minimum(self._length, self._total - rows * self._length)
        if not self._reserved:
            return lengths
        starts = (shift + rows * self._length) % self._total
        ends, wrapped = np.minimum(starts + lengths, self._total), np.maximum(starts + lengths - self._total, 0)
        return self._tokens_before(ends) - self._tokens_before(starts) + self._tokens_before(wrapped)

    def pieces(self, row: int, shift: int) -> list[Piece]:
        stretches = self._stretches(row, shift)
        if self._eos_id is None:
            tokens = self._split.tokens
            return [Piece(row, 0, [np.concatenate([tokens[a:b] for a, b in stretches], dtype=np.int32)])]
        return [Piece(row, 0, [text for a, b in stretches for text in self._documents(a, b, self._eos_id)])]

    def documents(self, row: int, shift: int) -> list[int]:
        found = []
        for start, end in self._stretches(row, shift):
            document = self._document_at(start)
            while document < len(self._split) and self._start_of(document) < end:
                found.append(document)
                document += 1
        return found

    def _stretches(self, row: int, shift: int) -> list[tuple[int, int]]:
        """(first, one past the last) place of each stretch of the ring that a row is."""
        start = (shift + row * self._length) % self._total
        end = start + min(self._length, self._total - row * self._length)
        return [(start, min(end, self._total))] + [(0, end - self._total)] * (end > self._total)

    def _document_at(self, place: int) -> int:
        return bisect.bisect_right(range(len(self._split)), place, key=self._start_of) - 1

    def _start_of(self, document: int) -> int:
        # Not a table of starts: it would be as long as the offsets, which may not fit in memory.
        return int(self._split.offsets[document]) + document * self._added

    def _documents(self, start: int, end: int, eos_id: int) -> list[np.ndarray]:
        """The text between two places of the ring, document by document; the array of tokens itself holds no EOS."""
        texts, tokens = [], self._split.tokens
        document = self._document_at(start)
        while start < end:
            begin, stop = self._start_of(document) + self._reserved, self._start_of(document + 1)
            first, last = max(start, begin), min(end, stop)
            if first < last:
                text = np.empty(last - first, np.int32)
                whole = last == stop  # its last place is EOS
                token = int(self._split.offsets[document]) - begin
                text[: len(text) - whole] = tokens[first + token : last + token - whole]
                if whole:
                    text[-1] = eos_id
                texts.append(text)
            start, document = last, document + 1
        return texts

    def _tokens_before(self, places: np.ndarray) -> np.ndarray:
        """How many of the ring's first ``places`` hold a token, EOS counted."""
        low, high = np.zeros_like(places), np.full_like(places, len(self._split))
        for _ in range(len(self._split).bit_length() + 1):  # bisection: the document that each place lies in
            middle = (low + high) // 2
            right = np.asarray(self._split.offsets[middle]) + middle * self._added <= places
            low, high = np.where(right & (low < high), middle, low), np.where(right, high, middle)
        begun = places - (np.asarray(self._split.offsets[low]) + low * self._added)
        return places - low * self._reserved - np.minimum(begun, self._reserved)


class DocumentRows:
    """Each document by itself, cut every ``length`` tokens; one piece a row, or several as a rule packs them.

    Borders, and what shares a row, are the same in every epoch: what shares a row changes nothing in the loss.

    Args as of ``JoinedRows``; of each document a last piece shorter than ``minimum`` is left out.
      packing: packing of pieces in rows; None: one piece per row.
    """

    def __init__(
        self, split: TokenSplit, length: int, minimum: int, eos_id: int | None, packing: RowPacking | None = None
    ):
        self._split, self._length, self._eos_id = split, length, eos_id
        self._table = table = row_table(split, length, minimum, eos_id is not None, packing)
        self.count, self.tokens, self.left_out = len(table.starts) - 1, table.tokens, table.left_out

    def lengths(self, rows: np.ndarray, shift: int) -> np.ndarray:
        rows = np.asarray(rows)
        first, end = (self._table.starts[rows + shift].astype(np.int64) for shift in (0, 1))
        pieces = np.repeat(first - np.concatenate([[0], np.cumsum(end - first)[:-1]]), end - first)
        pieces += np.arange(len(pieces))
        documents = self._table.document[pieces].astype(np.int64)
        lengths = np.asarray(self._split.offsets[documents + 1] - self._split.offsets[documents])
        lengths = lengths + (self._eos_id is not None) - self._table.part[pieces].astype(np.int64) * self._length
        return np.add.reduceat(np.minimum(lengths, self._length), np.cumsum(end - first) - (end - first))

    def pieces(self, row: int, shift: int) -> list[Piece]:
        table = self._table
        here = slice(int(table.starts[row]), int(table.starts[row + 1]))
        return list(map(self._piece, table.document[here].tolist(), table.part[here].tolist()))

    def documents(self, row: int, shift: int) -> list[int]:
        table = self._table
        here = slice(int(table.starts[row]), int(table.starts[row + 1]))
        return list(dict.fromkeys(table.document[here].tolist()))

    def _piece(self, document: int, part: int) -> Piece:
        split = self._split
        begin, stop = int(split.offsets[document]), int(split.offsets[document + 1])
        start = begin + part * self._length
        end = min(start + self._length, stop)
        eos_id = self._eos_id if end == stop and end - start < self._length else None
        text = np.empty(end - start + (eos_id is not None), np.int32)
        text[: end - start] = split.tokens[start:end]
        if eos_id is not None:
            text[-1] = eos_id
        return Piece(document, part, [text])
