"""The argument of a config's ``transformation``: declarations of the trained parameters, their rates and decay.

Must not know any one optimizer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from t5x_like.arrays.trees import Tree, map_named


@dataclasses.dataclass
class Context:
    """One run's parameters, seen by its optimizer.

    Attributes:
      specs: nested dict of the declarations (`ParamSpec`) of the trained parameters.
      learning_rate: function from int32 step, counted from 0, to the float32 learning rate.
      weight_decay: parameter path to its weight decay; 0 is none.
      factors: parameter path to the factor of its learning rate.
      complete: whether `descend` or `finish` has applied weight decay and factors.
    """

    specs: Tree
    learning_rate: Callable[[jax.Array], jax.Array]
    weight_decay: Mapping[str, float]
    factors: Mapping[str, float]
    complete: bool = False

    def descend(
        self, direction: optax.GradientTransformation, factors: Mapping[str, float] | None = None
    ) -> optax.GradientTransformation:
        """``direction``, then weight decay and each parameter's learning rate: p - rate * (direction + decay * p).

        Args:
          direction: a transformation that ends before the learning rate, such as ``optax.scale_by_adam()``.
          factors: more factors of learning rates, by parameter path.
        """

        def one(path: str, update: jax.Array, param: jax.Array, rate: jax.Array) -> jax.Array:
            factor, decay = self.factors[path] * (factors or {}).get(path, 1.0), self.weight_decay[path]
            return (rate if factor == 1 else rate * factor) * (update + decay * param if decay else update)

        return optax.chain(direction, self._at_rate(one))

    def finish(self, whole: optax.GradientTransformation) -> optax.GradientTransformation:
        """``whole``, which has the learning rate in it, then weight decay and the factors of learning rates."""

        def one(path: str, update: jax.Array, param: jax.Array, rate: jax.Array) -> jax.Array:
            factor, decay = self.factors[path], self.weight_decay[path]
            return (update if factor == 1 else update * factor) + (rate * factor * decay * param if decay else 0.0)

        return optax.chain(whole, self._at_rate(one))

    def try_out(self, transformation: optax.GradientTransformation) -> None:
        """Traces a first update; raises whatever the transformation raises."""
        params = map_named(lambda _, spec: jax.ShapeDtypeStruct(spec.shape, jnp.float32), self.specs)
        with jax.numpy_dtype_promotion("standard"):
            state = jax.eval_shape(transformation.init, params)
            jax.eval_shape(transformation.update, params, state, params)

    def _at_rate(self, one: Callable[..., jax.Array]) -> optax.GradientTransformationExtraArgs:
        self.complete = True

        def update(updates: Tree, state: Any, params: Any = None, **extra: Any):
            rate = -self.learning_rate(extra["step"])
            return map_named(lambda path, u, p: one(path, u, p, rate), updates, params), state

        return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)

