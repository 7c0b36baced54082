"""Adafactor as T5 used it: Shazeer and Stern 2018, Algorithms 4 and 5, without momentum, as an optax transformation.

The second moment of a matrix is kept as the mean of each row and of each column; means where the paper has sums, which
cancels out of their ratio. The decay of the second moment is 1 - (step + 1) ** -0.8, so the first update sees only its
own gradient. Each layer of a stacked parameter is a parameter of its own, so that a scanned and an unrolled model get
the same updates.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

from t5x_like.arrays.spec import ParamSpec
from t5x_like.arrays.trees import Tree, flatten, unflatten
from t5x_like.core.ranges import NonNegativeFloat, PositiveInt, Probability, Range
from t5x_like.optim.config import Joined, OptimizerConfig, Schedule

if TYPE_CHECKING:
    import jax
    import optax


@dataclasses.dataclass(frozen=True)
class Adafactor(OptimizerConfig):
    """Adafactor (Shazeer and Stern 2018, arXiv:1804.04235) as T5 used it, which the defaults are: no momentum.

    Its learning rate is relative to each parameter's size if ``multiply_by_parameter_scale``.

    Args:
      decay_exponent: the second moment decays by 1 - (step + 1) ** -decay_exponent.
      clip_threshold: the root mean square of each parameter's update, before the learning rate, is clipped to this.
      eps1: constant added to squared gradients.
      eps2: least size of a parameter for its step.
      min_dim_factored: least size of two dimensions whose second moment is kept as a row and a column.
      multiply_by_parameter_scale: whether updates are proportional to max(root mean square of the parameter, eps2).
    """

    learning_rate: NonNegativeFloat = 0.01
    schedule: Schedule | Joined = Schedule("rsqrt", hold=10_000)
    decay_exponent: Probability = 0.8
    clip_threshold: NonNegativeFloat = 1.0
    eps1: Annotated[float, Range(1e-30, 1, "from 1e-30 to 1")] = 1e-30  # a share of less is 0 in float32
    eps2: NonNegativeFloat = 1e-3
    min_dim_factored: PositiveInt = 128
    multiply_by_parameter_scale: bool = True

    def transformation(self, context):
        return context.descend(scale_by_adafactor(self, context.specs))

    def to_check(self, state):
        return state[0]["size"] if self.clip_threshold else None  # means over all of each update


def scale_by_adafactor(config: Adafactor, specs: Tree) -> optax.GradientTransformation:
    """The direction of Adafactor, for parameters declared by ``specs``.

    State: ``row`` and ``column`` means of the squared gradient, with a dimension of 1 where a mean was taken, or all of
    it (``full``); ``count``, the number of updates made; ``size``, the summed root mean squares of
    the last directions and, where they count, of the parameters.
    """
    import jax.numpy as jnp
    import optax

    specs = flatten(specs)
    factored = {path: factored_dimensions(config, spec) for path, spec in specs.items()}

    def init(params):
        kept: dict[str, dict] = {"row": {}, "column": {}, "full": {}}
        for path, dimensions in factored.items():
            gone = {"full": None} if dimensions is None else {"row": dimensions[1], "column": dimensions[0]}
            for name, mean in gone.items():
                shape = [1 if d == mean else n for d, n in enumerate(specs[path].shape)]
                kept[name][path] = jnp.zeros(shape, jnp.float32)
        trees = {name: unflatten(leaves) for name, leaves in kept.items()}
        return {"count": jnp.zeros((), jnp.int32), "size": jnp.zeros((), jnp.float32), **trees}

    def update(updates: Tree, state: Any, params: Any = None):
        decay = 1.0 - (state["count"] + 1).astype(jnp.float32) ** -config.decay_exponent
        old = {name: flatten(state[name]) for name in ("row", "column", "full")}
        new: dict[str, dict] = {name: {} for name in old}
        directions, size, params = {}, jnp.float32(0), flatten(params)
        for path, gradient in flatten(updates).items():
            kept = {name: leaves[path] for name, leaves in old.items() if path in leaves}
            directions[path], kept = _direction(config, factored[path], gradient, kept, decay)
            if config.clip_threshold:
                root = root_mean_square(directions[path], specs[path].stacked)
                directions[path] = directions[path] / jnp.maximum(1.0, root / config.clip_threshold)
                size += jnp.sum(root)
            if config.multiply_by_parameter_scale:
                scale = jnp.maximum(root_mean_square(params[path], specs[path].stacked), config.eps2)
                directions[path] *= scale
                size += jnp.sum(scale)
            for name, array in kept.items():
                new[name][path] = array
        trees = {name: unflatten(leaves) for name, leaves in new.items()}
        return unflatten(directions), {"count": state["count"] + 1, "size": size, **trees}

    return optax.GradientTransformation(init, update)


def factored_dimensions(config: Adafactor, spec: ParamSpec) -> tuple[int, int] | None:
    """The dimensions that make the rows and the columns of the matrix to factor: the second largest and the largest of
    one layer, the later of two equals counting as larger. None if fewer than two are ``min_dim_factored`` or more."""
    *_, rows, columns = 0, 0, *sorted(range(int(spec.stacked), len(spec.shape)), key=lambda d: (spec.shape[d], d))
    few = len(spec.shape) - spec.stacked < 2 or spec.shape[rows] < config.min_dim_factored
    return None if few else (rows, columns)


def _direction(
    config: Adafactor, dimensions: tuple[int, int] | None, gradient: jax.Array, state: dict, decay: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The gradient over the root of its second moment, and the new moments."""
    import jax
    import jax.numpy as jnp

    square = jnp.square(gradient) + config.eps1
    if dimensions is None:
        full = decay * state["full"] + (1 - decay) * square
        return gradient * jax.lax.rsqrt(full), {"full": full}
    rows, columns = dimensions
    row = decay * state["row"] + (1 - decay) * jnp.mean(square, axis=columns, keepdims=True)
    column = decay * state["column"] + (1 - decay) * jnp.mean(square, axis=rows, keepdims=True)
    # The root of each factor is taken on its own: the product of the means of squares could underflow.
    row_factor = jax.lax.rsqrt(row / jnp.mean(row, axis=rows, keepdims=True))
    return gradient * row_factor * jax.lax.rsqrt(column), {"row": row, "column": column}


def root_mean_square(x: jax.Array, stacked: bool) -> jax.Array:
    """Over the whole array, or over each layer of a stacked one; of the rank of ``x``."""
    import jax.numpy as jnp

    return jnp.sqrt(jnp.mean(jnp.square(x), axis=tuple(range(int(stacked), x.ndim)), keepdims=True))
