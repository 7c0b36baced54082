"""The train step and the evaluation step: pure functions of state and batch, each on one screen.

Must not know files, clocks or what a token means.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_like.arrays.keys import named
from t5x_like.arrays.trees import Tree
from t5x_like.models.transformer import Batch
from t5x_like.ops.losses import LossConfig, LossSums, cross_entropy
from t5x_like.optim.optimizer import Optimizer
from t5x_like.sharding.mesh import current_placement
from t5x_like.sharding.reduction import data_parallel_gradient

# params, optimizer: nested dicts of arrays; step: int32, the number of updates made; halted: whether some update was
# not finite, after which no other is made, because the loop learns of it one step later.
State = dict[str, Any]
Metrics = dict[str, jax.Array]  # float32 scalars


@dataclasses.dataclass(frozen=True, eq=False)
class StepParts:
    """What a step needs besides state and batch: nothing of it changes during a run."""

    structure: nnx.GraphDef
    optimizer: Optimizer
    loss: LossConfig
    micro_batches: int = 1
    seed: int = 0
    future_weight: float = 0.0  # of the mean loss of the model's future heads


def loss_sums(parts: StepParts, params: Tree, batch: Batch, key: jax.Array | None) -> LossSums:
    """Sums of the loss over a batch's targets; ``key`` is for dropout, None for evaluation. Future heads add to
    ``loss`` alone: all else is of the next token."""
    model = nnx.merge(parts.structure, params)
    x_BLD, head = model(batch, key), model.head()
    sums = cross_entropy(x_BLD, head, batch["targets"], batch["weights"], parts.loss)
    if parts.future_weight and model.config.future_heads:
        losses = [
            cross_entropy(y_BLD, head, *further_ahead(batch, tokens), parts.loss).loss
            for tokens, y_BLD in enumerate(model.future(x_BLD), 1)
        ]
        sums = sums._replace(loss=sums.loss + parts.future_weight * sum(losses) / len(losses))
    return sums


def further_ahead(batch: Batch, tokens: int) -> tuple[jax.Array, jax.Array]:
    """Targets and weights of the token that comes ``tokens`` after the target; weight 0 where the segment has ended."""

    def shifted(a_BL: jax.Array) -> jax.Array:
        return jnp.pad(a_BL, ((0, 0), (0, tokens)))[:, tokens:]

    segments_BL = batch.get("decoder_segments", jnp.ones_like(batch["targets"]))
    same_BL = shifted(segments_BL) == segments_BL
    return shifted(batch["targets"]), jnp.where(same_BL, shifted(batch["weights"]), 0.0)


def train_step(parts: StepParts, state: State, batch: Batch) -> tuple[State, Metrics]:
    """One update with the gradient of sum(weights * loss) / sum(weights) over the whole batch.

    With micro-batches the sums of loss, gradients and weights are added over them and divided once, so that the update
    is that of the undivided batch however unequal their numbers of targets are. An update that is not finite is not
    made, nor any after it: the state stays as it was, ``metrics["finite"]`` is 0, and the loop stops.
    """
    step, params = state["step"], state["params"]
    key = jax.random.fold_in(named(jax.random.key(parts.seed), "dropout"), step)

    gradients = data_parallel_gradient(functools.partial(sums_and_gradient, parts), current_placement())
    sums, gradient = gradients(params, batch, key)
    weight = jnp.maximum(sums.weight, 1.0)  # a batch without targets has gradient 0, not NaN
    gradient = jax.tree.map(lambda g: g / weight, gradient)
    new_params, new_optimizer, info = parts.optimizer.update(gradient, state["optimizer"], params, step)
    finite = jnp.isfinite(sums.loss) & jnp.isfinite(info["gradient_norm"])
    halted = state["halted"] | ~finite
    new = {"params": new_params, "optimizer": new_optimizer, "step": step + 1, "halted": halted}
    new_state = jax.tree.map(lambda new, old: jnp.where(halted, old, new), new, state) | {"halted": halted}
    return new_state, sums._asdict() | info | {"finite": finite.astype(jnp.float32)}


def sums_and_gradient(parts: StepParts, params: Tree, batch: Batch, key: jax.Array) -> tuple[LossSums, Tree]:
    """Sums of the loss over a batch, and the gradient of ``loss``, added over its micro-batches."""

    def micro_gradient(index: jax.Array | int, rows: Batch) -> tuple[LossSums, Tree]:
        def loss(params: Tree) -> tuple[jax.Array, LossSums]:
            sums = loss_sums(parts, params, rows, jax.random.fold_in(key, index))
            return sums.loss, sums

        (_, sums), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return sums, gradient

    if parts.micro_batches == 1:
        return micro_gradient(0, batch)
    shapes = jax.eval_shape(lambda: micro_gradient(0, jax.tree.map(lambda a: a[0], split_rows(batch, parts))))
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def add(total, micro):
        return jax.tree.map(jnp.add, total, micro_gradient(*micro)), None

    indices = jnp.arange(parts.micro_batches)
    return jax.lax.scan(add, zero, (indices, split_rows(batch, parts)))[0]


def split_rows(batch: Batch, parts: StepParts) -> dict[str, jax.Array]:
    """[B, ...] as [micro-batches, B / micro-batches, ...], row r going to micro-batch r mod count: then each device
    finds its share of every micro-batch among the rows it already has."""
    count = parts.micro_batches
    return {k: jnp.swapaxes(a.reshape(a.shape[0] // count, count, *a.shape[1:]), 0, 1) for k, a in batch.items()}


def evaluation_step(parts: StepParts, params: Tree, total: LossSums, batch: Batch) -> LossSums:
    """``total`` with the sums of one batch added; no dropout."""
    plain = dataclasses.replace(parts, loss=parts.loss._replace(z_loss=0.0, label_smoothing=0.0), future_weight=0.0)
    return jax.tree.map(jnp.add, total, loss_sums(plain, params, batch, None))
