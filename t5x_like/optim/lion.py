"""Lion for one parameter (Chen et al. 2023, Program 1): the sign of an interpolation of momentum and gradient.

Knows one gradient and one parameter at a time; must not know trees, layers, schedules or masks.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from t5x_like.arrays.spec import ParamSpec
from t5x_like.optim.config import Lion
from t5x_like.optim.slots import Slot


def slots(config: Lion, spec: ParamSpec) -> dict[str, Slot]:
    """What is kept for this parameter: the momentum (mu)."""
    return {"mu": Slot(tuple(range(len(spec.shape))))}


def update(
    config: Lion,
    spec: ParamSpec,
    gradient: jax.Array,
    state: dict[str, jax.Array],
    parameter: jax.Array,
    learning_rate: jax.Array,
    step: jax.Array,
    weight_decay: float,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """One update. All arrays float32 and of one shape, but the scalars ``learning_rate`` and ``step``.

    Returns:
      The new parameter and the new state.
    """
    del spec, step  # Lion takes elements one by one, without bias correction
    mu = state["mu"]
    direction = jnp.sign(config.b1 * mu + (1 - config.b1) * gradient)
    if weight_decay:
        direction = direction + weight_decay * parameter
    return parameter - learning_rate * direction, {"mu": config.b2 * mu + (1 - config.b2) * gradient}
