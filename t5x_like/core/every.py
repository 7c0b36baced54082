"""Times of an action in a run."""

from __future__ import annotations

import dataclasses

from t5x_like.core.config import Config
from t5x_like.core.errors import require
from t5x_like.core.ranges import NonNegativeInt, Probability


@dataclasses.dataclass(frozen=True)
class Every(Config, where="when", short="steps"):
    """After every n-th step, after every share of the steps, at the end, or several of these. A number alone is steps.

    Attributes:
      steps: steps between two times; 0 is never.
      share: share of the run's steps between two times, rounded to a whole step; 0 is never.
      end: whether the end of the run is a time too.
    """

    steps: NonNegativeInt = 0
    share: Probability = 0.0
    end: bool = True

    def __post_init__(self):
        both = f"{self.share} beside steps={self.steps}"
        require(not (self.steps and self.share), "Every.share", both, "one of the two")

    def due(self, step: int, total: int) -> bool:
        """Whether it is time after update ``step`` of ``total``; never before the first."""
        between = self.steps or (max(1, round(self.share * total)) if self.share else 0)
        return step > 0 and ((self.end and step == total) or (between > 0 and step % between == 0))
