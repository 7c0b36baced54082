"""Text with gaps: a sentinel for each gap in the inputs, each gap's tokens behind its sentinel in the targets.

``span_corruption`` chooses gaps as T5's pretraining does, ``iid_denoising`` token by token. Both know beforehand how
long their results are at most, for rows are planned from lengths alone.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np

from t5x_like.core.errors import UserError


def noise_counts(raw_length: int, density: float, mean_span_length: float) -> tuple[int, int]:
    """(noise tokens, noise spans) of T5's span corruption of ``raw_length`` tokens, at least 2.

    Halves are rounded to even, by Python's ``round``: T5's length helper does so too, and TensorFlow's ``tf.round``.
    """
    if raw_length < 2:
        raise UserError("objective", f"span corruption of {raw_length} tokens", "at least 2")
    noise = min(max(round(raw_length * density), 1), raw_length - 1)
    spans = max(1, round(noise / mean_span_length))
    # Every span has a kept token before it: more spans than kept tokens is only possible at high densities.
    return noise, min(spans, noise, raw_length - noise)


def span_lengths(raw_length: int, density: float, mean_span_length: float) -> tuple[int, int]:
    """(input tokens, target tokens), EOS included, that ``span_corruption`` makes of ``raw_length`` tokens."""
    noise, spans = noise_counts(raw_length, density, mean_span_length)
    return raw_length - noise + spans + 1, noise + spans + 1


@functools.lru_cache(maxsize=64)
def raw_length_for(input_length: int, density: float, mean_span_length: float) -> int:
    """How many raw tokens fill ``input_length`` input tokens after corruption: T5's ``random_spans_helper``.

    Every shorter raw length fits too. 512 at (0.15, 3.0) gives 568, whose targets are 114.

    Raises:
      UserError: an ``input_length`` below 4.
    """
    if input_length < 4:
        raise UserError("data.input_length", str(input_length), "4 or more for span corruption")
    raw_length = input_length - 1
    while span_lengths(raw_length + 1, density, mean_span_length)[0] <= input_length:
        raw_length += 1
    # T5's own exception: at half noise, targets are kept from being one longer than the (round) input length.
    if density == 0.5 and span_lengths(raw_length, density, mean_span_length)[1] > input_length:
        raw_length -= 1
    return raw_length


@functools.lru_cache(maxsize=64)
def raw_length_within(length: int, density: float, mean_span_length: float) -> int:
    """How many raw tokens make inputs and targets that fill ``length`` tokens together. Every shorter raw length fits.

    Raises:
      UserError: a ``length`` below 6.
    """
    if length < 6:
        raise UserError("data.input_length", str(length), "6 or more for span corruption in one sequence")
    # Together they are the tokens, 2 sentinels a span and 2 EOS; a span has at least 2 tokens, kept ones counted.
    raw_length = (length - 2) // 2
    while sum(span_lengths(raw_length + 1, density, mean_span_length)) <= length:
        raw_length += 1
    return raw_length


def random_segmentation(items: int, segments: int, rng: np.random.Generator) -> np.ndarray:
    """(segments,) int64: ``items`` cut into ``segments`` non-empty parts, every way of doing so equally likely.

    Args:
      items: the sum of the parts.
      segments: from 1 to ``items``.
    """
    cuts = rng.choice(items - 1, segments - 1, replace=False, shuffle=False) if segments > 1 else np.empty(0, np.int64)
    borders = np.empty(segments + 1, np.int64)
    borders[0], borders[-1] = 0, items
    borders[1:-1] = np.sort(cuts) + 1
    return borders[1:] - borders[:-1]


def span_corruption(
    tokens: np.ndarray,
    rng: np.random.Generator,
    density: float,
    mean_span_length: float,
    sentinel_ids: Sequence[int] | np.ndarray,
    eos_id: int,
) -> tuple[np.ndarray, np.ndarray]:
    """T5's span corruption: spans of noise go to the targets, a sentinel each stands for them in the inputs.

    Kept and noise spans alternate, beginning with a kept one, so the tokens end in noise and no sentinel follows.

    Args:
      tokens: (raw_length,) ids.
      rng: two draws are taken from it: the cuts of the noise, then of the rest.
      density: the share of noise tokens.
      mean_span_length: noise tokens per span, in the mean.
      sentinel_ids: one for each span, the first span's first.
      eos_id: appended to both results.

    Returns:
      inputs and targets, int32, of the lengths that ``span_lengths`` tells.

    Raises:
      UserError: fewer sentinels than spans, or fewer than 2 tokens.
    """
    noise, spans = noise_counts(len(tokens), density, mean_span_length)
    if spans > len(sentinel_ids):
        raise UserError(
            "data.corpus.tokenizer.sentinels",
            f"{len(sentinel_ids)} sentinels, but {len(tokens)} tokens are cut into {spans} spans",
            f"{spans} or more",
            "shorter data.input_length, or a longer objective.mean_span_length",
        )
    lengths = np.empty(2 * spans, np.int64)
    lengths[1::2] = random_segmentation(noise, spans, rng)
    lengths[0::2] = random_segmentation(len(tokens) - noise, spans, rng)
    is_noise = np.repeat(np.arange(2 * spans) % 2 == 1, lengths)
    ends = np.cumsum(lengths)
    noise_starts, kept_starts = ends[0::2], ends[1::2] - lengths[1::2] - lengths[0::2]
    sentinels = np.asarray(sentinel_ids[:spans], np.int32)
    inputs = _keep_and_mark(tokens, ~is_noise, noise_starts, sentinels, eos_id)
    targets = _keep_and_mark(tokens, is_noise, kept_starts, sentinels, eos_id)
    return inputs, targets


def iid_limits(raw_length: int, density: float) -> tuple[int, int]:
    """(sentinels, target tokens with EOS) that ``iid_denoising`` of ``raw_length`` tokens uses at most.

    Three standard deviations above the mean, rounded up, or all that is possible if that is less. Let X be 1 for a
    corrupted token, of chance p. A gap begins at a token with chance q = p (1 - p), and never at two in a row, so that
    of n tokens the number of gaps has the variance n q (1 - 3 q). A token takes X (2 - X of the token before) places in
    the targets, its sentinel counted: the mean is m = p (2 - p), the variance p (4 - 3 p) - m^2, and the covariance of
    neighbours p m - m^2.
    """
    p, n = density, raw_length
    q, m = p * (1.0 - p), p * (2.0 - p)
    gaps = n * q + 3.0 * math.sqrt(max(n * q * (1.0 - 3.0 * q), 0.0))
    places = n * m + 3.0 * math.sqrt(max(n * (p * (4.0 - 3.0 * p) - m * m + 2.0 * (p * m - m * m)), 0.0))
    return min(math.ceil(gaps), (n + 1) // 2), min(math.ceil(places), n + 1 if n else 0) + 1


def iid_denoising(
    tokens: np.ndarray,
    rng: np.random.Generator,
    density: float,
    sentinel_ids: Sequence[int] | np.ndarray,
    eos_id: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Each token is corrupted or not by itself; each run of corrupted tokens becomes one sentinel (T5, section
    3.1.4).

    In about one text of a thousand more tokens are drawn than ``iid_limits`` has room for; from the first that does not
    fit to the end of the text, all are then left as they are.

    Args:
      tokens: (raw_length,) ids.
      rng: one number is drawn for each token.
      density: the chance of each token to be corrupted.
      sentinel_ids: at least as many as ``iid_limits`` says, the first run's first.
      eos_id: appended to both results.

    Returns:
      inputs (at most raw_length + 1) and targets (at most as ``iid_limits`` says), int32.
    """
    runs_limit, places_limit = iid_limits(len(tokens), density)
    # A kept token before the first, so that the sentinel of each run has a place before the run in the targets.
    is_noise = np.zeros(len(tokens) + 1, bool)
    is_noise[1:] = rng.random(len(tokens)) < density
    begins = is_noise[1:] & ~is_noise[:-1]
    runs = np.cumsum(begins)
    fits = (runs <= runs_limit) & (runs + np.cumsum(is_noise[1:]) < places_limit)
    is_noise[1:] &= fits
    starts = np.flatnonzero(begins & fits) + 1
    padded = np.empty(len(tokens) + 1, np.int32)
    padded[0], padded[1:] = 0, tokens
    sentinels = np.asarray(sentinel_ids[: len(starts)], np.int32)
    is_kept = ~is_noise
    is_kept[0] = False
    return (
        _keep_and_mark(padded, is_kept, starts, sentinels, eos_id),
        _keep_and_mark(padded, is_noise, starts - 1, sentinels, eos_id),
    )


def _keep_and_mark(
    tokens: np.ndarray, kept: np.ndarray, marked: np.ndarray, sentinels: np.ndarray, eos_id: int
) -> np.ndarray:
    """The ``kept`` tokens, with a sentinel in place of each of the ``marked`` ones, and EOS."""
    replaced = np.empty(len(tokens) + 1, np.int32)
    replaced[:-1] = tokens
    replaced[-1] = eos_id
    replaced[marked] = sentinels
    chosen = np.empty(len(tokens) + 1, bool)
    chosen[:-1] = kept
    chosen[-1] = True
    chosen[marked] = True
    return replaced[chosen]
