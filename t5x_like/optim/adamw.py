"""AdamW: Adam (Kingma and Ba 2015, Algorithm 1, with bias correction) with decoupled weight decay."""

from __future__ import annotations

import dataclasses

from t5x_like.core.ranges import NonNegativeFloat, PositiveFloat
from t5x_like.optim.config import Decay, OptimizerConfig


@dataclasses.dataclass(frozen=True)
class AdamW(OptimizerConfig):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101).

    Args:
      b1: decay of the mean of gradients.
      b2: decay of the mean of squared gradients.
      eps: constant added to the root of the mean square.
    """

    weight_decay: NonNegativeFloat = 0.1
    b1: Decay = 0.9
    b2: Decay = 0.95
    eps: PositiveFloat = 1e-8

    def transformation(self, context):
        import optax

        return context.descend(optax.scale_by_adam(self.b1, self.b2, self.eps))

    def to_check(self, state):
        return {} if self.eps >= 1e-15 else None  # the only division is by at least eps
