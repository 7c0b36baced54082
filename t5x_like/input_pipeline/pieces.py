"""Cuts the documents of a split into pieces, each the raw material of one example or row; any piece at once, by index.

Knows token splits and lengths; must not know what an objective does with a piece.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from t5x_like.input_pipeline.prepare import TokenSplit


class Pieces(Protocol):
    """The pieces of one split.

    Attributes:
      count: how many there are in every epoch.
      left_out: tokens that are in no piece of an epoch, because what is left of the text is too short.
    """

    count: int
    left_out: int

    def lengths(self) -> np.ndarray:
        """(count,) int64 tokens of each piece, the same in every epoch."""
        ...

    def parts(self, index: int, offset: int) -> list[np.ndarray]:
        """The ids of piece ``index``, one (length,) int32 array for each document that it touches (or one for all).

        Args:
          index: in range(count).
          offset: shifts all borders where documents are joined, so that they differ between epochs.
        """
        ...


class JoinedPieces:
    """Documents end to end, cut every ``length`` tokens.

    The text is taken as a ring: with a shift of the borders, one piece joins the end of the last document to the start
    of the first. So the number of pieces and their lengths are the same in every epoch, whatever the shift, every token
    is in exactly one piece, and all but the last are full. A last piece shorter than ``minimum`` is left out.

    Args:
      split: the documents.
      length: tokens per piece.
      minimum: the shortest last piece that is of use.
      eos_id: put after each document, and pieces come apart at documents; None: neither.
    """

    def __init__(self, split: TokenSplit, length: int, minimum: int, eos_id: int | None):
        self._tokens, self._eos_id, self._length = split.tokens, eos_id, length
        # Where each document starts in the ring, EOS counted; the array of tokens itself holds no EOS.
        ends = 0 if eos_id is None else np.arange(len(split) + 1)
        self._starts = split.offsets + ends
        self.total = int(self._starts[-1])
        rest = self.total % length
        self.left_out = rest if rest < minimum else 0
        self.count = self.total // length + (rest >= minimum and rest > 0)

    def lengths(self) -> np.ndarray:
        lengths = np.full(self.count, self._length, np.int64)
        if self.count * self._length > self.total:
            lengths[-1] = self.total % self._length
        return lengths

    def parts(self, index: int, offset: int) -> list[np.ndarray]:
        size = min(self._length, self.total - index * self._length)
        start = (offset + index * self._length) % self.total
        end = start + size
        if self._eos_id is None:
            pieces = [self._tokens[start : min(end, self.total)]]
            if end > self.total:
                pieces.append(self._tokens[: end - self.total])
            return [np.concatenate(pieces, dtype=np.int32)]
        parts = self._document_parts(start, min(end, self.total), self._eos_id)
        return parts + self._document_parts(0, end - self.total, self._eos_id) if end > self.total else parts

    def _document_parts(self, start: int, end: int, eos_id: int) -> list[np.ndarray]:
        first, last = np.searchsorted(self._starts, (start, end - 1), side="right") - 1
        parts = []
        for document in range(first, last + 1):
            begin, stop = max(start, self._starts[document]), min(end, self._starts[document + 1])
            part = np.empty(stop - begin, np.int32)
            # Token j of the ring, in document d, is token j - d of the array; the last one of a document is its EOS.
            if stop == self._starts[document + 1]:
                part[-1] = eos_id
                part[:-1] = self._tokens[begin - document : stop - document - 1]
            else:
                part[:] = self._tokens[begin - document : stop - document]
            parts.append(part)
        return parts


class DocumentPieces:
    """Each document by itself, cut every ``length`` tokens; the borders are the same in every epoch.

    Args as of ``JoinedPieces``; of each document a last piece shorter than ``minimum`` is left out.
    """

    def __init__(self, split: TokenSplit, length: int, minimum: int, eos_id: int | None):
        self._split, self._length, self._minimum, self._eos_id = split, length, minimum, eos_id
        self._document_lengths = split.lengths + (eos_id is not None)
        rest = self._document_lengths % length
        too_short = rest < minimum
        self._per_document = self._document_lengths // length + ~too_short * (rest > 0)
        self._firsts = np.concatenate([[0], np.cumsum(self._per_document)])
        self.count = int(self._firsts[-1])
        self.left_out = int(rest[too_short].sum())

    def lengths(self) -> np.ndarray:
        lengths = np.full(self.count, self._length, np.int64)
        has_pieces = self._per_document > 0
        lasts = self._firsts[1:][has_pieces] - 1
        left = self._document_lengths[has_pieces] - (self._per_document[has_pieces] - 1) * self._length
        lengths[lasts] = np.minimum(left, self._length)
        return lengths

    def parts(self, index: int, offset: int) -> list[np.ndarray]:
        document = int(np.searchsorted(self._firsts, index, side="right")) - 1
        start = (index - int(self._firsts[document])) * self._length
        end = min(start + self._length, int(self._document_lengths[document]))
        tokens = self._split.document(document)[start:end].astype(np.int32)
        if self._eos_id is not None and end == self._document_lengths[document]:
            tokens = np.append(tokens, np.int32(self._eos_id))
        return [tokens]
