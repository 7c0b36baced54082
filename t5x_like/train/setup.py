"""A run's model, optimizer and loss without arrays, and the state of training, initialized where it is sharded.

``Setup.bind`` is the one seam between stored and used parameters. Must not know files or batches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_like.arrays.keys import named
from t5x_like.arrays.sums import Pairs
from t5x_like.arrays.trees import Tree, map_named
from t5x_like.layers.param import abstract, initialize
from t5x_like.losses import Loss, TokenLoss, stacked
from t5x_like.models.adapters import with_adapters
from t5x_like.models.transformer import Batch, make_model
from t5x_like.optim.optimizer import Optimizer, make_optimizer
from t5x_like.sharding.mesh import Placement
from t5x_like.train.config import Run
from t5x_like.train.skips import Skips

# params, optimizer: nested dicts of arrays; step: int32, the number of steps made; skipped, spikes: what ``Skips``
# counts; halted: whether too many updates in a row were left out, after which no step counts: the loop reads it later.
State = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
    """What a step needs besides state and batch: enough to plan, initialize, restore and compile.

    Attributes:
      structure: the model without its parameters.
      specs: the parameters' declarations.
      optimizer: the optimizer; only its ``trained`` paths are differentiated.
      loss: the loss to minimize.
      micro_batches: number of micro-batches of a batch.
      seed: seed of dropout.
      conversions: functions from parameters to parameters, applied in order by ``bind``.
      skips: updates that are left out.
    """

    structure: nnx.GraphDef
    specs: Tree
    optimizer: Optimizer
    loss: Loss
    micro_batches: int = 1
    seed: int = 0
    conversions: tuple[Callable[[Tree], Tree], ...] = ()
    skips: Skips = Skips()

    def bind(self, params: Tree) -> Any:
        """The model with its used parameters: the stored ones after all ``conversions`` (a cast, LoRA)."""
        for convert in self.conversions:
            params = convert(params)
        return nnx.merge(self.structure, params)

    def measure(self, model: Any, batch: Batch) -> Pairs:
        """name: [2], (sum, weight) of what the loss measures on one batch, without dropout."""
        return stacked(self.loss.measured()(model, batch, None))

    def eval_params(self, state: State) -> Tree:
        """Stored parameters for evaluation, sampling and export: the optimizer's choice if it has one (an average over
        updates, say). ``state`` is whole, or what ``eval_state`` names."""
        if "optimizer" not in state:
            return state["params"]
        return self.optimizer.eval_params(state["params"], state["optimizer"])

    def eval_state(self, placement: Placement) -> State:
        """The part of ``abstract_state`` that ``eval_params`` reads: without the optimizer's state where it does not
        change what is evaluated."""
        state = self.abstract_state(placement)
        params, optimizer = state["params"], state["optimizer"]
        traced = jax.make_jaxpr(lambda o, p: self.eval_params({"params": p, "optimizer": o}))(optimizer, params).jaxpr
        read = {id(v) for v in traced.outvars} | {id(v) for equation in traced.eqns for v in equation.invars}
        needed = any(id(v) in read for v in traced.invars[: len(jax.tree.leaves(optimizer))])
        return {"params": params} | ({"optimizer": optimizer} if needed else {})

    def abstract_state(self, placement: Placement) -> State:
        """ShapeDtypeStructs of the whole state with their shardings. Allocates nothing."""
        params = abstract(self.specs, placement.of(self.specs))

        def place(path: str, array: jax.ShapeDtypeStruct, names: tuple[str | None, ...]) -> jax.ShapeDtypeStruct:
            sharding = placement.sharding(names, array.shape, path)
            return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)

        optimizer = map_named(place, jax.eval_shape(self.optimizer.init, params), self.optimizer.state_axes())
        counts = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=placement.replicated),
            jax.eval_shape(self._counts),
        )
        return {"params": params, "optimizer": optimizer, **counts}

    def initial_state(self, placement: Placement, seed: int) -> State:
        """The state before the first update; every array is computed on the devices that keep it."""
        key = named(jax.random.key(seed), "params")
        return self.completed(placement, {"params": initialize(self.specs, key, placement.of(self.specs))})

    def completed(self, placement: Placement, state: State) -> State:
        """A state with what it has beside ``params``, and the rest as before the first update."""
        shardings = jax.tree.map(lambda a: a.sharding, self.abstract_state(placement))
        shardings = {name: each for name, each in shardings.items() if name not in state}

        def rest(params: Tree) -> State:
            initial = {"optimizer": self.optimizer.init(params), **self._counts()}
            return {name: initial[name] for name in shardings}

        return {**state, **jax.jit(rest, out_shardings=shardings)(state["params"])} if shardings else state

    def _counts(self) -> State:
        return {"step": jnp.zeros((), jnp.int32), "halted": jnp.zeros((), jnp.bool_), **self.skips.initial()}


def make_setup(run: Run) -> Setup:
    """Model, optimizer and loss of a run. Needs no device."""
    structure, specs = make_model(run.model)
    specs, conversions = with_adapters(run.adapters, specs)
    train = run.train
    loss = run.objective.loss(TokenLoss(train.z_loss, train.label_smoothing, train.logits_chunk))
    frozen = (*run.optimizer.frozen, *(pattern for adapter in run.adapters for pattern in adapter.frozen))
    optimizer = make_optimizer(dataclasses.replace(run.optimizer, frozen=frozen), specs, train.steps)
    skips = Skips(train.skipped_in_a_row, train.spike_sigma, train.spike_window)
    return Setup(structure, specs, optimizer, loss, train.micro_batches, train.seed, conversions, skips)
