"""What a user chooses about checkpoints. Loads without jax, because ``--help`` reads it."""

from __future__ import annotations

import dataclasses

from t5x_like.core.config import Config
from t5x_like.core.every import Every
from t5x_like.core.ranges import NonNegativeInt


@dataclasses.dataclass(frozen=True)
class CheckpointConfig(Config, where="checkpoint"):
    """When to save and what to keep.

    Args:
      every: times of the saves; the end of the run always is one.
      keep_last: number of latest checkpoints kept on disk; 0 keeps all.
      keep_every: steps between two checkpoints that are kept for good; 0 is none.
    """

    every: Every = Every(steps=1000)
    keep_last: NonNegativeInt = 3
    keep_every: NonNegativeInt = 0
