"""One optimizer over a whole tree of parameters: patterns, clipping, an optax transformation, the moving average.

Parameters are nested dicts of arrays, and so is the state, with optax's names; frozen parameters are unknown to the
transformation. Must not know which optimizer, the loss, meshes, or what a batch is; the caller shards the state by
`Optimizer.state_axes`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import SequenceKey, keystr

from t5x_like.arrays.spec import ParamSpec
from t5x_like.arrays.trees import Tree, flatten, join, map_named, split, unflatten
from t5x_like.core.errors import refuse
from t5x_like.core.ranges import FLOAT32_TINY
from t5x_like.optim.config import NO_DECAY, Joined, OptimizerConfig
from t5x_like.optim.context import Context
from t5x_like.optim.masks import matching
from t5x_like.optim.schedules import learning_rate

EMA = "params_ema"  # the moving average of the parameters in the state


@dataclasses.dataclass(frozen=True)
class Row:
    """Treatment of one parameter: whether it decays, whether it is frozen, the factor of its learning rate, and the
    bytes of its state."""

    path: str
    shape: tuple[int, ...]
    decay: bool
    frozen: bool
    factor: float
    state_bytes: int


class Optimizer:
    """Built by `make_optimizer`; holds no arrays. See there for errors.

    Attributes:
      trained: paths of the parameters that are differentiated: weights that are not frozen.
      learning_rate: int32 step, counting from 0, to the float32 learning rate.
    """

    def __init__(self, config: OptimizerConfig, specs: Tree, total_steps: int):
        self._config = config
        self._specs: dict[str, ParamSpec] = flatten(specs)
        frozen = matching("optimizer.frozen", config.frozen, self._specs)
        no_decay = matching("optimizer.no_decay", config.no_decay, self._specs, optional=NO_DECAY)
        refuse(len(frozen) == len(self._specs), "optimizer.frozen", f"{config.frozen} freezes every parameter",
               "patterns that leave some")
        self.trained = frozenset({path for path, spec in self._specs.items() if spec.update is None} - frozen)
        self.learning_rate = learning_rate(config, total_steps)
        self._decay = {path: 0.0 if path in no_decay else config.weight_decay for path in self._specs}
        self._factors = _factors(config, self._specs)
        trained, _ = split(specs, self.trained)
        context = Context(trained, self.learning_rate, self._decay, self._factors)
        self._transformation = optax.with_extra_args_support(config.transformation(context))
        refuse(bool(config.rates or config.weight_decay) and not context.complete,
               "optimizer.rates" if config.rates else "optimizer.weight_decay",
               f"{type(config).__name__}.transformation makes no use of it", "none",
               "end it with context.descend(direction) or context.finish(transformation)")
        params = map_named(lambda _, spec: jax.ShapeDtypeStruct(spec.shape, jnp.float32), trained)
        with jax.numpy_dtype_promotion("standard"):
            state = jax.eval_shape(self._transformation.init, params)
        leaves, self._structure = jax.tree.flatten_with_path(state)
        self._names = _names([path for path, _ in leaves])
        self._state: dict[str, Any] = dict(zip(self._names, (leaf for _, leaf in leaves), strict=True))
        if config.ema:
            self._state |= {f"{EMA}/{path}": leaf for path, leaf in flatten(params).items()}
        owners = {name: [path for path in self._specs if f"/{path}/" in f"/{name}/"] for name in self._state}
        self._owners = {name: max(paths, key=len, default=None) for name, paths in owners.items()}

    def init(self, params: Tree) -> dict[str, Any]:
        """The state before the first update, usable inside jit: an array such as ``mu/encoder/.../kernel`` belongs to
        the parameter that its path ends with."""
        self._check_names(params)
        trained = _float32(split(params, self.trained)[0])
        with jax.numpy_dtype_promotion("standard"):  # which optax needs
            state = self._named(self._transformation.init(trained))
        # Copies, since the parameters are donated to the step together with the state.
        return state | ({EMA: jax.tree.map(jnp.copy, trained)} if self._config.ema else {})

    def state_axes(self) -> dict[str, Any]:
        """The logical axes of each array of the state (a tuple of names or None), in the structure `init` gives."""
        owner = {name: self._specs[path] if path is not None else None for name, path in self._owners.items()}
        return unflatten({name: kept_axes(owner[name], leaf.shape) for name, leaf in self._state.items()})

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
          New parameters, new state, and scalars: float32 ``learning_rate`` and ``gradient_norm`` (before clipping, over
          the trained parameters), bool ``finite`` (whether the gradients, the new parameters and the new state are; a
          single number of the state that was infinite before may stay so).
        """
        self._check_names(params)
        (trained, frozen), (grads, _) = split(params, self.trained), split(grads, self.trained)
        grads, whole = _float32(grads), _float32(trained)
        norm = jnp.sqrt(sum((jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)), start=jnp.float32(0)))
        if clip := self._config.clip_norm:
            scale = clip / jnp.maximum(norm, max(clip, FLOAT32_TINY))
            grads = jax.tree.map(lambda g: g * scale, grads)
        with jax.numpy_dtype_promotion("standard"):
            change, inner = self._transformation.update(grads, self._unnamed(state), whole, step=step)
            new = jax.tree.map(jnp.add, whole, change)
        new_state = self._named(inner)
        if self._config.ema:
            count = step.astype(jnp.float32)
            decay = jnp.minimum(self._config.ema, (1 + count) / (10 + count))
            new_state[EMA] = jax.tree.map(lambda average, p: average + (1 - decay) * (p - average), state[EMA], new)
        new = jax.tree.map(lambda old, p: p.astype(old.dtype), trained, new)
        checked = None if _may_overflow(self._config) else self._config.to_check(inner)
        checked = (new, _once_finite(new_state, state)) if checked is None else checked
        total = sum(jnp.sum(leaf, dtype=jnp.float32) for leaf in jax.tree.leaves(checked))
        finite = jnp.isfinite(norm + total)  # sums, as the norm is: devices add up all of them at once
        info = {"learning_rate": self.learning_rate(step), "gradient_norm": norm, "finite": finite}
        return join(new, frozen), new_state, info

    def eval_params(self, params: Tree, state: dict[str, Any]) -> Tree:
        """Parameters for evaluation, sampling and export: the moving average if there is one, else the optimizer's
        choice (schedule-free's average), else ``params`` themselves; in the dtype of the parameters."""
        trained, frozen = split(params, self.trained)
        with jax.numpy_dtype_promotion("standard"):
            found = state[EMA] if self._config.ema else self._config.eval_params(trained, self._unnamed(state))
        if found is trained:
            return params
        return join(jax.tree.map(lambda p, e: e.astype(p.dtype), trained, found), frozen)

    def table(self) -> list[Row]:
        """Treatment of each parameter, in the order of the declarations."""
        sizes = dict.fromkeys(self._specs, 0)
        for name, leaf in self._state.items():
            if (owner := self._owners[name]) is not None:
                sizes[owner] += leaf.size * leaf.dtype.itemsize
        return [
            Row(path, spec.shape, bool(self._decay[path]) and path in self.trained, path not in self.trained,
                self._factors[path], sizes[path])
            for path, spec in self._specs.items()
        ]  # fmt: skip

    def _named(self, state: optax.OptState) -> dict[str, Any]:
        return unflatten(dict(zip(self._names, jax.tree.leaves(state), strict=True)))

    def _unnamed(self, state: dict[str, Any]) -> optax.OptState:
        leaves = flatten(state)
        return jax.tree.unflatten(self._structure, [leaves[name] for name in self._names])

    def _check_names(self, params: Tree) -> None:
        if odd := sorted(flatten(params).keys() ^ self._specs.keys()):
            raise ValueError(f"params and their declarations differ in {', '.join(odd)}")


