"""Batches: the rows of step n as a pure function of (seed, n), and a Grain reader that makes them ahead of time.

Knows the order of examples, their pieces, packing and features; must not know JAX, devices or what a model does. The
whole position of a reader is one integer, the step; the number of processes never changes a global batch.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.config import DataConfig, Shape
from t5x_like.input_pipeline.example import Example, Objective
from t5x_like.input_pipeline.features import Batch, feature_names, make_batch
from t5x_like.input_pipeline.order import Permutation, checked_seed, epoch_and_position, permutation
from t5x_like.input_pipeline.packing import plan
from t5x_like.input_pipeline.pieces import DocumentPieces, JoinedPieces, Pieces
from t5x_like.input_pipeline.prepare import TokenSplit
from t5x_like.input_pipeline.tokenizers import Tokenizer, check_vocabulary

__all__ = ["Batches", "check_vocabulary", "process_rows"]

# First words of every derived seed, so that no two uses of one seed share random numbers.
_ORDER, _BORDERS, _EXAMPLES, _PLAN, _HELDOUT = range(5)


class Batches:
    """Every global batch of one split, by step.

    A row of a batch is one joined piece, one packed bin of pieces, or one piece, as ``data.packing`` says. Each epoch
    takes every row once, in a new order if ``shuffle``; joined pieces get new borders each epoch. A batch that reaches
    the end of an epoch goes on with the next. Bins are planned once for a seed and not per epoch: what shares a row
    changes nothing in the loss, and so the number of rows per epoch is constant and any step is found at once.

    Args:
      split: the documents.
      tokenizer: the one they were tokenized with.
      objective: what makes pieces into examples.
      data: lengths and packing.
      shape: of the model that is fed.
      batch_size: rows of a global batch.
      seed: of order, borders and corruption; 0 or more.
      shuffle: False: rows in the order of the corpus, without shifted borders.

    Raises:
      UserError: a shape, tokenizer or length that does not suit the objective; too little text for a single row; a
        batch size below 1; a negative seed.
    """

    def __init__(
        self,
        split: TokenSplit,
        tokenizer: Tokenizer,
        objective: Objective,
        data: DataConfig,
        shape: Shape,
        batch_size: int,
        seed: int,
        shuffle: bool = True,
    ):
        if shape not in objective.shapes:
            raise UserError(
                "objective",
                f"{type(objective).__name__} cannot train a model that is {shape}",
                ", ".join(objective.shapes),
            )
        if batch_size < 1:
            raise UserError("train.batch_size", str(batch_size), "1 or more rows")
        objective.check(tokenizer, data, shape)
        self.batch_size, self.shuffle, self.data = batch_size, shuffle, data
        self.shape: Shape = shape
        self.seed = checked_seed(seed)[0]
        self.capacity = objective.capacity(data, shape)
        self._objective, self._tokenizer = objective, tokenizer
        self._pieces = self._cut(split)
        self._bins = self._plan_bins() if data.packing == "pack" else None
        self.examples_per_epoch = self._pieces.count if self._bins is None else len(self._bins)
        """Rows of one epoch, the same for all epochs."""
        self._epoch_order = functools.lru_cache(maxsize=4)(self._make_epoch_order)

    @property
    def tokens_left_out(self) -> int:
        """Raw tokens of the split that an epoch passes over, because too few are left for an example."""
        return self._pieces.left_out

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the arrays of a batch."""
        return feature_names(self.shape, self._objective.has_prefix)

    @property
    def steps_per_epoch(self) -> float:
        """Batches of one epoch; not a whole number where the last batch reaches into the next epoch."""
        return self.examples_per_epoch / self.batch_size

    def epoch_of(self, step: int) -> float:
        """Epochs that are over when ``step`` batches have been taken."""
        return step / self.steps_per_epoch

    def batch(self, step: int, rows: slice | None = None) -> Batch:
        """The global batch of ``step`` (0 or more), or only its ``rows``: exactly those rows of the whole.

        Returns:
          arrays by name, (rows, length), as described in ``features``.
        """
        if step < 0:
            raise UserError("step", str(step), "0 or more")
        wanted = np.arange(*(rows or slice(None)).indices(self.batch_size))
        epochs, positions = epoch_and_position(step * self.batch_size + wanted, self.examples_per_epoch)
        indices = np.empty_like(positions)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            order, _ = self._epoch_order(int(epoch))
            indices[here] = positions[here] if order is None else order(positions[here])
        return self._layout([self._row(int(epoch), int(index)) for epoch, index in zip(epochs, indices, strict=True)])

    def reader(
        self, start_step: int = 0, process_index: int = 0, process_count: int = 1, stop_step: int | None = None
    ) -> Iterator[tuple[int, Batch]]:
        """Reads (step, this process's rows of the global batch), made ahead of time by ``data.read_threads`` threads.

        Args:
          start_step: the first step; this one number is the whole state.
          process_index, process_count: the rows are shared out evenly, in order.
          stop_step: the first step that is not read; None: endless.

        Raises:
          UserError: a batch size that the processes do not divide.
        """
        import grain

        rows = process_rows(self.batch_size, process_index, process_count)
        stop = sys.maxsize if stop_step is None else stop_step
        if start_step < 0 or stop < start_step:
            raise UserError("step", f"reading from {start_step} to {stop}", "0 <= start_step <= stop_step")
        threads = self.data.read_threads
        options = grain.ReadOptions(
            num_threads=threads, prefetch_buffer_size=self.data.prefetch_batches if threads else 0
        )
        source = _StepSource(self, start_step, stop - start_step, rows)
        return iter(grain.MapDataset.source(source).to_iter_dataset(options))

    def heldout_batches(
        self, limit: int | None = None, process_index: int = 0, process_count: int = 1
    ) -> Iterator[Batch]:
        """Every row of this split exactly once, in the order of the corpus, corrupted the same way whatever the seed.

        For exact evaluation: what the last batch lacks is filled with rows of segment 0 and weight 0.

        Args:
          limit: at most this many batches.
          process_index, process_count: as in ``reader``; every process gets the same number of batches.
        """
        mine = process_rows(self.batch_size, process_index, process_count)
        for start in range(0, self.examples_per_epoch, self.batch_size)[:limit]:
            chosen = range(start, start + self.batch_size)[mine]
            yield self._layout(
                [self._row(0, index, heldout=True) if index < self.examples_per_epoch else [] for index in chosen]
            )

    def _cut(self, split: TokenSplit) -> Pieces:
        objective, data = self._objective, self.data
        kind = JoinedPieces if data.packing == "concatenate" else DocumentPieces
        eos_id = None if objective.joins_documents else self._tokenizer.eos_id
        length = objective.piece_length(data, self.shape)
        pieces = kind(split, length, objective.minimum_length, eos_id)
        if pieces.count == 0:
            raise UserError(
                "data.corpus",
                f"the {split.name} split has {len(split.tokens)} tokens in {len(split)} documents: not one example",
                f"{objective.minimum_length} tokens or more",
                "a larger corpus, or another data.corpus.heldout",
            )
        return pieces

    def _plan_bins(self) -> list[np.ndarray]:
        lengths = self._pieces.lengths()
        known, places = np.unique(lengths, return_inverse=True)
        sides = np.asarray([self._objective.lengths(int(length), self.shape) for length in known])[places]
        # Neighbours in a corpus are often alike in length; mixing them first fills the bins of each window better.
        shuffled = permutation(len(lengths), (_PLAN, self.seed))(np.arange(len(lengths)))
        return [np.sort(shuffled[members]) for members in plan(sides[shuffled], self.capacity)]

    def _make_epoch_order(self, epoch: int) -> tuple[Permutation | None, int]:
        """(order of rows, shift of borders) of ``epoch``."""
        if not self.shuffle:
            return None, 0
        order = permutation(self.examples_per_epoch, (_ORDER, self.seed, epoch))
        digest = hashlib.sha256(repr((_BORDERS, self.seed, epoch)).encode()).digest()
        return order, int.from_bytes(digest[:8], "big") % self._objective.piece_length(self.data, self.shape)

    def _row(self, epoch: int, index: int, heldout: bool = False) -> list[Example]:
        """The examples of row ``index`` (its place in the corpus, not in the order) in ``epoch``."""
        offset = 0 if heldout else self._epoch_order(epoch)[1]
        examples = []
        for piece in [index] if self._bins is None else self._bins[index]:
            seed = (_HELDOUT, int(piece)) if heldout else (_EXAMPLES, self.seed, epoch, int(piece))
            rng = np.random.default_rng(seed)
            for part in self._pieces.parts(int(piece), offset):
                examples.append(self._objective.example(part, rng, self._tokenizer))
        return examples

    def _layout(self, rows: list[list[Example]]) -> Batch:
        return make_batch(rows, self.shape, self.capacity, self._tokenizer.pad_id, self._objective.has_prefix)


@dataclass(frozen=True)
class _StepSource:
    """Random access to (step, rows of its batch), as Grain wants it."""

    batches: Batches
    start_step: int
    length: int
    rows: slice

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index) -> tuple[int, Batch]:
        step = self.start_step + int(index)
        return step, self.batches.batch(step, self.rows)


def process_rows(batch_size: int, process_index: int, process_count: int) -> slice:
    """The rows of a global batch that belong to one process. Raises ``UserError`` unless they come out even."""
    if not 0 <= process_index < process_count:
        raise UserError("process_index", str(process_index), f"0 to {process_count - 1}")
    if batch_size % process_count:
        raise UserError(
            "train.batch_size",
            f"{batch_size} rows cannot be shared out among {process_count} processes",
            f"a multiple of {process_count}",
            str(-(-batch_size // process_count) * process_count),
        )
    share = batch_size // process_count
    return slice(process_index * share, (process_index + 1) * share)
