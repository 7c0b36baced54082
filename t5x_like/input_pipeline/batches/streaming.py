"""Batches of a source that is read as it comes, without a token cache: the fallback for what cannot be prepared.

Documents are shuffled in a window and packed by Grain. What a batch holds depends on the number of processes, and
going on from a step means reading again up to it: ``pipeline`` has neither weakness. Knows sources, tokenizers,
objectives and features; must not know JAX.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.batches.features import Batch, feature_names, make_batch
from t5x_like.input_pipeline.batches.order import ExampleRandom, checked_seed
from t5x_like.input_pipeline.batches.pipeline import Seen, process_rows
from t5x_like.input_pipeline.config import Bytes, Corpus, DataConfig, Shape
from t5x_like.input_pipeline.sources.source import read_documents
from t5x_like.input_pipeline.sources.splits import hashed_share
from t5x_like.input_pipeline.tokenizers.tokenizer import Tokenizer
from t5x_like.objectives.base import Example, Objective

_EXAMPLES, _HELDOUT = 10, 11  # first words of derived seeds; those of ``stream`` are below 10
_SHUFFLE_WINDOW = 1024  # documents
_OPEN_ROWS = 64  # that Grain's first fit keeps open


class StreamingBatches:
    """Batches of one corpus in the order of its source; the interface is that of ``pipeline.Batches``.

    Args as of ``pipeline.Batches``, with the corpus instead of its split.

    Raises:
      UserError: a mixture of objectives, or one that does not suit shape, tokenizer or lengths.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Tokenizer,
        objective: Objective,
        data: DataConfig,
        shape: Shape,
        batch_size: int,
        seed: int,
    ):
        if len(objective.streams()) > 1:
            raise UserError("data.streaming", f"with {type(objective).__name__}", "an objective that is not a mixture")
        objective.check(tokenizer, data, shape)
        if data.packing == "concatenate" and objective.added_tokens and not objective.joins_documents:
            raise UserError(
                "data.packing",
                f"concatenate with data.streaming and {type(objective).__name__}, which adds tokens to each document",
                "first_fit or none",
            )
        self.batch_size, self.data = batch_size, data
        self.shape: Shape = shape
        self.capacity = objective.capacity(data, shape)
        self._corpus, self._tokenizer, self._objective = corpus, tokenizer, objective
        self._seed = checked_seed(seed)[0]
        self._tokens = 0  # in the rows given out
        self._pass_tokens = 0  # of one pass over this process's documents; 0 until that is known

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the arrays of a batch."""
        return feature_names(self.shape, self._objective.extras(self.shape))

    def seen(self, step: int) -> dict[str, Seen]:
        """Tokens in the rows that this process has given out so far, whatever ``step`` is, and the passes over its
        documents that these are; 0 before the end of the first."""
        return {self._corpus.name: Seen(self._tokens, self.epoch_of(step))}

    def epoch_of(self, step: int) -> float:
        """Passes over this process's documents so far, whatever ``step`` is; 0 before the end of the first."""
        return self._tokens / self._pass_tokens if self._pass_tokens else 0.0

    @property
    def tokens_left_out(self) -> int:
        """Not known of a stream."""
        return 0

    def check(self, steps: int) -> None:
        """Nothing can be said of steps to come."""

    def reader(
        self, start_step: int = 0, process_index: int = 0, process_count: int = 1, stop_step: int | None = None
    ) -> Iterator[tuple[int, Batch]]:
        """Reads (step, this process's rows of the global batch); reads again what comes before ``start_step``.

        Each process takes every ``process_count``-th document. Args as of ``pipeline.Batches.reader``.
        """
        rows = process_rows(self.batch_size, process_index, process_count)
        if start_step < 0 or (stop_step is not None and stop_step < start_step):
            raise UserError("step", f"reading from {start_step} to {stop_step}", "0 <= start_step <= stop_step")
        return self._read(start_step, process_index, process_count, stop_step, rows.stop - rows.start)

    def _read(
        self, start_step: int, process_index: int, process_count: int, stop_step: int | None, local: int
    ) -> Iterator[tuple[int, Batch]]:
        random = ExampleRandom(_EXAMPLES, self._seed, process_index, process_count)
        self._tokens = self._pass_tokens = 0
        made = self._rows(lambda: self._documents(process_index, process_count, repeat=True), random)
        steps = range(start_step, sys.maxsize if stop_step is None else stop_step)
        # What is passed over is never laid out; the examples themselves cannot be, as packing goes by their lengths.
        made = itertools.islice(made, start_step * local, None)
        for step in steps:
            yield step, self._layout(list(itertools.islice(made, local)))

    def heldout_batches(
        self, limit: int | None = None, process_index: int = 0, process_count: int = 1
    ) -> Iterator[Batch]:
        """The held-out documents in order of the source, packed; every process gets the same number of batches.

        Args as of ``pipeline.Batches.heldout_batches``.
        """
        mine = process_rows(self.batch_size, process_index, process_count)
        made = self._rows(lambda: self._documents(0, 1, repeat=False, heldout=True), ExampleRandom(_HELDOUT, 0), False)
        for _ in itertools.count() if limit is None else range(limit):
            rows = list(itertools.islice(made, self.batch_size))
            if not rows:
                return
            yield self._layout((rows + [[]] * (self.batch_size - len(rows)))[mine])

    def _documents(self, index: int, count: int, repeat: bool, heldout: bool = False) -> Iterator[np.ndarray]:
        """Ids of the training or held-out documents of one process's share, again and again if ``repeat``."""
        corpus, eos_id = self._corpus, self._tokenizer.eos_id
        least = 1 if self.data.packing == "concatenate" else self._objective.minimum_length
        while True:
            found = tokens = 0
            for text in read_documents(corpus.source, corpus.bad_documents):
                if corpus.filters.drops(text):
                    continue
                if (hashed_share(text) < corpus.heldout) == heldout:
                    if found % count == index:
                        ids = np.asarray(self._tokenizer.encode_batch([text])[0], np.int32)
                        ids = ids if self._objective.joins_documents else np.append(ids, np.int32(eos_id))
                        tokens += len(ids) * (len(ids) >= least)
                        yield ids
                    found += 1
            if not repeat:
                return
            if not tokens:
                raise UserError(
                    "data.streaming",
                    f"{found} documents to train on, none for process {index} that is long enough for an example",
                    f"{count} documents or more, one for each process, of {least} tokens or more",
                )
            self._pass_tokens = tokens

    def _rows(
        self, documents: Callable[[], Iterator[np.ndarray]], random: ExampleRandom, shuffle: bool = True
    ) -> Iterator[list[Example]]:
        """Rows of examples, joined or packed as ``data.packing`` says."""
        import grain

        data, objective = self.data, self._objective
        length = objective.piece_length(data, self.shape)
        texts: Any = _iter_dataset(documents)
        if shuffle:
            texts = grain.experimental.WindowShuffleIterDataset(texts, window_size=_SHUFFLE_WINDOW, seed=self._seed)
        numbers = itertools.count()

        def example(tokens: np.ndarray) -> Example:
            self._tokens += len(tokens) * shuffle  # not those held out
            return objective.example(tokens, random.at(0, next(numbers)), self._tokenizer)

        if data.packing == "concatenate":
            joined = texts.map(lambda ids: {"tokens": ids})
            for row in grain.experimental.ConcatThenSplitIterDataset(joined, length_struct={"tokens": length}):
                whole = row["tokens"][row["tokens_segment_ids"] > 0]
                made = [whole] if objective.joins_documents else _apart(row, "tokens")
                yield [example(text) for text in made if len(text) >= objective.minimum_length]
            return
        pieces = _iter_dataset(
            lambda: (
                piece
                for ids in texts
                for piece in np.split(ids, range(length, len(ids), length))
                if len(piece) >= objective.minimum_length
            )
        )
        if data.packing == "none":
            for piece in pieces:
                yield [example(piece)]
            return
        yield from self._first_fit(pieces, example)

    def _first_fit(self, pieces: Any, example: Callable[[np.ndarray], Example]) -> Iterator[list[Example]]:
        """Grain's first fit over the raw pieces, whose sizes on each side it is given as arrays of that length."""
        import grain

        sides = {f"side{i}": room for i, room in enumerate(self.capacity)}
        longest = self._objective.piece_length(self.data, self.shape)
        # What a piece takes on a side may exceed its tokens, so each side is an array of its own; the tokens themselves
        # are packed with room for as many as any row can hold.
        packed = grain.experimental.FirstFitPackIterDataset(
            pieces.map(
                lambda ids: {"tokens": ids}
                | {
                    name: np.zeros(size, np.int32)
                    for name, size in zip(sides, self._objective.lengths(len(ids), self.shape), strict=True)
                }
            ),
            length_struct={"tokens": max(longest, sum(self.capacity)), **sides},
            num_packing_bins=_OPEN_ROWS,
            shuffle_bins=False,
        )
        for row in packed:
            yield [example(text) for text in _apart(row, "tokens")]

    def _layout(self, rows: list[list[Example]]) -> Batch:
        extras = self._objective.extras(self.shape)
        return make_batch(rows, self.shape, self.capacity, self._tokenizer.pad_id, extras)