def make_optimizer(config: OptimizerConfig, specs: Tree, total_steps: int) -> Optimizer:
    """The optimizer of a run.

    Args:
      config: config of the optimizer.
      specs: declarations of all parameters, a nested dict of `ParamSpec`.
      total_steps: number of updates of the run, for schedules with an end.

    Raises:
      UserError: a schedule that does not fit into the run; a pattern that matches no parameter or freezes all of them;
        an optimizer that optax does not have, or that cannot be used so.
    """
    return Optimizer(config, specs, total_steps)


def kept_axes(spec: ParamSpec | None, shape: tuple[int, ...]) -> tuple[str | None, ...]:
    """The axes of a parameter at the dimensions that an array of ``shape`` has of it: where it has as many, at those of
    equal size; else where sizes tell which those are. Layout only: a wrong guess costs time and changes no number."""
    if spec is None:
        return (None,) * len(shape)
    if len(shape) == len(spec.shape):
        return tuple(a if n == whole else None for a, n, whole in zip(spec.axes, shape, spec.shape, strict=True))
    ways = itertools.combinations(range(len(spec.shape)), len(shape))
    found = [way for way in ways if [spec.shape[d] for d in way] == [*shape]]
    choices = [{way[i] for way in found} for i in range(len(shape))]
    return tuple(spec.axes[choice.pop()] if len(choice) == 1 else None for choice in choices)


def _names(paths: list[Any]) -> list[str]:
    """Names of the arrays of a state: optax's, without places in tuples unless two would be one."""
    kept = [tuple(key for key in path if not isinstance(key, SequenceKey)) for path in paths]
    short = [keystr(path, simple=True, separator="/") for path in kept]
    inner = {name[:cut] for name in short for cut in range(len(name)) if name[cut] == "/"}
    if len({*short}) == len(short) and not inner & {*short, ""} and all(short):
        return short
    return [keystr(path, simple=True, separator="/") or "state" for path in paths]


def _factors(config: OptimizerConfig, paths: Iterable[str]) -> dict[str, float]:
    found = dict.fromkeys(paths, 1.0)
    for pattern, factor in config.rates:
        for path in matching("optimizer.rates", (pattern,), found):
            found[path] *= factor
    return found


def _may_overflow(config: OptimizerConfig) -> bool:
    """Whether the learning rate is so high that finite directions may give parameters that are not."""
    schedules = config.schedule.schedules if isinstance(config.schedule, Joined) else (config.schedule,)
    factors = [max(1.0, factor) for _, factor in config.rates]
    rate = config.learning_rate * max(each.peak for each in schedules) * math.prod(factors)
    return rate > 1e3 or rate * config.weight_decay >= 2


def _once_finite(state: Tree, before: Tree) -> list[jax.Array]:
    """The numbers of a state that must be finite: not a single one that was infinite before, as a least loss begins."""
    pairs = zip(jax.tree.leaves(state), jax.tree.leaves(before), strict=True)
    return [jnp.where(jnp.isfinite(old), new, 0) if new.size == 1 else new
            for new, old in pairs if jnp.issubdtype(new.dtype, jnp.floating)]  # fmt: skip


def _float32(tree: Tree) -> Tree:
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)
