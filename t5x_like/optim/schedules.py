"""Learning-rate schedules as functions of a traced step. Must not know optimizers or the loop.

Steps count from 0, and neither the first nor the last update is wasted on a rate of zero: the warm-up gives update 0 a
share of 1 / warmup and reaches the peak at step warmup - 1; the decay starts from the peak at step warmup and would
reach its end at step total_steps, one after the last.

    share(step) = peak * min(1, (step + 1) / warmup) * shape(step)
      constant  1
      linear    1 - (1 - end) * p                             p = (step - warmup) / (total - warmup) in [0, 1]
      cosine    end + (1 - end) * (1 + cos(pi * p)) / 2       the same p
      rsqrt     sqrt(hold / max(step, hold))                  hold = warmup (at least 1) unless given
      wsd       1 - (1 - end) * p                             p over the last decay * total steps
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from t5x_like.optim.config import Joined, OptimizerConfig, Schedule, in_steps


def learning_rate(config: OptimizerConfig, total_steps: int) -> Callable[[jax.Array], jax.Array]:
    """The learning rate as a function of the step.

    Args:
      config: config of any optimizer, with ``learning_rate``, the peak, and ``schedule``, the shape.
      total_steps: number of updates of the run.

    Returns:
      A function from an int32 step of any shape, counting from 0, to float32 learning rates of that shape; usable
      inside jit.

    Raises:
      UserError: a schedule that does not fit into the run.
    """
    config.check(total_steps)
    schedule = config.schedule
    share = _share(schedule, total_steps) if isinstance(schedule, Schedule) else _joined(schedule, total_steps)
    return lambda step: config.learning_rate * share(jnp.asarray(step).astype(jnp.float32))


def _joined(joined: Joined, total_steps: int) -> Callable[[jax.Array], jax.Array]:
    bounds = joined.bounds(total_steps)
    stretches = zip(joined.schedules, itertools.pairwise(bounds), strict=False)
    shares = [_share(each, after - start) for each, (start, after) in stretches]

    def share(step: jax.Array) -> jax.Array:
        value = shares[0](step)
        for start, later in zip(bounds[1:-1], shares[1:], strict=True):
            value = jnp.where(step < start, value, later(step - start))
        return value

    return share


def _share(schedule: Schedule, total_steps: int) -> Callable[[jax.Array], jax.Array]:
    """The fraction of ``learning_rate``: float32 step -> float32."""
    warmup = in_steps(schedule.warmup, total_steps)
    shape = _shape(schedule, warmup, total_steps)

    def share(step: jax.Array) -> jax.Array:
        value = shape(step)
        if warmup:
            value = value * jnp.minimum(1.0, (step + 1) / warmup)
        return value if schedule.peak == 1 else schedule.peak * value

    return share


def _shape(schedule: Schedule, warmup: int, total_steps: int) -> Callable[[jax.Array], jax.Array]:
    """The share of the peak without the warm-up: float32 step -> float32 share."""
    end = schedule.end
    if schedule.kind == "constant":
        return jnp.ones_like
    if schedule.kind == "rsqrt":
        hold = max(1, schedule.hold or warmup)
        return lambda step: jnp.sqrt(hold / jnp.maximum(step, hold))
    if schedule.kind == "wsd":
        length = schedule.decay_steps(total_steps)
        start = total_steps - length
    else:
        start, length = warmup, total_steps - warmup

    def progress(step: jax.Array) -> jax.Array:
        return jnp.clip((step - start) / length, 0.0, 1.0)

    if schedule.kind == "cosine":
        return lambda step: end + (1 - end) * 0.5 * (1 + jnp.cos(jnp.pi * progress(step)))
    return lambda step: 1 - (1 - end) * progress(step)
