"""The endless rows of one corpus under one objective: row n of the run, at once, for any n.

Knows splits, rows, their order by epoch, and random numbers; must not know batches, mixtures or processes.
"""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Callable, Iterator

import numpy as np

from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.batches.order import ExampleRandom, epoch_and_position, permutation
from t5x_like.input_pipeline.batches.row_table import RowPacking
from t5x_like.input_pipeline.batches.rows import DocumentRows, JoinedRows, Rows
from t5x_like.input_pipeline.config import DataConfig, Shape
from t5x_like.input_pipeline.prepare.token_cache import TokenSplit
from t5x_like.input_pipeline.tokenizers.base import Tokenizer
from t5x_like.objectives.base import Example, Objective

# First words of every derived seed, so that no two uses of one seed share random numbers.
_ORDER, _BORDERS, _EXAMPLES, _HELDOUT = range(4)
# Rows whose tokens are counted at a time.
_COUNTED_TOGETHER = 2**20


class Stream:
    """Each epoch takes every row once, in a new order if ``shuffle``; joined rows get new borders each epoch.

    Args:
      name: name of the corpus.
      split: its documents.
      tokenizer: tokenizer of the documents.
      objective: objective that makes examples of pieces.
      data: lengths and packing.
      shape: shape of the model.
      capacity: tokens of a row on each side.
      seed: (seed of the run, number of this stream): seed of order, borders and corruption.
      shuffle: whether rows are in a random order with shifted borders; else in the order of the corpus.

    Raises:
      UserError: too little text for a single row.
    """

    def __init__(
        self, name: str, split: TokenSplit, tokenizer: Tokenizer, objective: Objective, data: DataConfig, shape: Shape,
        capacity: tuple[int, ...], seed: tuple[int, int], shuffle: bool,
    ):  # fmt: skip
        self.name, self.objective = name, objective
        self._tokenizer, self._seed, self._shuffle = tokenizer, seed, shuffle
        self._length = objective.piece_length(data, shape)
        self.rows = self._cut(split, data, shape, capacity)
        if self.rows.count == 0:
            got = f"the {split.name} split of {name!r} has {len(split.tokens)} tokens in {len(split)} documents"
            allowed, suggestion = f"{objective.minimum_length} tokens or more", "or another data.corpus.heldout"
            raise UserError("data.corpus", f"{got}: not one example", allowed, f"a larger corpus, {suggestion}")
        self._random, self._heldout = ExampleRandom(_EXAMPLES, *seed), ExampleRandom(_HELDOUT, seed[1])
        self._epoch_order = functools.lru_cache(maxsize=4)(self._make_epoch_order)
        self._counted = (0, 0)  # (draws, tokens in them) of the last count
        self._lock = threading.Lock()

    def examples(self, draws: np.ndarray) -> Iterator[list[Example]]:
        """Yields the examples of the ``draw``-th row (from 0) for each of ``draws``."""
        for row, shift, epoch in self._places(draws):
            yield list(self._examples(row, shift, self._random, epoch))

    def documents(self, draws: np.ndarray) -> Iterator[list[int]]:
        """Yields the indices in the split of the documents that each of these rows has text of."""
        return (self.rows.documents(row, shift) for row, shift, _ in self._places(draws))

    def _places(self, draws: np.ndarray) -> Iterator[tuple[int, int, int]]:
        """(row, shift of borders, epoch) of each of ``draws``."""
        epochs, positions = epoch_and_position(draws, self.rows.count)
        rows, shifts = positions.copy(), np.zeros(len(draws), np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            order, shifts[here] = self._epoch_order(int(epoch))
            rows[here] = order(positions[here])
        return zip(rows.tolist(), shifts.tolist(), epochs.tolist(), strict=True)

    def heldout_examples(self, row: int) -> list[Example]:
        """The examples of row ``row`` in the order of the corpus, corrupted the same way whatever the seed."""
        return list(self._examples(row, 0, self._heldout, 0))

    def tokens_drawn(self, draws: int) -> int:
        """Raw tokens, added EOS counted, in the first ``draws`` rows; exact.

        Counting resumes from the last count where possible: at most one epoch of row lengths is added up.
        """
        with self._lock:
            start, tokens = self._counted
            epoch = draws // self.rows.count
            first = epoch * self.rows.count
            if not first <= start <= draws:
                start, tokens = first, epoch * self.rows.tokens
            tokens += sum(int(lengths.sum()) for lengths in self._lengths(epoch, start - first, draws - first))
            self._counted = draws, tokens
            return tokens

    def draws_within(self, tokens: int) -> int:
        """The largest number of rows that can be drawn within ``tokens`` raw tokens."""
        epoch, left = divmod(tokens, self.rows.tokens)
        draws = epoch * self.rows.count
        for lengths in self._lengths(epoch, 0, self.rows.count):
            taken = np.cumsum(lengths)
            if taken[-1] > left:
                return draws + int(np.searchsorted(taken, left, side="right"))
            draws, left = draws + len(lengths), left - int(taken[-1])
        return draws

    def _lengths(self, epoch: int, start: int, stop: int) -> Iterator[np.ndarray]:
        """Raw tokens of the rows from place ``start`` to ``stop`` of an epoch, in chunks."""
        order, shift = self._epoch_order(epoch)
        for first in range(start, stop, _COUNTED_TOGETHER):
            yield self.rows.lengths(order(np.arange(first, min(first + _COUNTED_TOGETHER, stop))), shift)

    def _cut(self, split: TokenSplit, data: DataConfig, shape: Shape, capacity: tuple[int, ...]) -> Rows:
        objective = self.objective
        eos_id = None if objective.joins_documents else self._tokenizer.eos_id
        if data.packing == "concatenate":
            reserved = 0 if eos_id is None else objective.added_tokens
            return JoinedRows(split, self._length, objective.minimum_length, eos_id, reserved)
        packing = None
        if data.packing != "none":
            packing = RowPacking(data.packing, lambda length: objective.lengths(length, shape), capacity)
        return DocumentRows(split, self._length, objective.minimum_length, eos_id, packing)

    def _make_epoch_order(self, epoch: int) -> tuple[Callable[[np.ndarray], np.ndarray], int]:
        """(order of rows, shift of borders) of ``epoch``."""
        if not self._shuffle:
            return np.asarray, 0
        order = permutation(self.rows.count, (_ORDER, *self._seed, epoch))
        digest = hashlib.sha256(repr((_BORDERS, *self._seed, epoch)).encode()).digest()
        return order, int.from_bytes(digest[:8], "big") % self._length

    def _examples(self, row: int, shift: int, random: ExampleRandom, epoch: int) -> Iterator[Example]:
        example, tokenizer = self.objective.example, self._tokenizer
        for piece in self.rows.pieces(row, shift):
            generator = random.at(epoch, piece.number, piece.part)
            for text in piece.texts:
                yield example(text, generator, tokenizer)
