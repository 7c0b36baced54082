"""The only place that makes a parameter, and the only one that fills it."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_like.arrays.keys import named
from t5x_like.arrays.spec import Initializer, ParamSpec
from t5x_like.arrays.trees import Tree, map_named


def param(
    shape: tuple[int, ...], axes: tuple[str | None, ...], init: Initializer, dtype: str = "float32", fan: int = 0
) -> nnx.Param:
    """Declares a parameter; see ``ParamSpec``. Whoever holds the merged module reads the array as ``p[...]``."""
    return nnx.Param(ParamSpec(shape, axes, init, dtype, fan))


def declare(module: nnx.Module) -> tuple[nnx.GraphDef, Tree]:
    """(the module's structure, its parameters' specs as a nested dict)."""
    graphdef, state = nnx.split(module)
    return graphdef, nnx.to_pure_dict(state)


def draw(spec: ParamSpec, key: jax.Array) -> jax.Array:
    """The initial value of one parameter. Stacked layers each draw from a key of their own."""
    if spec.stacked:
        one = ParamSpec(spec.shape[1:], spec.axes[1:], spec.init, spec.dtype)
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(spec.shape[0]))
        return jax.vmap(lambda k: draw(one, k))(keys)
    kind, scale, dtype = spec.init.kind, spec.init.scale, jnp.dtype(spec.dtype)
    if kind == "constant":
        return jnp.full(spec.shape, scale, dtype)
    if kind == "normal":
        return (jax.random.normal(key, spec.shape, jnp.float32) * scale).astype(dtype)
    # Cut at 2 standard deviations of the normal before cutting, then widened so that ``scale`` is what remains.
    cut = jax.random.truncated_normal(key, -2.0, 2.0, spec.shape, jnp.float32)
    return (cut * (scale / 0.87962566103423978)).astype(dtype)


def initialize(specs: Tree, key: jax.Array) -> Tree:
    """Arrays for all specs. Each parameter's key comes from its path, so that adding one changes no other.

    Called under ``jax.jit`` with output shardings, parameters are born sharded.
    """
    return map_named(lambda path, spec: draw(spec, named(key, path)), specs)


def abstract(specs: Tree, shardings: Tree | None = None) -> Tree:
    """ShapeDtypeStructs of all specs, with shardings if given; needs no devices."""
    if shardings is None:
        return map_named(lambda _, s: jax.ShapeDtypeStruct(s.shape, jnp.dtype(s.dtype)), specs)
    return map_named(
        lambda _, s, sharding: jax.ShapeDtypeStruct(s.shape, jnp.dtype(s.dtype), sharding=sharding), specs, shardings
    )


def normal(scale: float) -> Initializer:
    return Initializer("normal", scale)


def fan_in(size: int) -> Initializer:
    """Normal with variance 1 / size."""
    return Initializer("normal", 1.0 / math.sqrt(size))


ONES, ZEROS = Initializer("constant", 1.0), Initializer("constant", 0.0)
