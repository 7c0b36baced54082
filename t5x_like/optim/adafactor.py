"""Adafactor for one parameter, as T5 used it: Shazeer and Stern 2018, Algorithms 4 and 5, without momentum.

The second moment of a matrix is kept as the mean of each row and of each column; means where the paper has sums, which
cancels out of their ratio. The decay of the second moment is 1 - (step + 1) ** -0.8, so the first update sees only its
own gradient. Knows one gradient and one parameter at a time; must not know trees, layers, schedules or masks.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from t5x_like.arrays.spec import ParamSpec
from t5x_like.optim.config import Adafactor
from t5x_like.optim.slots import Slot


def factored_dimensions(config: Adafactor, spec: ParamSpec) -> tuple[int, int] | None:
    """The dimensions that make the rows and the columns of the matrix to factor: the second largest and the largest,
    the later of two equals counting as larger. None if fewer than two are ``min_dim_factored`` or more."""
    if len(spec.shape) < 2:
        return None
    *_, row, column = sorted(range(len(spec.shape)), key=lambda dimension: (spec.shape[dimension], dimension))
    return (row, column) if spec.shape[row] >= config.min_dim_factored else None


def slots(config: Adafactor, spec: ParamSpec) -> dict[str, Slot]:
    """What is kept for this parameter: ``row`` and ``column`` means of the squared gradient, or all of it
    (``full``)."""
    every_dimension = range(len(spec.shape))
    factored = factored_dimensions(config, spec)
    if factored is None:
        return {"full": Slot(tuple(every_dimension))}
    row, column = factored
    return {
        "row": Slot(tuple(dimension for dimension in every_dimension if dimension != column)),
        "column": Slot(tuple(dimension for dimension in every_dimension if dimension != row)),
    }


def update(
    config: Adafactor,
    spec: ParamSpec,
    gradient: jax.Array,
    state: dict[str, jax.Array],
    parameter: jax.Array,
    learning_rate: jax.Array,
    step: jax.Array,
    weight_decay: float,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """One update. ``gradient`` and ``parameter`` float32 of one shape, ``state`` as `slots` says, ``learning_rate`` and
    ``step`` (from 0) scalars.

    Returns:
      The new parameter and the new state.
    """
    decay = 1.0 - (step + 1).astype(jnp.float32) ** -config.decay_exponent
    square = jnp.square(gradient) + config.eps1
    factored = factored_dimensions(config, spec)
    if factored is None:
        full = decay * state["full"] + (1 - decay) * square
        direction = gradient * jax.lax.rsqrt(full)
        state = {"full": full}
    else:
        row_dimension, column_dimension = factored
        row = decay * state["row"] + (1 - decay) * jnp.mean(square, axis=column_dimension)
        column = decay * state["column"] + (1 - decay) * jnp.mean(square, axis=row_dimension)
        row_kept = jnp.expand_dims(row, column_dimension)
        # The root of each factor is taken on its own: the product of the means of squares could underflow.
        row_factor = jax.lax.rsqrt(row_kept / jnp.mean(row_kept, axis=row_dimension, keepdims=True))
        column_factor = jax.lax.rsqrt(jnp.expand_dims(column, row_dimension))
        direction = gradient * row_factor * column_factor
        state = {"row": row, "column": column}
    if config.clip_threshold:
        direction = direction / jnp.maximum(1.0, _root_mean_square(direction) / config.clip_threshold)
    if config.multiply_by_parameter_scale:
        direction = direction * jnp.maximum(_root_mean_square(parameter), config.eps2)
    if weight_decay:
        direction = direction + weight_decay * parameter
    return parameter - learning_rate * direction, state


def _root_mean_square(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.mean(jnp.square(x)))