def require_streamable(corpus: Corpus) -> None:
    """Raises ``UserError`` for what takes a pass over all text: a vocabulary to be trained, copies to be found."""
    if corpus.deduplicate:
        raise UserError("data.corpus.deduplicate", "true, with data.streaming", "false, or a prepared corpus")
    if not isinstance(corpus.tokenizer, Bytes) and not corpus.tokenizer.path:
        raise UserError(
            "data.corpus.tokenizer.path",
            "empty, with data.streaming",
            "a tokenizer's file",
            "t5x-like tokenizer train on a part of the text",
        )


def _apart(row: dict[str, np.ndarray], name: str) -> Iterator[np.ndarray]:
    """The examples that Grain packed into one row."""
    segments = row[f"{name}_segment_ids"]
    for segment in range(1, int(segments.max(initial=0)) + 1):
        yield row[name][segments == segment]


def _iter_dataset(items: Callable[[], Iterator[Any]]) -> Any:
    """A Grain dataset of what ``items()`` iterates over; it has no state, as nothing is restored but by reading."""
    import grain

    class Items(grain.DatasetIterator):
        def __init__(self):
            super().__init__()
            self._items = items()

        def __next__(self):
            return next(self._items)

        def get_state(self):
            return {}

        def set_state(self, state):
            raise NotImplementedError("a stream is restored by reading again")

    class Source(grain.IterDataset):
        def __iter__(self):
            return Items()

    return Source()
