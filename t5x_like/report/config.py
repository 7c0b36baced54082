"""What a user chooses about reporting. Loads nothing heavy, because ``--help`` reads it."""

from __future__ import annotations

import dataclasses

from t5x_like.core.config import Config
from t5x_like.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class ReportConfig(Config, where="report"):
    """How often a run reports, and where to, besides the console and metrics.jsonl.

    Args:
      every: steps between two rows of metrics, and between two lines on the console.
      tensorboard: whether to write TensorBoard files to the folder ``tensorboard`` of the run.
      wandb: the Weights & Biases project to report to; empty is none. Needs the package ``wandb``.
      plots: whether to draw curves.png when the run ends.

    Raises:
      UserError: ``every`` below 1.
    """

    every: int = 10
    tensorboard: bool = True
    wandb: str = ""
    plots: bool = True

    def __post_init__(self):
        if self.every < 1:
            raise UserError("report.every", f"{self.every}", "1 step or more")
