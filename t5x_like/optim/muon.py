"""Muon (Jordan 2024): momentum, made orthogonal by Newton-Schulz iteration, for matrices; Adam for the rest.

A matrix is a kernel: a parameter of two dimensions or more that multiplies activations and does not face the
vocabulary. Embeddings, position tables, the output head, norms and biases are no matrices.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Annotated, Any, Literal

from t5x_like.arrays.spec import ParamSpec
from t5x_like.arrays.trees import flatten, map_named
from t5x_like.core.ranges import NonNegativeFloat, PositiveFloat, Range
from t5x_like.optim.adafactor import root_mean_square
from t5x_like.optim.config import Decay, OptimizerConfig


@dataclasses.dataclass(frozen=True)
class Muon(OptimizerConfig):
    """Muon for matrices (arXiv:2502.16982 has the scales), each layer of a stacked one by itself; AdamW for the rest.

    Args:
      scale: the size of a matrix's update before the learning rate, n rows and m columns. ``parameter``: its root mean
        square is max(that of the parameter, ``least_scale``), as Adafactor's, and likewise for the rest; for models
        such as T5 whose parameters differ much in size. ``rms``: 0.2, about that of AdamW, so that AdamW's learning
        rates fit. ``spectral``: singular values near max(1, m / n) ** 0.5, as first published.
      adam_factor: the learning rate of what is no matrix, as a multiple of ``learning_rate``.
      beta: decay of the momentum.
      iterations: of Newton-Schulz.
      b1, b2, eps: AdamW's, for what is no matrix.
      least_scale: the least size a parameter counts with.
    """

    learning_rate: NonNegativeFloat = 0.02
    scale: Literal["parameter", "rms", "spectral"] = "parameter"
    adam_factor: PositiveFloat = 2.5
    beta: Decay = 0.95
    iterations: Annotated[int, Range(1, 100, "1 to 100")] = 5
    b1: Decay = 0.9
    b2: Decay = 0.95
    eps: PositiveFloat = 1e-8
    least_scale: NonNegativeFloat = 1e-3

    def transformation(self, context):
        import jax
        import jax.numpy as jnp
        import optax

        number = optax.contrib.MuonDimensionNumbers(-2, -1)
        # As many as there are arrays: optax leaves a gap for each parameter that is no matrix.
        numbers = functools.partial(jax.tree.map, lambda _: number)
        muon = optax.contrib.scale_by_muon(beta=self.beta, ns_steps=self.iterations, weight_dimension_numbers=numbers)
        adam = optax.scale_by_adam(self.b1, self.b2, self.eps)
        kinds = map_named(lambda _, spec: "matrix" if is_matrix(spec) else "rest", context.specs)
        rest = {path: self.adam_factor for path, kind in flatten(kinds).items() if kind == "rest"}

        def sized(path: str, update, parameter, spec: ParamSpec):
            rows, columns = spec.shape[-2:] if is_matrix(spec) else (1, 1)
            unit = update * math.sqrt(max(rows, columns))  # a root mean square of 1
            if self.scale == "parameter":
                return unit * jnp.maximum(root_mean_square(parameter, spec.stacked), self.least_scale)
            if not is_matrix(spec):
                return update
            return 0.2 * unit if self.scale == "rms" else update * math.sqrt(max(1.0, columns / rows))

        def sizes(updates: Any, params: Any):
            return map_named(sized, updates, params, context.specs)

        direction = optax.partition({"matrix": muon, "rest": adam}, kinds)
        return context.descend(optax.chain(direction, optax.stateless(sizes)), rest)


def is_matrix(spec: ParamSpec) -> bool:
    """Whether Muon takes it."""
    return len(spec.shape) - spec.stacked >= 2 and spec.fan > 0 and "vocab" not in spec.axes
