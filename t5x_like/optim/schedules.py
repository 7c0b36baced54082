"""Learning-rate schedules as functions of a traced step. Must not know optimizers or the loop.

Steps count from 0, and neither the first nor the last update is wasted on a rate of zero: the warm-up gives update 0 a
share of 1 / warmup and reaches the peak at step warmup - 1; the decay starts from the peak at step warmup and would
reach its end at step total_steps, one after the last.

    share(step) = min(1, (step + 1) / warmup) * shape(step)
      constant  1
      linear    1 - (1 - end) * p                             p = (step - warmup) / (total - warmup) in [0, 1]
      cosine    end + (1 - end) * (1 + cos(pi * p)) / 2       the same p
      rsqrt     sqrt(hold / max(step, hold))                  hold = warmup (at least 1) unless given
      wsd       1 - (1 - end) * p                             p over the last decay * total steps
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from t5x_like.core.errors import UserError
from t5x_like.optim.config import OptimizerConfig, Schedule


def learning_rate(config: OptimizerConfig, total_steps: int) -> Callable[[jax.Array], jax.Array]:
    """The learning rate as a function of the step.

    Args:
      config: any optimizer's config; its ``learning_rate`` is the peak, its ``schedule`` the shape.
      total_steps: how many updates the run makes.

    Returns:
      A function from an int32 step of any shape, counting from 0, to float32 learning rates of that shape; usable
      inside jit.

    Raises:
      UserError: a field out of range, or one that this kind of schedule does not read.
    """
    if not config.learning_rate >= 0:
        raise UserError("optimizer.learning_rate", f"{config.learning_rate}", "a number that is not negative")
    schedule = config.schedule
    check(schedule, total_steps)
    shape = _shape(schedule, total_steps)

    def rate(step: jax.Array) -> jax.Array:
        step = jnp.asarray(step).astype(jnp.float32)
        share = shape(step)
        if schedule.warmup:
            share = share * jnp.minimum(1.0, (step + 1) / schedule.warmup)
        return config.learning_rate * share

    return rate


def check(schedule: Schedule, total_steps: int) -> None:
    """Raises UserError, naming the field, for a schedule that makes no sense over ``total_steps`` updates."""
    where = "optimizer.schedule"
    decays = schedule.kind in ("linear", "cosine", "wsd")
    stable = total_steps - (_decay_steps(schedule, total_steps) if schedule.kind == "wsd" else 0)
    if schedule.warmup < 0 or schedule.hold < 0:
        name = "warmup" if schedule.warmup < 0 else "hold"
        raise UserError(f"{where}.{name}", f"{getattr(schedule, name)}", "a number of steps, 0 or more")
    if schedule.hold and schedule.kind != "rsqrt":
        raise UserError(f"{where}.hold", f"{schedule.hold} with kind {schedule.kind!r}, which does not hold",
                        "0", f"{where}.kind=rsqrt, or leave hold out")
    if not 0 <= schedule.end <= 1:
        raise UserError(f"{where}.end", f"{schedule.end}", "a fraction of the peak, from 0 to 1")
    if not 0 < schedule.decay <= 1:
        raise UserError(f"{where}.decay", f"{schedule.decay}", "a share of all steps, above 0 and at most 1")
    if decays and schedule.warmup > max(0, stable - (schedule.kind != "wsd")):
        raise UserError(f"{where}.warmup", f"{schedule.warmup} steps of warm-up leave no room in {total_steps} steps",
                        f"fewer than the {stable} steps before the decay ends" if schedule.kind != "wsd"
                        else f"at most the {stable} steps before the decay begins",
                        f"{where}.warmup={max(0, stable // 10)}, or more train.steps")


def _decay_steps(schedule: Schedule, total_steps: int) -> int:
    return max(1, round(schedule.decay * total_steps))


def _shape(schedule: Schedule, total_steps: int) -> Callable[[jax.Array], jax.Array]:
    """The share of the peak without the warm-up: float32 step -> float32 share."""
    end = schedule.end
    if schedule.kind == "constant":
        return jnp.ones_like
    if schedule.kind == "rsqrt":
        hold = max(1, schedule.hold or schedule.warmup)
        return lambda step: jnp.sqrt(hold / jnp.maximum(step, hold))
    if schedule.kind == "wsd":
        start, length = total_steps - _decay_steps(schedule, total_steps), _decay_steps(schedule, total_steps)
    else:
        start, length = schedule.warmup, total_steps - schedule.warmup

    def progress(step: jax.Array) -> jax.Array:
        return jnp.clip((step - start) / length, 0.0, 1.0)

    if schedule.kind == "cosine":
        return lambda step: end + (1 - end) * 0.5 * (1 + jnp.cos(jnp.pi * progress(step)))
    return lambda step: 1 - (1 - end) * progress(step)
