"""Batches: the rows of step n as a pure function of (seed, n), and a reader that makes them ahead of time.

Knows streams, mixtures and features; must not know JAX, devices or what a model does. The whole position of a reader is
one integer, the step; the number of processes or of workers never changes a global batch.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from t5x_like.core.errors import UserError, require
from t5x_like.input_pipeline.batches.features import Batch, feature_names, make_batch
from t5x_like.input_pipeline.batches.mixture import Interleaving, limits, shares
from t5x_like.input_pipeline.batches.order import checked_seed
from t5x_like.input_pipeline.batches.stream import Stream
from t5x_like.input_pipeline.config import DataConfig, Shape, corpora
from t5x_like.input_pipeline.prepare.token_cache import TokenSplit
from t5x_like.input_pipeline.processes import done_ahead
from t5x_like.input_pipeline.tokenizers.base import Tokenizer
from t5x_like.input_pipeline.tokenizers.tokenizer import check_vocabulary
from t5x_like.objectives.base import Objective

__all__ = ["Batches", "Seen", "check_vocabulary", "process_rows"]


class Seen(NamedTuple):
    """Amounts of one corpus taken by a run: raw tokens, added EOS counted, and passes over it."""

    tokens: int
    epochs: float


class Batches:
    """Every global batch of one split of a corpus or mixture, by step.

    A row of a batch is one joined piece, one packed bin of pieces, or one piece, as ``data.packing`` says, of one
    corpus under one objective: a stream. Streams go through their rows in epochs of their own; ``mixture`` says which
    stream a row is drawn from.

    Args:
      splits: documents of each corpus, by name.
      tokenizer: tokenizer of the documents.
      objective: objective that makes examples of pieces; may be a mixture of several.
      data: corpora, lengths and packing.
      shape: shape of the model.
      batch_size: rows of a global batch.
      seed: seed of order, borders, corruption and places in the batch; 0 or more.
      shuffle: whether rows are in a random order with shifted borders; else in the order of the corpus.

    Attributes:
      streams: of each corpus in turn, one for each objective.
      rates: (objectives,) the share of a corpus's rows that each objective has.

    Raises:
      UserError: a shape, tokenizer or length that does not suit the objective; too little text for a single row; a
        batch size below 1; a negative seed.
    """

    def __init__(
        self, splits: Mapping[str, TokenSplit], tokenizer: Tokenizer, objective: Objective, data: DataConfig,
        shape: Shape, batch_size: int, seed: int, shuffle: bool = True,
    ):  # fmt: skip
        if shape not in objective.shapes:
            got = f"{type(objective).__name__} cannot train a model that is {shape}"
            raise UserError("objective", got, ", ".join(objective.shapes))
        require(batch_size >= 1, "train.batch_size", batch_size, "1 or more rows")
        objective.check(tokenizer, data, shape)
        self._made_of = splits, tokenizer, objective, data, shape, batch_size, seed, shuffle
        self.batch_size, self.data = batch_size, data
        self.shape: Shape = shape
        self.seed = checked_seed(seed)[0]
        self.capacity = objective.capacity(data, shape)
        self._objective, self._tokenizer = objective, tokenizer
        kinds = [(rate, kind) for rate, kind in objective.streams() if rate > 0]
        names = [corpus.name for corpus in corpora(data.corpus) if corpus.name in splits]
        self.streams: list[Stream] = []
        for name in names:
            for _, kind in kinds:
                seeds = (self.seed, len(self.streams))
                stream = Stream(name, splits[name], tokenizer, kind, data, shape, self.capacity, seeds, shuffle)
                self.streams.append(stream)
        self.rates = np.asarray([rate for rate, _ in kinds]) / sum(rate for rate, _ in kinds)
        self._skipped = data.skipped()
        self._tokens_before_skipped = functools.lru_cache(self._tokens_before)

    def __reduce__(self):  # worker processes make their own from the same parts
        return type(self), self._made_of

    @functools.cached_property
    def _interleaving(self) -> Interleaving:
        corpus, (splits, *_) = self.data.corpus, self._made_of
        at, constant = shares(corpus, {name: len(split.tokens) for name, split in splits.items()})
        most: list[int | None] = []
        for first, (epochs, tokens) in zip(range(0, len(self.streams), len(self.rates)), limits(corpus), strict=True):
            most += self._most(self.streams[first : first + len(self.rates)], epochs, tokens)
        rates, names = lambda steps: np.kron(at(steps), self.rates), [stream.name for stream in self.streams]
        return Interleaving(rates, constant, most, names, self.batch_size, self.seed)

    def _most(self, streams: list[Stream], epochs: float, tokens: int) -> list[int | None]:
        """Rows that each stream of one corpus gives at most: its passes are shared out among its objectives in
        proportion to the text that each takes."""
        if not epochs and not tokens:
            return [None] * len(streams)
        weights = self.rates * [stream.rows.tokens / stream.rows.count for stream in streams]
        weights = weights / weights.sum()
        most = np.full(len(streams), np.iinfo(np.int64).max)
        if epochs:  # rounded so that the rows of all together are right
            rows = np.cumsum(epochs * weights * [stream.rows.count for stream in streams])
            most = np.diff(np.round(np.minimum(rows, 2.0**62)), prepend=0.0).astype(np.int64)
        if tokens:
            most = np.minimum(most, [s.draws_within(int(tokens * w)) for s, w in zip(streams, weights, strict=True)])
        if not most.sum():
            limit = f"{epochs or tokens} {'epochs' if epochs else 'tokens'}"
            got = f"{streams[0].name!r}: {limit} are less than one row"
            raise UserError("data.corpus.parts", got, "a larger limit, or rate=0 to leave it out")
        return [int(each) for each in most]

    @property
    def examples_per_epoch(self) -> int:
        """Rows of one epoch of every stream together, the same for all epochs."""
        return sum(stream.rows.count for stream in self.streams)

    @property
    def tokens_left_out(self) -> int:
        """Raw tokens of all corpora that an epoch passes over, because too few of a document are left for an example;
        by the objective that leaves out most."""
        found: dict[str, int] = {}
        for stream in self.streams:
            found[stream.name] = max(found.get(stream.name, 0), stream.rows.left_out)
        return sum(found.values())

    def check(self, steps: int) -> None:
        """Raises ``UserError`` if the text is used up, by its limits, before ``steps`` steps."""
        if steps:
            self._interleaving.drawn(self._data_step(steps - 1) + 1)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the arrays of a batch."""
        return feature_names(self.shape, self._objective.extras(self.shape))

    def seen(self, step: int) -> dict[str, Seen]:
        """What ``step`` batches have taken of each corpus, by name; exact, skipped batches not counted.

        Raises:
          UserError: every corpus has a limit and all are used up before that.
        """
        found: dict[str, Seen] = {}
        for stream, taken in zip(self.streams, self._tokens_seen(step).tolist(), strict=True):
            before = found.get(stream.name, Seen(0, 0.0))
            found[stream.name] = Seen(before.tokens + taken, before.epochs + taken / stream.rows.tokens)
        return found

    def _tokens_seen(self, step: int) -> np.ndarray:
        end = self._data_step(step - 1) + 1 if step else 0
        tokens = self._tokens_before(end)
        for first, after in self._skipped:
            if after < end:
                tokens = tokens - (self._tokens_before_skipped(after) - self._tokens_before_skipped(first))
        return tokens

    def _tokens_before(self, data_step: int) -> np.ndarray:
        """(streams,) raw tokens of all batches before the ``data_step``-th, skipped ones counted."""
        drawn = self._interleaving.drawn(data_step).tolist()
        return np.asarray([stream.tokens_drawn(draws) for stream, draws in zip(self.streams, drawn, strict=True)])

    def epoch_of(self, step: int) -> float:
        """Epochs that are over when ``step`` batches have been taken: of a mixture, of all of its text together."""
        whole = sum(stream.rows.tokens for stream in self.streams) / len(self.rates)
        return float(self._tokens_seen(step).sum() / whole)

    def sources_of(self, step: int) -> list[tuple[str, Objective]]:
        """(corpus, objective) of each row of the batch of ``step``."""
        streams, _ = self._interleaving.rows(self._data_step(step))
        return [(self.streams[stream].name, self.streams[stream].objective) for stream in streams]

    def documents_of(self, step: int) -> list[list[tuple[str, int]]]:
        """(corpus, index in its training split) of the documents that each row of the batch of ``step`` has text of."""
        sources, draws = self._interleaving.rows(self._data_step(step))
        found = []
        for source, draw in zip(sources.tolist(), draws, strict=True):
            stream = self.streams[source]
            found.append([(stream.name, each) for each in next(stream.documents(np.asarray([draw])))])
        return found

    def batch(self, step: int, rows: slice | None = None) -> Batch:
        """The global batch of ``step`` (0 or more), or only its ``rows``: exactly those rows of the whole.

        Returns:
          arrays by name, (rows, length), as described in ``features``.

        Raises:
          UserError: a negative step, or one after every corpus is used up.
        """
        require(step >= 0, "step", step, "0 or more")
        sources, draws = self._interleaving.rows(self._data_step(step))
        wanted = slice(None) if rows is None else rows
        sources, draws = sources[wanted], draws[wanted]
        made: list[list] = [[]] * len(sources)
        for source in np.unique(sources).tolist():
            here = np.flatnonzero(sources == source)
            for place, examples in zip(here.tolist(), self.streams[source].examples(draws[here]), strict=True):
                made[place] = examples
        return self._layout(made)

    def reader(
        self, start_step: int = 0, process_index: int = 0, process_count: int = 1, stop_step: int | None = None
    ) -> Iterator[tuple[int, Batch]]:
        """Reads (step, this process's rows of the global batch), made ahead of time by threads or worker processes.

        Args:
          start_step: first step; this one number is the whole state.
          process_index, process_count: index and number of processes, which share the rows evenly and in order.
          stop_step: first step that is not read; None: endless.

        Raises:
          UserError: a batch size that the processes do not divide.
        """
        rows = process_rows(self.batch_size, process_index, process_count)
        stop = sys.maxsize if stop_step is None else stop_step
        if not 0 <= start_step <= stop:
            raise UserError("step", f"reading from {start_step} to {stop}", "0 <= start_step <= stop_step")
        make = functools.partial(_step_and_batch, self, rows)
        threads, processes = self.data.read_threads, self.data.worker_processes
        return done_ahead(make, range(start_step, stop), threads, processes, self.data.prefetch_batches)

    def heldout_batches(
        self, limit: int | None = None, process_index: int = 0, process_count: int = 1
    ) -> Iterator[Batch]:
        """Every row of this split exactly once, corrupted the same way whatever the seed: for exact evaluation.

        In the order of the corpus; of a mixture the streams in turn, each spread over the whole. What the last batch
        lacks is filled with rows of segment 0 and weight 0.

        Args:
          limit: largest number of batches; None: all.
          process_index, process_count: as for ``reader``; every process gets the same number of batches.
        """
        mine = process_rows(self.batch_size, process_index, process_count)
        counts = [stream.rows.count for stream in self.streams]
        source = np.repeat(np.arange(len(counts)), counts)
        row = np.concatenate([np.arange(count) for count in counts])
        order = np.argsort((row + 0.5) / np.asarray(counts)[source], kind="stable")
        for start in range(0, len(order), self.batch_size)[:limit]:
            chosen = order[start : start + self.batch_size][mine]
            made = [self.streams[source[i]].heldout_examples(int(row[i])) for i in chosen]
            yield self._layout([*made, *[[]] * (mine.stop - mine.start - len(made))])

    def _data_step(self, step: int) -> int:
        """The number of the batch that is trained on at ``step``, skipped ones counted."""
        for first, end in self._skipped:
            if step < first:
                break
            step += end - first
        return step

    def _layout(self, rows: list[list]) -> Batch:
        extras = self._objective.extras(self.shape)
        return make_batch(rows, self.shape, self.capacity, self._tokenizer.pad_id, extras)


def _step_and_batch(batches: Batches, rows: slice, step: int) -> tuple[int, Batch]:
    return step, batches.batch(step, rows)


def process_rows(batch_size: int, process_index: int, process_count: int) -> slice:
    """The rows of a global batch that belong to one process. Raises ``UserError`` unless they come out even."""
    require(0 <= process_index < process_count, "process_index", process_index, f"0 to {process_count - 1}")
    share, left = divmod(batch_size, process_count)
    if left:
        got = f"{batch_size} rows cannot be shared out among {process_count} processes"
        raise UserError("train.batch_size", got, f"a multiple of {process_count}", str((share + 1) * process_count))
    return slice(process_index * share, (process_index + 1) * share)
