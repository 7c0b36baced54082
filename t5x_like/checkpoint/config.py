"""What a user chooses about checkpoints. Loads without jax, because ``--help`` reads it."""

from __future__ import annotations

import dataclasses

from t5x_like.core.config import Config
from t5x_like.core.errors import refuse
from t5x_like.core.every import Every
from t5x_like.core.ranges import NonNegativeFloat, NonNegativeInt


@dataclasses.dataclass(frozen=True)
class LocalConfig(Config, where="checkpoint.local"):
    """Frequent saves to a disk of each host, which take the place of each other; a kill loses the steps since the last.

    Each process writes its own shards and reads them again; where one lacks its own, or devices or processes have
    changed, the run resumes from the checkpoints of its folder.

    Args:
      directory: folder on a disk of each host, such as /tmp/checkpoints; empty: no local saves.
      every: times of the local saves.
    """

    directory: str = ""
    every: Every = Every(steps=100, end=False)

    def __post_init__(self):
        refuse(bool(self.directory) and not self.directory.startswith("/"), "checkpoint.local.directory",
               f"{self.directory!r} is relative", "an absolute path, such as /tmp/checkpoints")

    def due(self, step: int, total: int) -> bool:
        """Whether to save locally after update ``step`` of ``total``."""
        return bool(self.directory) and self.every.due(step, total)


@dataclasses.dataclass(frozen=True)
class CheckpointConfig(Config, where="checkpoint"):
    """When to save and what to keep: a checkpoint goes when a newer one is written and no rule keeps it.

    Args:
      every: times of the saves; the end of the run always is one.
      keep_last: number of latest checkpoints kept on disk; 0 keeps all.
      keep_every: steps between two checkpoints that are kept for good; 0 is none.
      keep_hours: hours that each checkpoint is kept in any case; 0 is none.
      keep_best: number of checkpoints kept that are best by keep_metric; 0 is none.
      keep_metric: a value of an evaluation made at the checkpoint's step, as evaluation/value. Where no checkpoint has
        it, train/loss is taken: the mean loss since the checkpoint before.
      keep_highest: whether the best is the highest value rather than the lowest.
      compress: whether files are compressed: up to a tenth smaller, for three times the seconds of a save and twice
        those of a restore.
      local: frequent saves to a disk of each host.
    """

    every: Every = Every(steps=1000)
    keep_last: NonNegativeInt = 3
    keep_every: NonNegativeInt = 0
    keep_hours: NonNegativeFloat = 0.0
    keep_best: NonNegativeInt = 1
    keep_metric: str = "held_out/loss"
    keep_highest: bool = False
    compress: bool = False
    local: LocalConfig = LocalConfig()
