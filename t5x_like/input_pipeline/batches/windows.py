"""Batches of an endless corpus: windows of it, each a token cache of its own, made ahead and removed behind.

Every promise of ``pipeline`` holds: the batch of a step is a function of (seed, step) alone. How many steps each window
gives is known when it is made, and kept in a small ledger beside the caches, so that a run finds the window of its step
at once; without the ledger the windows are made again from the first. Knows corpora, caches and batches; must not know
how a window is read.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from typing import Any

from t5x_like.core.errors import UserError, require
from t5x_like.core.paths import write_atomically
from t5x_like.input_pipeline.batches.features import Batch
from t5x_like.input_pipeline.batches.order import ORDER_VERSION
from t5x_like.input_pipeline.batches.pipeline import Batches, Seen, process_rows
from t5x_like.input_pipeline.config import Corpus, DataConfig, TokenizerConfig, cache_folder
from t5x_like.input_pipeline.prepare.prepare import cache_path, prepare
from t5x_like.input_pipeline.prepare.progress import Show
from t5x_like.input_pipeline.tokenizers.tokenizer import open_tokenizer


class Windows:
    """The batches of ``pipeline.Batches`` for a corpus with a ``window``: its windows one after the other.

    A window gives as many whole batches as its rows make (of a mixture of objectives, as many as take its text once);
    the rows beyond the last whole batch are left out.

    Args:
      corpus: the corpus; has a ``window``.
      tokenizer: the vocabulary, with its path.
      make: (splits, seed) to the batches of one window.
      data: data config of the run.
      identity: values that decide the number of batches of a window: objective, shape, batch size.
      seed: seed of the run.
      show: function of the progress of preparation; not called for windows prepared ahead.

    Raises:
      UserError: a window of less than a batch.
    """

    def __init__(
        self, corpus: Corpus, tokenizer: TokenizerConfig, make: Callable[[dict, int], Batches], data: DataConfig,
        identity: tuple, seed: int, show: Show | None = None,
    ):  # fmt: skip
        self._corpus, self._tokenizer, self._make, self.data = corpus, tokenizer, make, data
        self._seed, self._show = seed, show
        opened = open_tokenizer(tokenizer)
        what = (cache_path(corpus.window_of(0), opened, data.cache).name, ORDER_VERSION, identity, data.packing)
        key = repr((*what, data.input_length, data.target_length))
        self.fingerprint = hashlib.sha256(key.encode()).hexdigest()
        self._file = cache_folder(data.cache) / "corpora" / f"{corpus.name}-windows-{self.fingerprint[:16]}.json"
        self._ledger: list[dict[str, Any]] = json.loads(self._file.read_text()) if self._file.is_file() else []
        self._opened = functools.lru_cache(maxsize=2)(self._open)
        self.batch_size = self._opened(0).batch_size if not self._ledger else self._ledger[0]["batch_size"]

    @property
    def tokens_left_out(self) -> int:
        """Raw tokens in the windows so far that were too few for an example."""
        return sum(window["left_out"] for window in self._ledger)

    def check(self, steps: int) -> None:
        """Nothing is known of windows to come."""

    def seen(self, step: int) -> dict[str, Seen]:
        """Raw tokens taken by ``step`` batches, and the windows that these are."""
        number, local = self._locate(step - 1) if step else (0, -1)
        name, steps = self._corpus.name, self._steps(number)
        whole = local + 1 == steps  # then the window itself, which may be gone, is not needed
        tokens = sum(window["tokens"] for window in self._ledger[: number + whole])
        if not whole and step:
            tokens += self._opened(number).seen(local + 1)[name].tokens
        return {name: Seen(tokens, number + (local + 1) / steps)}

    def epoch_of(self, step: int) -> float:
        """Windows that are over when ``step`` batches have been taken."""
        return self.seen(step)[self._corpus.name].epochs

    def sources_of(self, step: int) -> list:
        """As ``Batches.sources_of``."""
        number, local = self._locate(step)
        return self._opened(number).sources_of(local)

    def documents_of(self, step: int) -> list[list[tuple[str, int]]]:
        """As ``Batches.documents_of``; the index is that in the step's window, which the name says."""
        number, local = self._locate(step)
        rows = self._opened(number).documents_of(local)
        return [[(f"{name}, window {number}", index) for name, index in row] for row in rows]

    def batch(self, step: int, rows: slice | None = None) -> Batch:
        """As ``Batches.batch``; makes the step's window, and those before it if they are not known."""
        number, local = self._locate(step)
        return self._opened(number).batch(local, rows)

    @property
    def streams(self) -> list:
        """Of the first window."""
        return self._opened(0).streams

    def reader(
        self, start_step: int = 0, process_index: int = 0, process_count: int = 1, stop_step: int | None = None
    ) -> Iterator[tuple[int, Batch]]:
        """As ``Batches.reader``. Makes the next window while one is read, and removes those behind: there are two on
        disk at most."""
        process_rows(self.batch_size, process_index, process_count)
        step = start_step
        while stop_step is None or step < stop_step:
            number, local = self._locate(step)
            batches, steps = self._opened(number), self._steps(number)
            end = steps if stop_step is None else min(steps, local + stop_step - step)
            # Other processes may be as far behind as they read ahead.
            turn = min(local + self.data.prefetch_batches * max(1, self.data.worker_processes) + 1, end - 1)
            ahead = None
            for inner, batch in batches.reader(local, process_index, process_count, end):
                if inner == turn:
                    self._remove({number, number + 1} if end == steps else {number})
                    if end == steps and stop_step != step - local + steps:
                        ahead = threading.Thread(target=self._make_ahead, args=(number + 1,), daemon=True)
                        ahead.start()
                yield step - local + inner, batch
            step += end - local
            if ahead is not None:
                ahead.join()

    def _locate(self, step: int) -> tuple[int, int]:
        """(window, step within it)."""
        require(step >= 0, "step", step, "0 or more")
        number = 0
        while step >= (steps := self._steps(number)):
            number, step = number + 1, step - steps
        return number, step

    def _steps(self, number: int) -> int:
        while len(self._ledger) <= number:
            self._opened(len(self._ledger))
        return self._ledger[number]["steps"]

    def _open(self, number: int) -> Batches:
        if number > len(self._ledger):
            self._steps(number - 1)
        cache = prepare(self._corpus.window_of(number), self._tokenizer, self.data.cache, self._show)
        digest = hashlib.sha256(repr((self._seed, number)).encode()).digest()
        name = self._corpus.name
        batches = self._make({name: cache.split("train")}, int.from_bytes(digest[:6], "big"))
        # One pass: each objective takes its share of the text.
        kinds = batches.rates / [stream.rows.count for stream in batches.streams]
        steps = int(1.0 / kinds.sum() + 1e-9) // batches.batch_size
        got, allowed = f"{self._corpus.window} documents, less than a batch of rows", "a larger window"
        require(steps > 0, "data.corpus.window", got, f"{allowed}, or a smaller train.batch_size")
        found = {
            "steps": steps, "batch_size": batches.batch_size, "tokens": batches.seen(steps)[name].tokens,
            "left_out": batches.tokens_left_out, "fingerprint": cache.fingerprint,
        }  # fmt: skip
        if number == len(self._ledger):
            self._ledger.append(found)
            write_atomically(self._file, json.dumps(self._ledger, indent=1))
        elif self._ledger[number] != found:
            got = f"{self._corpus.source.describe()} gives other documents in window {number} than before"
            raise UserError("data.corpus.source", got, "the same documents in the same order each time")
        return batches

    def _make_ahead(self, number: int) -> None:
        with contextlib.suppress(UserError, OSError):  # said when its turn comes
            prepare(self._corpus.window_of(number), self._tokenizer, self.data.cache)

    def _remove(self, all_but: set[int]) -> None:
        opened = open_tokenizer(self._tokenizer)
        for number in {*range(len(self._ledger) + 1)} - all_but:
            path = cache_path(self._corpus.window_of(number), opened, self.data.cache)
            shutil.rmtree(path, ignore_errors=True)
            path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
