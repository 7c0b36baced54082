"""The one model that ``step.py`` trains in every contender: its sizes, its optimizer's numbers, its batches.

Imports no framework, so that each contender's own imports can be timed.
"""

from __future__ import annotations

import dataclasses

import numpy as np

LEARNING_RATE, BETA_1, BETA_2, EPSILON, WEIGHT_DECAY, CLIP_NORM = 1e-3, 0.9, 0.95, 1e-8, 0.1, 1.0
NORM_EPSILON, ROPE_THETA, INIT_STD = 1e-6, 10_000.0, 0.02


@dataclasses.dataclass(frozen=True)
class Sizes:
    """A decoder-only transformer with RMSNorm, RoPE, a gated MLP (SiLU) and an output head of its own."""

    layers: int = 4
    width: int = 256
    heads: int = 4
    head_size: int = 64
    hidden: int = 1024
    vocabulary: int = 8192
    batch: int = 8
    length: int = 256

    @property
    def tokens(self) -> int:
        """Targets of one batch."""
        return self.batch * self.length


SMOKE = Sizes(layers=2, width=32, heads=2, head_size=16, hidden=64, vocabulary=512, batch=2, length=16)


def tokens(sizes: Sizes, step: int) -> np.ndarray:
    """int32 [batch, length + 1] of step ``step``: all but the last are read, all but the first are targets."""
    rng = np.random.default_rng(step)
    return rng.integers(0, sizes.vocabulary, (sizes.batch, sizes.length + 1), dtype=np.int32)
