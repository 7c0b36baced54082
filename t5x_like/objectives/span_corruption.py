"""T5's pretraining: spans of the text are replaced by sentinels, and the decoder writes the spans.

Knows ids and lengths. The lengths of inputs and targets are known beforehand: rows are planned from lengths alone.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from t5x_like.core.errors import UserError, require
from t5x_like.core.ranges import FLOAT32_MAX, Range
from t5x_like.input_pipeline.config import DataConfig, Shape
from t5x_like.objectives import base
from t5x_like.objectives.base import Example, Objective, Share

if TYPE_CHECKING:
    import numpy as np

    from t5x_like.input_pipeline.tokenizers.base import Tokenizer

_FEWER_SPANS = "shorter data.input_length, or a longer objective.mean_span_length"


@dataclass(frozen=True)
class SpanCorruption(Objective):
    """Span corruption as in T5 (Raffel et al. 2020, section 3.3.4): documents are joined without separators, as there.

    A decoder alone reads the corrupted text in both directions, then writes the spans behind it.

    Attributes:
      noise_density: share of tokens that go to the targets.
      mean_span_length: mean number of tokens per span.
      mode: piece of the vocabulary put before the inputs, such as ``[NLU]``; empty: none.
    """

    noise_density: Share = 0.15
    mean_span_length: Annotated[float, Range(1, FLOAT32_MAX, "1.0 or more tokens")] = 3.0
    mode: str = ""

    shapes: ClassVar[tuple[Shape, ...]] = ("encoder-decoder", "decoder-only")
    joins_documents: ClassVar[bool] = True
    has_prefix: ClassVar[bool] = True
    inputs_end_in_eos: ClassVar[bool] = True
    minimum_length: ClassVar[int] = 2

    def piece_length(self, data: DataConfig, shape: Shape) -> int:
        """Raw tokens that fill ``data.input_length`` after corruption: 568 for 512 with the defaults."""
        room = data.input_length - bool(self.mode)
        find = raw_length_within if shape == "decoder-only" else raw_length_for
        return find(room, self.noise_density, self.mean_span_length)

    def lengths(self, piece_length: int, shape: Shape) -> tuple[int, ...]:
        """(encoder, decoder) tokens of a piece, or of both together in one sequence; EOS and mode included."""
        inputs, targets = span_lengths(piece_length, self.noise_density, self.mean_span_length)
        inputs += bool(self.mode)
        return (inputs + targets,) if shape == "decoder-only" else (inputs, targets)

    def check(self, tokenizer: Tokenizer, data: DataConfig, shape: Shape) -> None:
        """Raises ``UserError``: too few sentinels for a full piece, lengths that do not suit, no EOS, no such mode."""
        super().check(tokenizer, data, shape)
        least = (6 if shape == "decoder-only" else 4) + bool(self.mode)
        base.require_input_length(data, least, "span corruption")
        piece = self.piece_length(data, shape)
        _, spans = noise_counts(piece, self.noise_density, self.mean_span_length)
        options = f"objective.noise_density={self.noise_density} and objective.mean_span_length={self.mean_span_length}"
        reason = f"{piece} tokens with {options} are cut into {spans} spans"
        sentinels = base.require_sentinels(tokenizer, spans, reason, _FEWER_SPANS)
        base.require_special_ids(tokenizer, sentinels | base.mode_ids(self.mode, tokenizer))
        base.require_target_length(data, self.lengths(piece, shape)[-1])

    def example(self, tokens: np.ndarray, rng: np.random.Generator, tokenizer: Tokenizer) -> Example:
        """inputs: mode, kept tokens, a sentinel for each span, EOS; targets: each sentinel and its span, EOS."""
        density, length, eos_id = self.noise_density, self.mean_span_length, tokenizer.eos_id
        inputs, targets = span_corruption(tokens, rng, density, length, tokenizer.sentinel_ids, eos_id)
        return Example(base.with_mode(self.mode, inputs, tokenizer), targets)


def noise_counts(raw_length: int, density: float, mean_span_length: float) -> tuple[int, int]:
    """(noise tokens, noise spans) of T5's span corruption of ``raw_length`` tokens, at least 2.

    Halves are rounded to even, by Python's ``round``: T5's length helper does so too, and TensorFlow's ``tf.round``.
    """
    require(raw_length >= 2, "objective", f"span corruption of {raw_length} tokens", "at least 2")
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
    """Number of raw tokens that fill ``input_length`` input tokens after corruption: T5's ``random_spans_helper``.

    Every shorter raw length fits too. 512 at (0.15, 3.0) gives 568, whose targets are 114.

    Raises:
      UserError: an ``input_length`` below 4.
    """
    require(input_length >= 4, "data.input_length", input_length, "4 or more for span corruption")
    raw_length = base.longest_piece(lambda n: span_lengths(n, density, mean_span_length)[0], input_length, 2)
    # T5's own exception: at half noise, targets are kept from being one longer than the (round) input length.
    if density == 0.5 and span_lengths(raw_length, density, mean_span_length)[1] > input_length:
        raw_length -= 1
    return raw_length


@functools.lru_cache(maxsize=64)
def raw_length_within(length: int, density: float, mean_span_length: float) -> int:
    """Number of raw tokens whose inputs and targets fill ``length`` tokens together. Every shorter raw length fits.

    Raises:
      UserError: a ``length`` below 6.
    """
    require(length >= 6, "data.input_length", length, "6 or more for span corruption in one sequence")
    return base.longest_piece(lambda n: sum(span_lengths(n, density, mean_span_length)), length, 2)


def random_segmentation(items: int, segments: int, rng: np.random.Generator) -> np.ndarray:
    """(segments,) int64: ``items`` cut into ``segments`` non-empty parts, uniform over all ways to cut.

    Args:
      items: sum of the parts.
      segments: number of parts, from 1 to ``items``.
    """
    import numpy as np

    cuts = rng.choice(items - 1, segments - 1, replace=False, shuffle=False) if segments > 1 else np.empty(0, np.int64)
    borders = np.empty(segments + 1, np.int64)
    borders[0], borders[-1] = 0, items
    borders[1:-1] = np.sort(cuts) + 1
    return borders[1:] - borders[:-1]


def span_corruption(
    tokens: np.ndarray, rng: np.random.Generator, density: float, mean_span_length: float,
    sentinel_ids: Sequence[int] | np.ndarray, eos_id: int,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """T5's span corruption: spans of noise go to the targets, a sentinel each stands for them in the inputs.

    Kept and noise spans alternate, beginning with a kept one, so the tokens end in noise and no sentinel follows.

    Args:
      tokens: (raw_length,) ids.
      rng: random numbers, drawn twice: for the cuts of the noise, then of the rest.
      density: share of noise tokens.
      mean_span_length: mean number of noise tokens per span.
      sentinel_ids: one sentinel for each span, in the order of the spans.
      eos_id: id appended to both results.

    Returns:
      inputs and targets, int32, of the lengths that ``span_lengths`` gives.

    Raises:
      UserError: fewer sentinels than spans, or fewer than 2 tokens.
    """
    import numpy as np

    noise, spans = noise_counts(len(tokens), density, mean_span_length)
    if spans > len(sentinel_ids):
        got = f"{len(sentinel_ids)} sentinels, but {len(tokens)} tokens are cut into {spans} spans"
        raise UserError("data.corpus.tokenizer.sentinels", got, f"{spans} or more", _FEWER_SPANS)
    lengths = np.empty(2 * spans, np.int64)
    lengths[1::2] = random_segmentation(noise, spans, rng)
    lengths[0::2] = random_segmentation(len(tokens) - noise, spans, rng)
    is_noise = np.repeat(np.arange(2 * spans) % 2 == 1, lengths)
    ends = np.cumsum(lengths)
    noise_starts, kept_starts = ends[0::2], ends[1::2] - lengths[1::2] - lengths[0::2]
    sentinels = np.asarray(sentinel_ids[:spans], np.int32)
    inputs = keep_and_mark(tokens, ~is_noise, noise_starts, sentinels, eos_id)
    return inputs, keep_and_mark(tokens, is_noise, kept_starts, sentinels, eos_id)


def keep_and_mark(
    tokens: np.ndarray, kept: np.ndarray, marked: np.ndarray, sentinels: np.ndarray, eos_id: int
) -> np.ndarray:
    """The ``kept`` tokens, with a sentinel in place of each of the ``marked`` ones, and EOS."""
    import numpy as np

    replaced, chosen = np.empty(len(tokens) + 1, np.int32), np.empty(len(tokens) + 1, bool)
    replaced[:-1], replaced[-1], replaced[marked] = tokens, eos_id, sentinels
    chosen[:-1], chosen[-1], chosen[marked] = kept, True, True
    return replaced[chosen]
