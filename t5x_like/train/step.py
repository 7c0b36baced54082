"""The train step: a pure function of state and batch, on one screen.

Must not know files, clocks or what a token means.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from t5x_like.arrays.keys import named
from t5x_like.arrays.sums import Pairs
from t5x_like.arrays.trees import Tree, flatten, join, split, unflatten
from t5x_like.losses import STATE, Sums, stacked
from t5x_like.models.transformer import Batch
from t5x_like.sharding.mesh import Placement, current_placement, use
from t5x_like.sharding.reduction import data_parallel_gradient
from t5x_like.train.setup import Setup, State


def train_step(setup: Setup, state: State, batch: Batch) -> tuple[State, Pairs]:
    """One update with the gradient of the loss's sum / weight over the whole batch.

    An update that is not finite, or a spike, is left out: the step counts, parameters and optimizer stay (``skips``).
    At the last that may be left out in a row the whole state stays as it was before that step, whatever comes after,
    ``halted`` is 1, and the loop stops. The metrics are the loss's sums and scalars of weight 1: the optimizer's,
    ``made`` (whether the update was), ``halted``, ``skipped`` (updates left out so far).
    """
    step, params = state["step"], state["params"]
    sums, gradient, weight = mean_gradient(setup, params, batch, step)
    loss, _ = sums["loss"]
    new_params, new_optimizer, info = setup.optimizer.update(gradient, state["optimizer"], params, step)
    finite = jnp.isfinite(loss) & info["finite"]
    made, counts = setup.skips.judge(state, loss / weight, info["gradient_norm"], finite)
    halted = state["halted"] | (counts["skipped"][1] >= setup.skips.in_a_row)
    new = {"params": update_state(setup, new_params, sums), "optimizer": new_optimizer}
    new = _where(made & ~halted, new, state) | _where(~halted, counts | {"step": step + 1}, state) | {"halted": halted}
    info |= {"finite": finite, "made": made, "halted": halted, "skipped": counts["skipped"][0]}
    return new, stacked(sums | {name: (value, 1.0) for name, value in info.items()})


def mean_gradient(setup: Setup, params: Tree, batch: Batch, step: jax.Array) -> tuple[Sums, Tree, jax.Array]:
    """(sums of the loss, its gradient, the weight that this was divided by) over the whole batch of a step."""
    key = jax.random.fold_in(named(jax.random.key(setup.seed), "dropout"), step)
    gradients = data_parallel_gradient(functools.partial(sums_and_gradient, setup), current_placement())
    sums, gradient = gradients(params, batch, key)
    _, weight = sums["loss"]
    weight = jnp.where(weight == 0, 1.0, weight)  # a batch without targets has gradient 0, not NaN
    return sums, jax.tree.map(lambda g: g / weight, gradient), weight


def _where(chosen: jax.Array, new: Tree, old: Tree) -> Tree:
    """``new`` if ``chosen``, else those arrays of ``old``."""
    return jax.tree.map(lambda a, b: jnp.where(chosen, a, b), new, {name: old[name] for name in new})


def sums_and_gradient(setup: Setup, params: Tree, batch: Batch, key: jax.Array) -> tuple[Sums, Tree]:
    """Sums of the loss over a batch, and the gradient of ``loss`` in the structure of the trained parameters.

    Both are added over micro-batches and divided once, so that the update equals that of the undivided batch, however
    unequal the weights are.
    """
    trained, frozen = split(params, setup.optimizer.trained)

    def micro_gradient(index: jax.Array | int, rows: Batch) -> tuple[Sums, Tree]:
        def loss(trained: Tree) -> tuple[jax.Array, Sums]:
            sums = setup.loss(setup.bind(join(trained, frozen)), rows, jax.random.fold_in(key, index))
            return sums["loss"][0], sums

        (_, sums), gradient = jax.value_and_grad(loss, has_aux=True)(trained)
        return sums, gradient

    if setup.micro_batches == 1:
        return micro_gradient(0, batch)
    parts = split_rows(batch, setup.micro_batches)
    shapes = jax.eval_shape(lambda: micro_gradient(0, jax.tree.map(lambda a: a[0], parts)))
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def add(total, micro):
        return jax.tree.map(jnp.add, total, micro_gradient(*micro)), None

    return jax.lax.scan(add, zero, (jnp.arange(setup.micro_batches), parts))[0]


def update_state(setup: Setup, params: Tree, sums: Sums) -> Tree:
    """The parameters, those without gradient updated once by the statistics of the whole batch."""
    specs, leaves = flatten(setup.specs), flatten(params)
    for path in (path for path, spec in specs.items() if spec.update is not None):
        update = jax.vmap(specs[path].update) if specs[path].stacked else specs[path].update
        leaves[path] = update(leaves[path], sums[f"{STATE}{path}"][0])
    return unflatten(leaves)


def split_rows(batch: Batch, count: int) -> dict[str, jax.Array]:
    """[B, ...] as [count, B / count, ...], row r going to micro-batch r mod count: then each device finds its share of
    every micro-batch among the rows it already has."""
    return {k: jnp.swapaxes(a.reshape(a.shape[0] // count, count, *a.shape[1:]), 0, 1) for k, a in batch.items()}


def compile_step(setup: Setup, placement: Placement) -> Callable[[State, Batch], tuple[State, Pairs]]:
    """``train_step`` for one placement, compiled at its first call; the state is donated."""

    def step(state: State, batch: Batch) -> tuple[State, Pairs]:
        with use(placement):  # read while tracing, by ``constrain``
            return train_step(setup, state, batch)

    return jax.jit(step, donate_argnums=0)
