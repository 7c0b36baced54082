"""What objectives do to token ids: span corruption, masking, a split into prefix and rest; in numpy, exactly as T5 and
BERT did it.

Pure functions of ids and a random generator. Must not know corpora, rows, batches or models.
"""

from __future__ import annotations

import functools
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
    return np.diff(borders)


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


def masked_lm(
    tokens: np.ndarray,
    rng: np.random.Generator,
    rate: float,
    vocab_size: int,
    mask_id: int,
    special_ids: tuple[int, ...] = (),
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """BERT's masking: of the chosen tokens 80% become ``mask_id``, 10% a random id, 10% stay as they are.

    ``rate`` of the tokens that may be chosen are, rounded up or down at random so that the mean is exact at any length.

    Args:
      tokens: (length,) ids.
      rng: random numbers.
      rate: the share of tokens chosen.
      vocab_size: random ids lie below it.
      mask_id: hides a token.
      special_ids: never chosen, and never put in as a random id (``mask_id`` never is either).

    Returns:
      inputs (int32), targets (int32, the tokens), weights (float32: 1 where chosen, else 0), each (length,).
    """
    drawable, is_special = _drawable_ids(vocab_size, (*special_ids, mask_id))
    inputs = tokens.astype(np.int32)
    weights = np.zeros(len(tokens), np.float32)
    candidates = np.flatnonzero(~is_special[inputs])
    count = int(len(candidates) * rate + rng.random())
    chosen = candidates[rng.permutation(len(candidates))[:count]]
    fate = rng.random(len(chosen))
    replacements = drawable[rng.integers(len(drawable), size=len(chosen))]
    inputs[chosen] = np.where(fate < 0.8, mask_id, np.where(fate < 0.9, replacements, inputs[chosen]))
    weights[chosen] = 1.0
    return inputs, tokens.astype(np.int32), weights


@functools.lru_cache(maxsize=8)
def _drawable_ids(vocab_size: int, special_ids: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    is_special = np.zeros(vocab_size, bool)
    is_special[list(special_ids)] = True
    return np.flatnonzero(~is_special).astype(np.int32), is_special


def prefix_split(length: int, rng: np.random.Generator) -> int:
    """How many of ``length`` tokens (2 or more) are the prefix: uniform in [1, length)."""
    return int(rng.integers(1, length))
