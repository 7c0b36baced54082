"""The model that ``step.py --family t5`` trains in every contender: T5 1.1, its optimizer's numbers, its batches.

Imports no framework, so that each contender's own imports can be timed. Rows are full: no padding, one text each.
"""

from __future__ import annotations

import dataclasses

import numpy as np

LEARNING_RATE, BETA_1, BETA_2, EPSILON, WEIGHT_DECAY, CLIP_NORM = 1e-3, 0.9, 0.95, 1e-8, 0.1, 1.0


@dataclasses.dataclass(frozen=True)
class Sizes:
    """T5 1.1 (gated GELU, an output head of its own) with 10 million parameters; lengths as in its pretraining."""

    layers: int = 4  # of the encoder, and as many of the decoder
    width: int = 256
    heads: int = 4
    head_size: int = 64
    hidden: int = 512
    vocabulary: int = 8192
    batch: int = 8
    inputs: int = 512
    targets: int = 114

    @property
    def tokens(self) -> int:
        """Of one batch, inputs and targets."""
        return self.batch * (self.inputs + self.targets)


SMOKE = Sizes(layers=2, width=32, heads=2, head_size=16, hidden=64, vocabulary=512, batch=2, inputs=32, targets=16)


def tokens(sizes: Sizes, step: int) -> dict[str, np.ndarray]:
    """encoder_tokens, decoder_tokens and targets of step ``step``, int32 [batch, length]; decoders begin with 0."""
    rng = np.random.default_rng(step)
    inputs, targets = (
        rng.integers(2, sizes.vocabulary, (sizes.batch, n), dtype=np.int32) for n in (sizes.inputs, sizes.targets)
    )
    return {"encoder_tokens": inputs, "decoder_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1], "targets": targets}
