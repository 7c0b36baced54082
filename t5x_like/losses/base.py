"""The base of losses. Must not know objectives or optimizers, nor how sums are added and divided."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from t5x_like.arrays.trees import flatten
from t5x_like.core.config import Config

if TYPE_CHECKING:
    import jax

    from t5x_like.arrays.sums import Pairs
    from t5x_like.layers.context import Out
    from t5x_like.models.transformer import Batch, Transformer

Sums = dict[str, tuple["jax.Array", "jax.Array"]]  # name: (sum, weight), float32 scalars; the mean is sum / weight
STATE = "state/"  # prefix of a parameter without gradient: the sum is its statistic, of its shape


class Loss(Config, abc.ABC, where="objective.loss"):
    """The loss of a batch; the base of the frozen dataclasses in t5x_like/losses and of a user's own."""

    def __call__(self, model: Transformer, batch: Batch, key: jax.Array | None) -> Sums:
        """Sums over one batch, or over one micro-batch of it.

        Args:
          model: model with its parameters: ``model(batch, key)`` gives activations, ``model.head()`` the projection.
          batch: arrays by name, with a leading dimension of rows.
          key: random key of dropout; None: no dropout.

        Returns:
          ``loss``, whose sum is minimized, and statistics under other names. Sums and weights of all micro-batches and
          devices are added before they are divided, each sum by its own weight. Only the sum of ``loss`` is
          differentiated.
        """
        raise TypeError(f"{type(self).__name__} has no __call__(self, model, batch, key)")

    def measured(self) -> Loss:
        """The loss that evaluation measures: this one without terms for training alone."""
        return self


def with_layers(sums: Sums, out: Out) -> Sums:
    """A loss's sums with what the model's layers gave: the mean of each of their side losses is added to ``loss``, and
    these, their metrics and their statistics go beside it.

    Args:
      sums: sums of the loss, with ``loss``.
      out: second result of ``model.run``.
    """
    import jax.numpy as jnp

    loss, weight = sums["loss"]
    for side, of_side in out.losses.values():
        loss = loss + weight * side / jnp.maximum(of_side, 1.0)
    statistics = {f"{STATE}{path}": (found, weight) for path, found in flatten(out.statistics).items()}
    return sums | {"loss": (loss, weight)} | out.losses | out.metrics | statistics


def stacked(sums: Mapping[str, tuple[Any, Any]]) -> Pairs:
    """All (sum, weight) as one float32 array, so that one array leaves the device; without statistics."""
    import jax.numpy as jnp

    from t5x_like.arrays.sums import Pairs

    shown = {name: pair for name, pair in sums.items() if not name.startswith(STATE)}
    numbers = jnp.stack([jnp.asarray(number, jnp.float32) for pair in shown.values() for number in pair])
    return Pairs(tuple(shown), numbers.reshape(-1, 2))
