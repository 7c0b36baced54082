"""AdamW for one parameter: Adam (Kingma and Ba 2015, Algorithm 1, with bias correction) with decoupled weight decay.

Knows one gradient and one parameter at a time; must not know trees, layers, schedules or masks.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from t5x_like.arrays.spec import ParamSpec
from t5x_like.optim.config import AdamW
from t5x_like.optim.slots import Slot


def slots(config: AdamW, spec: ParamSpec) -> dict[str, Slot]:
    """What is kept for this parameter: the means of the gradient (mu) and of its square (nu)."""
    every_dimension = tuple(range(len(spec.shape)))
    return {"mu": Slot(every_dimension), "nu": Slot(every_dimension)}


def update(
    config: AdamW,
    spec: ParamSpec,
    gradient: jax.Array,
    state: dict[str, jax.Array],
    parameter: jax.Array,
    learning_rate: jax.Array,
    step: jax.Array,
    weight_decay: float,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """One update. All arrays float32 and of one shape, but the scalars ``learning_rate`` and ``step`` (from 0).

    Returns:
      The new parameter and the new state.
    """
    del spec  # AdamW takes elements one by one
    count = (step + 1).astype(jnp.float32)
    mu = config.b1 * state["mu"] + (1 - config.b1) * gradient
    nu = config.b2 * state["nu"] + (1 - config.b2) * jnp.square(gradient)
    # The corrections are scalars, so one division and one root an element are left.
    mu_correction = 1 - config.b1**count
    nu_correction = 1 - config.b2**count
    direction = (mu / mu_correction) / (jnp.sqrt(nu / nu_correction) + config.eps)
    if weight_decay:
        direction = direction + weight_decay * parameter
    return parameter - learning_rate * direction, {"mu": mu, "nu": nu}
