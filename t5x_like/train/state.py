"""The state of training: parameters, optimizer and step as plain dicts of arrays, born where they live.

Must not know files or batches.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_like.arrays.keys import named
from t5x_like.arrays.trees import Tree, map_named
from t5x_like.layers.param import abstract, initialize
from t5x_like.models.transformer import make_model
from t5x_like.ops.losses import LossConfig
from t5x_like.optim.optimizer import make_optimizer
from t5x_like.sharding.mesh import Placement
from t5x_like.train.config import Run
from t5x_like.train.step import State, StepParts


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
    """A run's model and optimizer without any array: enough to plan, initialize, restore and compile."""

    parts: StepParts
    specs: Tree

    @property
    def structure(self) -> nnx.GraphDef:
        return self.parts.structure

    def abstract_params(self, placement: Placement) -> Tree:
        """ShapeDtypeStructs of the parameters with their shardings."""
        return abstract(self.specs, placement.of(self.specs))

    def abstract_state(self, placement: Placement) -> State:
        """ShapeDtypeStructs of the whole state with their shardings. Allocates nothing."""
        params = self.abstract_params(placement)
        shapes = jax.eval_shape(self.parts.optimizer.init, params)
        axes = self.parts.optimizer.state_axes()

        def place(path: str, array: jax.ShapeDtypeStruct, names: tuple[str | None, ...]) -> jax.ShapeDtypeStruct:
            sharding = placement.sharding(names, array.shape, path)
            return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)

        return {
            "params": params,
            "optimizer": map_named(place, shapes, axes),
            "step": jax.ShapeDtypeStruct((), jnp.int32, sharding=placement.replicated),
            "halted": jax.ShapeDtypeStruct((), jnp.bool_, sharding=placement.replicated),
        }

    def initial_state(self, placement: Placement, seed: int) -> State:
        """The state before the first update; every array is computed on the devices that keep it."""
        template = self.abstract_state(placement)
        shardings = jax.tree.map(lambda a: a.sharding, template)
        params = initialize(self.specs, named(jax.random.key(seed), "params"), shardings.pop("params"))

        def rest(params: Tree) -> State:
            return {
                "optimizer": self.parts.optimizer.init(params),
                "step": jnp.zeros((), jnp.int32),
                "halted": jnp.zeros((), jnp.bool_),
            }

        return {"params": params, **jax.jit(rest, out_shardings=shardings)(params)}


def make_setup(run: Run) -> Setup:
    """Model, optimizer and loss of a run. Needs no device."""
    structure, specs = make_model(run.model)
    optimizer = make_optimizer(run.optimizer, specs, run.train.steps)
    loss = LossConfig(run.train.z_loss, run.train.label_smoothing, run.train.logits_chunk)
    ahead = run.objective.future_weight
    return Setup(StepParts(structure, optimizer, loss, run.train.micro_batches, run.train.seed, ahead), specs)
