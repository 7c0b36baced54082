"""The models that ``step.py`` trains in every contender: their sizes, their optimizer's numbers, their batches.

Imports no framework, so that each contender's own imports can be timed.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

LEARNING_RATE, BETA_1, BETA_2, EPSILON, WEIGHT_DECAY, CLIP_NORM = 1e-3, 0.9, 0.95, 1e-8, 0.1, 1.0


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What both models have."""

    layers: int = 4
    width: int = 256
    heads: int = 4
    head_size: int = 64
    hidden: int = 1024
    vocabulary: int = 8192
    batch: int = 8

    @classmethod
    def smoke(cls, **lengths: int) -> Any:
        """A tiny model: shows that everything runs."""
        return cls(layers=2, width=32, heads=2, head_size=16, hidden=64, vocabulary=512, batch=2, **lengths)

    def random(self, step: int, *shapes: tuple[int, int]) -> list[np.ndarray]:
        """int32 [batch, length] for each (smallest id, length), drawn one after the other."""
        rng = np.random.default_rng(step)
        return [rng.integers(low, self.vocabulary, (self.batch, n), dtype=np.int32) for low, n in shapes]


@dataclasses.dataclass(frozen=True)
class Decoder(Sizes):
    """A decoder-only transformer with RMSNorm, RoPE, a gated MLP (SiLU) and an output head of its own."""

    length: int = 256

    NORM_EPSILON, ROPE_THETA, INIT_STD = 1e-6, 10_000.0, 0.02

    @property
    def tokens(self) -> int:
        """Targets of one batch."""
        return self.batch * self.length

    def rows(self, step: int) -> np.ndarray:
        """int32 [batch, length + 1] of step ``step``: all but the last are read, all but the first are targets."""
        return self.random(step, (0, self.length + 1))[0]


@dataclasses.dataclass(frozen=True)
class T5(Sizes):
    """T5 1.1 (gated GELU, an output head of its own) with 10 million parameters; lengths as in its pretraining.

    ``layers`` are those of the encoder, and as many of the decoder. Rows are full: no padding, one text each.
    """

    hidden: int = 512
    inputs: int = 512
    targets: int = 114

    @property
    def tokens(self) -> int:
        """Of one batch, inputs and targets."""
        return self.batch * (self.inputs + self.targets)

    def rows(self, step: int) -> dict[str, np.ndarray]:
        """encoder_tokens, decoder_tokens, targets of step ``step``, int32 [batch, length]; decoders begin with 0."""
        inputs, targets = self.random(step, (2, self.inputs), (2, self.targets))
        decoder = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
        return {"encoder_tokens": inputs, "decoder_tokens": decoder, "targets": targets}


SMOKE = {Decoder: Decoder.smoke(length=16), T5: T5.smoke(inputs=32, targets=16)}
