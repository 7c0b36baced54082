"""Lion (Chen et al. 2023, Program 1): the sign of an interpolation of momentum and gradient."""

from __future__ import annotations

import dataclasses

from t5x_like.core.ranges import BelowOne, NonNegativeFloat
from t5x_like.optim.config import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class Lion(OptimizerConfig):
    """Lion: the sign of an interpolated momentum (Chen et al. 2023, arXiv:2302.06675). Its learning rate is 3 to 10
    times smaller than AdamW's, its weight decay 3 to 10 times larger.

    Args:
      b1: share of the momentum, against the gradient, in the direction taken.
      b2: decay of the momentum.
    """

    learning_rate: NonNegativeFloat = 1e-4
    weight_decay: NonNegativeFloat = 1.0
    b1: BelowOne = 0.9
    b2: BelowOne = 0.99

    def transformation(self, context):
        import optax

        return context.descend(optax.scale_by_lion(self.b1, self.b2))

    def to_check(self, state):
        return {}  # signs and parameters
