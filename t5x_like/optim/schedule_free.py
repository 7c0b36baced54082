"""Schedule-free AdamW (Defazio et al. 2024, arXiv:2405.15682): an average of the parameters instead of a schedule."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from t5x_like.core.ranges import BELOW_1, NonNegativeFloat, PositiveFloat, Range
from t5x_like.optim.config import Decay, OptimizerConfig, Schedule


@dataclasses.dataclass(frozen=True)
class ScheduleFree(OptimizerConfig):
    """AdamW without momentum inside `optax.contrib.schedule_free`; its schedule should be a warm-up and no decay.

    Gradients are taken at points between the fast parameters and their average; the average is evaluated.

    Args:
      interpolation: share of the average, against the fast parameters, in the points where gradients are taken.
      b2: decay of the mean of squared gradients.
      eps: added to the root of the mean square.
      weight_power: the weight of a step in the average is the largest learning rate so far to this power.
    """

    learning_rate: NonNegativeFloat = 2.5e-3
    schedule: Schedule = Schedule(warmup=0.02)
    interpolation: Annotated[float, Range(0.001, BELOW_1, "from 0.001 up to but not 1")] = 0.9  # optax divides by it
    b2: Decay = 0.999
    eps: PositiveFloat = 1e-8
    weight_power: Annotated[float, Range(0, 4, "from 0 to 4")] = 2.0  # rates to a higher one are 0 in float32

    def transformation(self, context):
        import jax.numpy as jnp
        import optax
        import optax.contrib

        adam = optax.scale_by_rms(decay=self.b2, eps=self.eps, eps_in_sqrt=False, bias_correction=True)
        rate = lambda count: context.learning_rate(jnp.asarray(count) - 1)  # noqa: E731, optax counts from 1 here
        return optax.contrib.schedule_free(context.descend(adam), rate, self.interpolation, self.weight_power)

    def eval_params(self, params, state):
        import optax.contrib

        return optax.contrib.schedule_free_eval_params(state, params)
