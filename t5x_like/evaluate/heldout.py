"""Exact means over a held-out split: sums and weights are added over all batches and divided once at the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp

from t5x_like.arrays.trees import Tree
from t5x_like.models.transformer import Batch
from t5x_like.ops.losses import LossSums


def evaluate(
    step: Callable[[Tree, LossSums, Batch], LossSums],
    params: Tree,
    batches: Iterable[Batch],
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Means over all targets of all batches; None if ``stop`` said so before the end.

    Args:
      step: adds the sums of one batch; see ``train.step.evaluation_step``.
      params: the parameters.
      batches: on the devices already. Nothing is read back before the last one, so the device never waits.
      stop: asked before each batch.

    Returns:
      loss (nats per target), perplexity, accuracy, targets (how many); empty if not one target has a weight.
    """
    total = LossSums(*(jnp.zeros((), jnp.float32) for _ in LossSums._fields))
    for batch in batches:
        if stop():
            return None
        total = step(params, total, batch)
    sums = {name: float(value) for name, value in jax.device_get(total)._asdict().items()}
    weight = sums["weight"]
    if not weight:
        return {}
    loss = sums["nll"] / weight
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "accuracy": sums["correct"] / weight,
        "targets": sums["weight"],
    }
