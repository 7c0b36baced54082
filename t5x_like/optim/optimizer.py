"""One optimizer over a whole tree of parameters: masks, layers, clipping, learning rate, then each parameter's update.

State and parameters are nested dicts of arrays. Each layer of a stacked parameter is a parameter of its own, so that a
scanned and an unrolled model get the same updates. Must not know the loss, meshes, or what a batch is; the caller
shards the state by `Optimizer.state_axes`. A new optimizer is one file like adamw.py, one dataclass in config.py, and
one line in ``RULES`` here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from t5x_like.arrays.spec import ParamSpec
from t5x_like.arrays.trees import Tree, flatten, unflatten
from t5x_like.core.errors import UserError
from t5x_like.optim import adafactor, adamw, lion
from t5x_like.optim.config import NO_DECAY, Adafactor, AdamW, Lion, OptimizerConfig
from t5x_like.optim.masks import matching
from t5x_like.optim.schedules import learning_rate
from t5x_like.optim.slots import Slot


class Rule(Protocol):
    """What a file such as adamw.py gives: what is kept for one parameter, and one update of it."""

    def slots(self, config: Any, spec: ParamSpec, /) -> dict[str, Slot]: ...

    def update(
        self, config: Any, spec: ParamSpec, gradient: jax.Array, state: dict[str, jax.Array], parameter: jax.Array,
        learning_rate: jax.Array, step: jax.Array, weight_decay: float, /,
    ) -> tuple[jax.Array, dict[str, jax.Array]]: ...


RULES: dict[type, Rule] = {AdamW: adamw, Adafactor: adafactor, Lion: lion}


@dataclasses.dataclass(frozen=True)
class Row:
    """What one parameter gets: whether its weights decay, whether it is frozen, whether its second moment is factored,
    and the elements of float32 state kept for it."""

    path: str
    shape: tuple[int, ...]
    decay: bool
    frozen: bool
    factored: bool
    state_size: int


class Optimizer:
    """Built by `make_optimizer`; holds no arrays. See there for errors."""

    def __init__(self, config: OptimizerConfig, specs: Tree, total_steps: int):
        self._config = config
        self._rule = RULES[type(config)]
        self._specs: dict[str, ParamSpec] = flatten(specs)
        self._frozen = matching("optimizer.frozen", config.frozen, self._specs)
        self._no_decay = matching("optimizer.no_decay", config.no_decay, self._specs, optional=NO_DECAY)
        self._trained = [path for path in self._specs if path not in self._frozen]
        if not self._trained:
            raise UserError("optimizer.frozen", f"{config.frozen} freezes every parameter", "patterns that leave some")
        if config.clip_norm < 0:
            raise UserError("optimizer.clip_norm", f"{config.clip_norm}", "a norm, or 0 for no clipping")
        self.learning_rate: Callable[[jax.Array], jax.Array] = learning_rate(config, total_steps)

    @property
    def trained(self) -> frozenset[str]:
        """Paths of the parameters that are trained: only these are differentiated."""
        return frozenset(self._trained)

    def init(self, params: Tree) -> dict[str, Any]:
        """The state before the first update: ``{slot: tree}``, all zeros, float32; usable inside jit.

        Each tree has the structure of the parameters less those without that slot (the frozen; for Adafactor's ``row``
        the unfactored), so ``state["mu"]["encoder"]["layers"]...["kernel"]`` belongs to that path.

        Args:
          params: the parameters, or their shapes; only checked for having the declared names.
        """
        self._check_names(params, "params")
        return self._map_slots(
            lambda spec, slot: jnp.zeros(tuple(spec.shape[d] for d in slot.dimensions), jnp.float32)
        )

    def state_axes(self) -> dict[str, Any]:
        """The logical axes of each array of the state (a tuple of names or None), in the structure `init` gives."""
        return self._map_slots(lambda spec, slot: tuple(spec.axes[d] for d in slot.dimensions))

    def update(
        self, grads: Tree, state: dict[str, Any], params: Tree, step: jax.Array
    ) -> tuple[Tree, dict[str, Any], dict[str, jax.Array]]:
        """One update, in float32 whatever the dtype of the gradients; parameters keep their dtype.

        Args:
          grads: gradients in the structure of the parameters; those of frozen parameters are ignored and may be
          missing. state: as `init` or the last update gave it.
          params: parameters.
          step: int32 scalar, the number of updates made before.

        Returns:
          New parameters, new state, and float32 scalars ``learning_rate`` and ``gradient_norm`` (before clipping, over
          the trained parameters).
        """
        self._check_names(params, "params")
        flat_grads, flat_params = flatten(grads), flatten(params)
        flat_state = {name: flatten(tree) for name, tree in state.items()}
        gradients = {path: flat_grads[path].astype(jnp.float32) for path in self._trained}
        norm = jnp.sqrt(sum((jnp.sum(jnp.square(g)) for g in gradients.values()), start=jnp.float32(0)))
        rate = self.learning_rate(step)
        if self._config.clip_norm:
            scale = self._config.clip_norm / jnp.maximum(norm, self._config.clip_norm)
            gradients = {path: gradient * scale for path, gradient in gradients.items()}
        new_params = dict(flat_params)  # the frozen stay
        new_state: dict[str, dict[str, jax.Array]] = {name: {} for name in flat_state}
        for path, gradient in gradients.items():
            kept = {name: tree[path] for name, tree in flat_state.items() if path in tree}
            new_params[path], kept = self._update_one(path, gradient, kept, flat_params[path], rate, step)
            for name, array in kept.items():
                new_state[name][path] = array
        trees = {name: unflatten(leaves) for name, leaves in new_state.items()}
        return unflatten(new_params), trees, {"learning_rate": rate, "gradient_norm": norm}

    def table(self) -> list[Row]:
        """Who gets what, in the order of the declarations."""
        rows = []
        for path, spec in self._specs.items():
            frozen = path in self._frozen
            slots = {} if frozen else self._slots(spec)
            rows.append(Row(
                path=path,
                shape=spec.shape,
                decay=bool(self._weight_decay(path)) and not frozen,
                frozen=frozen,
                factored=any(len(slot.dimensions) < len(spec.shape) for slot in slots.values()),
                state_size=sum(_size(spec, slot) for slot in slots.values()),
            ))
        return rows

    def _weight_decay(self, path: str) -> float:
        return 0.0 if path in self._no_decay else self._config.weight_decay

    def _slots(self, spec: ParamSpec) -> dict[str, Slot]:
        """The slots of a parameter, stacked or not, as dimensions of the whole of it."""
        slots = self._rule.slots(self._config, one_layer(spec))
        if not spec.stacked:
            return slots
        return {name: Slot((0, *(d + 1 for d in slot.dimensions))) for name, slot in slots.items()}

    def _map_slots(self, function: Callable[[ParamSpec, Slot], Any]) -> dict[str, Any]:
        leaves: dict[str, dict[str, Any]] = {}
        for path in self._trained:
            for name, slot in self._slots(self._specs[path]).items():
                leaves.setdefault(name, {})[path] = function(self._specs[path], slot)
        return {name: unflatten(leaves[name]) for name in sorted(leaves)}

    def _update_one(
        self, path: str, gradient: jax.Array, state: dict[str, jax.Array], parameter: jax.Array, rate: jax.Array,
        step: jax.Array,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        spec, decay = self._specs[path], self._weight_decay(path)

        def update(
            gradient: jax.Array, state: dict[str, jax.Array], parameter: jax.Array
        ) -> tuple[jax.Array, dict[str, jax.Array]]:
            return self._rule.update(self._config, one_layer(spec), gradient, state, parameter, rate, step, decay)

        if spec.stacked:
            update = jax.vmap(update)
        new, state = update(gradient, state, parameter.astype(jnp.float32))
        return new.astype(parameter.dtype), state

    def _check_names(self, params: Tree, where: str) -> None:
        given = flatten(params)
        if given.keys() != self._specs.keys():
            odd = sorted(given.keys() ^ self._specs.keys())
            raise ValueError(f"{where} and their declarations differ in {', '.join(odd)}")


def make_optimizer(config: OptimizerConfig, specs: Tree, total_steps: int) -> Optimizer:
    """The optimizer of a run.

    Args:
      config: which, and its numbers.
      specs: the declarations of all parameters, a nested dict of `ParamSpec`.
      total_steps: how many updates the run makes, which schedules that end need.

    Raises:
      UserError: a number out of range; a pattern that matches no parameter or freezes all of them.
    """
    return Optimizer(config, specs, total_steps)


def one_layer(spec: ParamSpec) -> ParamSpec:
    """The declaration of one layer of a stacked parameter; any other as it is."""
    return dataclasses.replace(spec, shape=spec.shape[1:], axes=spec.axes[1:]) if spec.stacked else spec


def _size(spec: ParamSpec, slot: Slot) -> int:
    size = 1
    for dimension in slot.dimensions:
        size *= spec.shape[dimension]
    return size
