"""What a user chooses about reporting. Loads nothing heavy, because ``--help`` reads it."""

from __future__ import annotations

import dataclasses

from t5x_like.core.config import Config
from t5x_like.core.every import Every
from t5x_like.core.ranges import PositiveInt


@dataclasses.dataclass(frozen=True)
class ReportConfig(Config, where="report"):
    """How often a run reports, and where to, besides the console and metrics.jsonl.

    Args:
      every: steps between two rows of metrics, which are means over these steps; of the learning rate, the last.
      tensorboard: whether to write TensorBoard files to the folder ``tensorboard`` of the run.
      wandb: name of the Weights & Biases project to report to; empty is none. Needs the package ``wandb``.
      plots: whether to draw curves.png when the run ends.
      sample: times at which the model writes a sample, where text is held out.
      profile: times after which ``jax.profiler`` traces steps into the folder ``profile`` of the run, besides
        those at which the process is sent SIGUSR1.
      profile_steps: number of steps in each trace.
    """

    every: PositiveInt = 10
    tensorboard: bool = True
    wandb: str = ""
    plots: bool = True
    sample: Every = Every()
    profile: Every = Every(end=False)
    profile_steps: PositiveInt = 3
