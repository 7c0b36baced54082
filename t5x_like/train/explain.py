"""A step replayed from the checkpoint before it: the loss and gradient of each row of its batch, and of each parameter.

The replay is the training's own compiled step on the training's own batches, so that on the same devices it gives the
same bits; ``Explained.proofs`` says by what that is known. Writes nothing. Must not know how it is shown.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5x_like.arrays.trees import Tree, flatten, join, split
from t5x_like.checkpoint import digests
from t5x_like.checkpoint.checkpoints import Checkpoints
from t5x_like.core.errors import refuse
from t5x_like.core.ranges import PositiveInt
from t5x_like.core.structure import structure
from t5x_like.input_pipeline.batches.features import Batch as HostBatch
from t5x_like.job.join import join_processes
from t5x_like.models.transformer import Batch
from t5x_like.report.metrics import read_metrics
from t5x_like.sharding.mesh import Placement, use
from t5x_like.train.branch import begun_from
from t5x_like.train.config import Run
from t5x_like.train.data import Data
from t5x_like.train.directory import load_config
from t5x_like.train.feed import to_devices
from t5x_like.train.opened import on_a_mesh_that_fits, other_meshes, say
from t5x_like.train.resume import OPTIONAL, check
from t5x_like.train.setup import Setup, State
from t5x_like.train.step import compile_step, mean_gradient
from t5x_like.train.working import checkpoints_of, opened


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of the batch: the loss per target, and the norm of the part that it adds to the batch's gradient, both
    computed alone and without dropout; its documents, as (corpus, index in its training split)."""

    index: int
    loss: float
    gradient_norm: float
    targets: int
    documents: Sequence[tuple[str, int]]


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One parameter, of stacked layers that of one ``layer``: norms of its gradient (before clipping), its update, and
    itself before."""

    path: str
    layer: int | None
    gradient_norm: float
    update_norm: float
    norm: float

    @property
    def update_ratio(self) -> float:
        """Size of the update relative to the parameter; infinite for a parameter that was 0."""
        return self.update_norm / self.norm if self.norm else float(np.inf if self.update_norm else 0.0)


@dataclasses.dataclass(frozen=True)
class Explained:
    """What a step was made of.

    Attributes:
      run: the config that the step was trained with.
      data: the run's text.
      step: the step, counted from 1.
      replayed_from: number of steps made before the replay began.
      metrics: means of the step's metrics.
      batch: its whole batch, on the host.
      rows: its rows, in order.
      parameters: every parameter that is trained.
      proofs: (what was compared, whether it was the same).
    """

    run: Run
    data: Data
    step: int
    replayed_from: int
    metrics: dict[str, float]
    batch: HostBatch
    rows: list[Row]
    parameters: list[Parameter]
    proofs: list[tuple[str, bool]]


def explain_step(
    directory: str | Path, step: int, code: Sequence[str] = (), accept_changed: Sequence[str] = (), proof: bool = True,
    say: Callable[[str], None] = say,
) -> Explained:  # fmt: skip
    """Replays a step of a run. Of several processes every one makes the same call, and gets the same.

    Args:
      directory: the run's folder, or its address.
      step: the step, counted as in metrics.jsonl, from 1.
      code, accept_changed: as for ``train.directory.load_config``.
      proof: whether to train on to the next checkpoint and compare every array with it.
      say: function of a note; by default to standard error, by the first process.

    Raises:
      UserError: no such run or step; own code that may not be run; text that has changed.
    """
    structure(PositiveInt, step, "--step", text=False)
    join_processes()
    directory = opened(directory)
    with Checkpoints(checkpoints_of(directory), read_only=True) as checkpoints:
        steps = checkpoints.steps()
        after = min((each for each in steps if each >= step), default=None)
        plain = None if after is None else checkpoints.metadata(after)["config"]
        run = load_config(directory, code, accept_changed, plain=plain)
        refuse(step > run.train.steps, "--step", f"{step:,}, and the run has {run.train.steps:,} steps")
        run, placement, setup = on_a_mesh_that_fits(run, other_meshes(run.mesh), say)
        data = Data.open(run, None, say)
        state, first = _state_before(checkpoints, [each for each in steps if each < step], run, setup, placement, data)
        say(f"replaying from step {first:,}")
        train, feed = compile_step(setup, placement), _batches(data, placement, first)
        for _ in range(first, step - 1):
            state, _ = train(state, next(feed))
        batch = data.train.batch(step - 1)
        rows = _rows(setup, placement, state["params"], batch, data.train.documents_of(step - 1))
        here, before = next(feed), jax.tree.map(jnp.copy, state["params"])
        gradients = _norms_of_gradient(setup, placement)(state, here)
        state, sums = train(state, here)
        parameters = _parameters(setup, placement, gradients, before, state["params"])
        metrics = {name: float(value) / (float(weight) or 1.0) for name, (value, weight) in sums.items()}
        proofs = _recorded_loss(directory, step, metrics["loss"])
        if proof and after is not None:
            for _ in range(step, after):
                state, _ = train(state, next(feed))
            saved, found = checkpoints.digests(after), digests.of(flatten(state))
            common = [path for path in saved if path in found]  # all but counts that its version did not have
            same = all(saved[path] == found[path] for path in common)
            proofs.append((f"all arrays of the checkpoint of step {after:,}", same))
    return Explained(run, data, step, first, metrics, batch, rows, parameters, proofs)


def _state_before(
    checkpoints: Checkpoints, earlier: list[int], run: Run, setup: Setup, placement: Placement, data: Data
) -> tuple[State, int]:
    """(state, steps made) of the latest of the ``earlier`` checkpoints, or of the beginning where there is none."""
    if earlier:
        state, metadata = checkpoints.restore(setup.abstract_state(placement), max(earlier), optional=OPTIONAL)
        check(run, data, metadata)
        return setup.completed(placement, state), max(earlier)
    if run.start.from_:
        records = checkpoints.metadata().get("history", [])
        record = next((each for each in records if each["event"] == "branch"), None)
        return begun_from(run, setup, placement, record)[0], 0
    return setup.initial_state(placement, run.train.seed), 0


def _batches(data: Data, placement: Placement, first: int) -> Iterator[dict[str, jax.Array]]:
    return (to_devices(placement, data.train.batch(step), (0, 1)) for step in iter(range(first, 2**31)))


def _rows(
    setup: Setup, placement: Placement, params: Tree, batch: HostBatch, documents: Sequence[Sequence[tuple[str, int]]]
) -> list[Row]:
    """Each row by itself, so that there is one gradient at a time: every device that splits a batch has a copy of it,
    which makes no sum another but by their number."""
    ways, whole = placement.batch_ways, float(batch["weights"].sum()) or 1.0

    @functools.partial(jax.jit, out_shardings=placement.replicated)  # for every process to read
    def measure(params: Tree, rows: Batch) -> jax.Array:
        trained, frozen = split(params, setup.optimizer.trained)

        def loss(trained: Tree) -> Any:
            found, weight = setup.loss(setup.bind(join(trained, frozen)), rows, None)["loss"]
            return found, weight

        with use(placement):  # read while tracing, by ``constrain``
            (found, weight), gradient = jax.value_and_grad(loss, has_aux=True)(trained)
        square = sum(jnp.sum(jnp.square(g.astype(jnp.float32))) for g in jax.tree.leaves(gradient))
        return jnp.stack([found, weight, jnp.sqrt(square)])

    rows = []
    for index, of_row in enumerate(documents):
        alone = {name: np.repeat(array[index : index + 1], ways, axis=0) for name, array in batch.items()}
        loss, weight, norm = map(float, measure(params, to_devices(placement, alone, (0, 1))))
        targets = int(np.count_nonzero(batch["weights"][index]))
        rows.append(Row(index, loss / (weight or 1.0), norm / ways / whole, targets, of_row))
    return rows


def _norms_of_gradient(setup: Setup, placement: Placement) -> Callable[[State, Batch], dict[str, jax.Array]]:
    def norms(state: State, batch: Batch) -> dict[str, jax.Array]:
        with use(placement):
            _, gradient, _ = mean_gradient(setup, state["params"], batch, state["step"])
        return _norms(setup, gradient)

    return jax.jit(norms, out_shardings=placement.replicated)


def _norms(setup: Setup, tree: Tree) -> dict[str, jax.Array]:
    """Norm of each array by path; of stacked layers, of each layer."""
    specs = flatten(setup.specs)

    def norm(path: str, array: jax.Array) -> jax.Array:
        axes = tuple(range(1 if specs[path].stacked else 0, array.ndim))
        return jnp.sqrt(jnp.sum(jnp.square(array.astype(jnp.float32)), axis=axes))

    return {path: norm(path, array) for path, array in flatten(tree).items()}


def _parameters(
    setup: Setup, placement: Placement, gradients: dict[str, jax.Array], before: Tree, after: Tree
) -> list[Parameter]:
    @functools.partial(jax.jit, out_shardings=placement.replicated)
    def compare(before: Tree, after: Tree) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        change = jax.tree.map(lambda a, b: a.astype(jnp.float32) - b.astype(jnp.float32), after, before)
        return _norms(setup, change), _norms(setup, before)

    updates, norms = jax.device_get(compare(before, after))
    found = []
    for path, gradient in jax.device_get(gradients).items():
        of_layers = zip(*(np.atleast_1d(each) for each in (gradient, updates[path], norms[path])), strict=True)
        for layer, numbers in enumerate(of_layers):
            found.append(Parameter(path, layer if np.ndim(gradient) else None, *map(float, numbers)))
    return found


def _recorded_loss(directory: Path, step: int, loss: float) -> list[tuple[str, bool]]:
    """Whether the loss is that of metrics.jsonl, where its row is of this step alone; a skipped step has none."""
    losses = {row["step"]: row["train/loss"] for row in read_metrics(directory) if "train/loss" in row}
    if step not in losses or (step > 1 and step - 1 not in losses):
        return []
    return [(f"the loss of step {step:,} in metrics.jsonl", loss == losses[step])]
