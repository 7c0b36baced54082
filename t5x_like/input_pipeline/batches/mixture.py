"""Which source each row of a batch is drawn from: rates to an exact plan, any step at once.

Steps fall into blocks. In a block each source gets a whole number of rows, by systematic sampling of the rates: the
numbers of rows so far stay within a few of what the rates say, and are counted, not drawn. Inside a block rows are
spread evenly, with a jitter. Knows names, rates and counts only; no text.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.batches.order import ExampleRandom
from t5x_like.input_pipeline.config import Corpus, Mixture, Part, Proportional, RateSchedule, corpora

# Rows of a block where rates do not change: enough to spread small rates, few enough to lay out in a millisecond.
_ROWS_PER_BLOCK = 8192
_BLOCKS_PER_CHUNK = 4096
_GOLDEN_RATIO = 0.6180339887498949  # its multiples, modulo 1, are spread as evenly as can be
_NO_LIMIT = np.iinfo(np.int64).max

Rates = Callable[[np.ndarray], np.ndarray]


def shares(corpus: Corpus | Mixture, tokens: Mapping[str, int]) -> tuple[Rates, bool]:
    """What share of the rows each corpus gives, as a function of the step.

    Args:
      corpus: nested as it may be; in each mixture the parts' rates are brought to a sum of 1.
      tokens: number of training tokens of each corpus by name, for ``Proportional``.

    Returns:
      a function from (n,) steps to (n, corpora) shares, in the order of ``config.corpora``; and whether it is constant.
      Where all rates of a mixture are 0, so are its shares.
    """
    if isinstance(corpus, Corpus):
        return lambda steps: np.ones((len(steps), 1)), True
    parts = corpus.active
    inner = [shares(part.corpus, tokens) for part in parts]
    constant = all(c for _, c in inner) and not any(isinstance(part.rate, RateSchedule) for part in parts)

    def at(steps: np.ndarray) -> np.ndarray:
        rates = np.stack([_rate(part, steps, tokens) for part in parts], axis=1)
        rates = rates / np.maximum(rates.sum(axis=1, keepdims=True), np.finfo(float).tiny)
        return np.concatenate([rates[:, i : i + 1] * inside(steps) for i, (inside, _) in enumerate(inner)], axis=1)

    return at, constant


def limits(corpus: Corpus | Mixture) -> list[tuple[float, int]]:
    """(epochs, tokens) that each corpus is used for at most, 0 for no limit; in the order of ``config.corpora``."""
    if isinstance(corpus, Corpus):
        return [(0.0, 0)]
    found: list[tuple[float, int]] = []
    for part in corpus.active:
        found += [(part.epochs, part.tokens)] if isinstance(part.corpus, Corpus) else limits(part.corpus)
    return found


def _rate(part: Part, steps: np.ndarray, tokens: Mapping[str, int]) -> np.ndarray:
    match part.rate:
        case RateSchedule(known, rates):
            return np.interp(steps, known, rates)
        case Proportional(maximum, temperature):
            size = float(sum(tokens[corpus.name] for corpus in corpora(part.corpus)))
            return np.full(len(steps), min(size, maximum or size) ** (1.0 / temperature))
        case rate:
            return np.full(len(steps), float(rate))


class Interleaving:
    """The source, and the number of the draw from it, of every row of every batch.

    Args:
      rates: function from (n,) steps to (n, sources) shares that add up to 1.
      constant: whether shares are the same at every step.
      most: largest number of draws of each source; None: no limit. The share of a used-up source goes to the others.
      names: names of the sources, for errors.
      batch_size: rows per step.
      seed: seed of the places of a block's rows.
    """

    def __init__(
        self, rates: Rates, constant: bool, most: Sequence[int | None], names: Sequence[str], batch_size: int, seed: int
    ):
        self._rates, self._names, self._batch_size = rates, names, batch_size
        self._most = np.asarray([_NO_LIMIT if limit is None else limit for limit in most], np.int64)
        # Rows are spread over a block, so blocks are short where a source may come to its end, or rates change.
        unlimited = all(limit is None for limit in most)
        self._block_steps = max(1, _ROWS_PER_BLOCK // batch_size) if constant and unlimited else 1
        self._block_rows = self._block_steps * batch_size
        self._is_trivial = len(names) == 1 and constant and unlimited
        self._random = ExampleRandom(seed, len(names))
        self._totals = [np.zeros(len(names), np.int64)]  # draws before each known chunk of blocks
        self._lock = threading.Lock()
        self._chunk = functools.lru_cache(maxsize=8)(self._plan_chunk)
        self._block = functools.lru_cache(maxsize=8)(self._lay_out)

    def rows(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(source of each row, how many draws from that source came before it), both (batch_size,) int64.

        Raises:
          UserError: every source is used up before this step.
        """
        if self._is_trivial:
            draws = step * self._batch_size + np.arange(self._batch_size)
            return np.zeros(self._batch_size, np.int64), draws
        block, inside = divmod(step, self._block_steps)
        sources, draws = self._block(block)
        here = slice(inside * self._batch_size, (inside + 1) * self._batch_size)
        if len(sources) < here.stop:
            raise self._used_up(step)
        return sources[here], draws[here]

    def drawn(self, step: int) -> np.ndarray:
        """(sources,) int64: draws from each source in all steps before ``step``. Raises ``UserError`` as ``rows``."""
        if self._is_trivial:
            return np.asarray([step * self._batch_size])
        block, inside = divmod(step, self._block_steps)
        before = self._before(block)
        if inside:
            sources, _ = self._block(block)
            before = before + np.bincount(sources[: inside * self._batch_size], minlength=len(self._names))
        if before.sum() < step * self._batch_size:
            raise self._used_up(step)
        return before

    def _used_up(self, step: int) -> UserError:
        names = ", ".join(dict.fromkeys(self._names))
        got = f"{names}: used up, or at a rate of 0, before the end of step {step:,}"
        allowed = "a part without epochs and tokens and with a rate above 0, or fewer train.steps"
        return UserError("data.corpus.parts", got, allowed)

    def _before(self, block: int) -> np.ndarray:
        chunk, inside = divmod(block, _BLOCKS_PER_CHUNK)
        if inside:
            return self._chunk(chunk)[inside - 1]
        with self._lock:
            return self._total_before(chunk)

    def _lay_out(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        before = self._before(block)
        counts = self._before(block + 1) - before
        sources = np.repeat(np.arange(len(counts)), counts)
        turns = np.arange(len(sources)) - np.repeat(np.cumsum(counts) - counts, counts)
        # Turn j of a source that has q rows in the block lies somewhere in the j-th of q equal stretches of it.
        jitter = self._random.at(0, block).random(len(sources))
        order = np.argsort((turns + jitter) / counts[sources], kind="stable")
        return sources[order], (before[sources] + turns)[order]

    def _plan_chunk(self, chunk: int) -> np.ndarray:
        with self._lock:
            return self._count_blocks(chunk, self._total_before(chunk))

    def _total_before(self, chunk: int) -> np.ndarray:
        while len(self._totals) <= chunk:
            self._totals.append(self._count_blocks(len(self._totals) - 1, self._totals[-1])[-1])
        return self._totals[chunk]

    def _count_blocks(self, chunk: int, before: np.ndarray) -> np.ndarray:
        """(blocks, sources): draws up to the end of each block of ``chunk``; constant once all sources are used up."""
        blocks = chunk * _BLOCKS_PER_CHUNK + np.arange(_BLOCKS_PER_CHUNK)
        rates = self._rates(blocks * self._block_steps)
        dither = blocks * _GOLDEN_RATIO % 1.0
        counted, done = np.empty((len(blocks), len(self._names)), np.int64), 0
        while done < len(blocks):
            left = np.where(before < self._most, rates[done:], 0.0)
            drawn = before + np.cumsum(_systematic(left, self._block_rows, dither[done:]), axis=0)
            over = (drawn > self._most).any(axis=1) | (left.sum(axis=1) <= 0)
            good = int(np.argmax(over)) if over.any() else len(over)
            counted[done : done + good] = drawn[:good]
            before = drawn[good - 1] if good else before
            done += good
            if done < len(blocks):  # the block in which a source is used up: the others take what is left
                before = counted[done] = self._clip(before, rates[done], dither[done : done + 1])
                done += 1
                if not ((before < self._most) & (rates[done:] > 0)).any():
                    counted[done:] = before
                    break
        return counted

    def _clip(self, before: np.ndarray, rates: np.ndarray, dither: np.ndarray) -> np.ndarray:
        wanted = self._block_rows
        while wanted:
            left = np.where(before < self._most, rates, 0.0)
            if left.sum() <= 0:
                break
            drawn = np.minimum(before + _systematic(left[None], wanted, dither)[0], self._most)
            wanted -= int((drawn - before).sum())
            before = drawn
        return before


def _systematic(rates: np.ndarray, rows: int, dither: np.ndarray) -> np.ndarray:
    """(blocks, sources) int64 numbers of rows, ``rows`` in each block, each within one of its share.

    Source by source the shares are laid end to end on a line of ``rows``, and a point taken every 1 from ``dither`` on.
    """
    borders = np.cumsum(rates, axis=1)
    borders = borders / np.maximum(borders[:, -1:], np.finfo(float).tiny) * rows
    marks = np.floor(borders + dither[:, None]).astype(np.int64)
    marks[:, -1] = rows  # whatever rounding did
    return np.diff(marks, axis=1, prepend=0)
