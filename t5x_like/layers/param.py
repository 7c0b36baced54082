"""The only place that makes a parameter, and the only one that fills it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Sharding

from t5x_like.arrays.keys import named
from t5x_like.arrays.spec import Initializer, ParamSpec
from t5x_like.arrays.trees import Tree, flatten, map_named


def param(
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    init: Initializer,
    dtype: str = "float32",
    fan: int = 0,
    update: Callable[[Any, Any], Any] | None = None,
) -> nnx.Param:
    """Declares a parameter; see ``ParamSpec``. Whoever holds the merged module reads the array as ``p[...]``."""
    return nnx.Param(ParamSpec(shape, axes, init, dtype, fan, update))


def stacked(module: Any, times: int) -> Any:
    """The module with each of its parameters ``times`` times, in one array."""
    graphdef, specs = declare(module)
    return nnx.merge(graphdef, map_named(lambda _, spec: spec.stack(times), specs))


def declare(module: nnx.Module) -> tuple[nnx.GraphDef, Tree]:
    """(the module's structure, its parameters' specs as a nested dict)."""
    graphdef, state = nnx.split(module)
    return graphdef, nnx.to_pure_dict(state)


def draw(
    kind: str, shape: tuple[int, ...], stacked: bool, dtype: str, key: jax.Array, scale: float | jax.Array
) -> jax.Array:
    """The initial value of one parameter. Stacked layers each draw from a key of their own."""
    if kind == "constant":
        return jnp.full(shape, scale, dtype)
    if stacked:
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(shape[0]))
        return jax.vmap(lambda key: draw(kind, shape[1:], False, dtype, key, scale))(keys)
    return (jax.random.normal(key, shape, jnp.float32) * scale).astype(dtype)


def initialize(specs: Tree, key: jax.Array, shardings: Tree | None = None) -> Tree:
    """Arrays for all specs. Each parameter's key comes from its path, so that adding one changes no other.

    With ``shardings`` each device computes only its part of a parameter. Parameters of one shape
    and placement share a compiled function, since compiling one for the whole model takes longer than its train step.
    """
    places = {} if shardings is None else flatten(shardings)

    def place(path: str, spec: ParamSpec) -> jax.Array:
        function = _drawer(places.get(path), spec.init.kind, spec.shape, spec.stacked, spec.dtype)
        return function(named(key, path), jnp.float32(spec.init.scale))

    return map_named(place, specs)


@functools.lru_cache(maxsize=256)
def _drawer(sharding: Sharding | None, *how: Any) -> Callable[[jax.Array, jax.Array], jax.Array]:
    return jax.jit(functools.partial(draw, *how), out_shardings=sharding)


def abstract(specs: Tree, shardings: Tree | None = None) -> Tree:
    """ShapeDtypeStructs of all specs, with shardings if given; needs no devices."""
    places = {} if shardings is None else flatten(shardings)

    def shape(path: str, spec: ParamSpec) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(spec.shape, jnp.dtype(spec.dtype), sharding=places.get(path))

    return map_named(shape, specs)


def normal(scale: float) -> Initializer:
    return Initializer("normal", scale)


ONES, ZEROS = Initializer("constant", 1.0), Initializer("constant", 0.0)
