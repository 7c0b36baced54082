"""What a user chooses about reporting. Loads nothing heavy, because ``--help`` reads it."""

from __future__ import annotations

import dataclasses

from t5x_like.core.config import Config
from t5x_like.core.errors import refuse
from t5x_like.core.every import Every


@dataclasses.dataclass(frozen=True)
class ReportConfig(Config, where="report"):
    """How often a run reports, and where to, besides the console and metrics.jsonl.

    Args:
      every: steps between two rows of metrics.
      tensorboard: whether to write TensorBoard files to the folder ``tensorboard`` of the run.
      wandb: name of the Weights & Biases project to report to; empty is none. Needs the package ``wandb``.
      plots: whether to draw curves.png when the run ends.
      sample: times at which the model writes a sample, where text is held out.
      profile: first and last step, counted from 1, that ``jax.profiler`` traces into the folder ``profile`` of the
        run; empty is none.

    Raises:
      UserError: ``every`` below 1, ``profile`` that is no two steps in order.
    """

    every: int = 10
    tensorboard: bool = True
    wandb: str = ""
    plots: bool = True
    sample: Every = Every()
    profile: tuple[int, ...] = ()

    def __post_init__(self):
        refuse(self.every < 1, "report.every", f"{self.every}", "1 step or more")
        refuse(bool(self.profile) and not (len(self.profile) == 2 and 1 <= self.profile[0] <= self.profile[1]),
               "report.profile", f"{self.profile}", "the first and the last step, or nothing", "10,12")
