"""Stacks of layers, in groups of a repeated pattern; the parameters of repeated layers are stacked in one array per
name, whether or not they are scanned.

So a scanned and an unrolled model have the same parameters, initial values, checkpoints and optimizer.

Letters: B batch, L positions, D model width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from t5x_like.core.config import Config
from t5x_like.core.errors import UserError, require
from t5x_like.core.ranges import BelowOne, PositiveInt
from t5x_like.layers.block import Layer
from t5x_like.layers.context import Cache, Context, Out, joined
from t5x_like.layers.norms import Norm
from t5x_like.layers.positions import NoPositions, Positions

if TYPE_CHECKING:
    import jax

    from t5x_like.layers.init import Init
    from t5x_like.layers.module import Module, Site


@dataclasses.dataclass(frozen=True)
class Group(Config, where="model.groups"):
    """A pattern of layers, repeated.

    Attributes:
      times: number of repeats.
      pattern: layers of one repeat, alike or not.
    """

    times: PositiveInt
    pattern: tuple[Layer, ...]

    def __post_init__(self):
        require(bool(self.pattern), "model.groups.pattern", "no layer", "one layer or more")

    def declare(self, site: Site) -> Module:
        """The layers of one repeat, named 0, 1, ...; a single layer by itself. Stacked over the repeats."""
        from t5x_like.layers.module import Module
        from t5x_like.layers.param import stacked

        layers = [layer.declare(site) for layer in self.pattern]
        repeat = layers[0] if len(layers) == 1 else Module(self, **{str(i): one for i, one in enumerate(layers)})
        return stacked(repeat, self.times)

    def layers_of(self, repeat: Module) -> list[tuple[str, Layer, Module]]:
        """(name, choice, parameters) of the layers of one repeat; the name is empty where there is one only."""
        if len(self.pattern) == 1:
            return [("", self.pattern[0], repeat)]
        return [(str(i), layer, getattr(repeat, str(i))) for i, layer in enumerate(self.pattern)]

    def run(
        self, parts: Module, x_BLD: jax.Array, context: Context, prepared: dict, key: jax.Array | None, cache: Any
    ) -> tuple[jax.Array, Out]:
        """([B, L, D], further results of all layers: caches and statistics by layer name, stacked over repeats)."""
        import jax
        import jax.numpy as jnp
        from flax import nnx

        from t5x_like.layers.param import declare

        structure, stacked = declare(parts)
        keys = None if key is None else jax.random.split(key, self.times)

        def repeat(x, inputs):
            params, repeat_key, caches = inputs
            outs = {}
            for name, layer, one in self.layers_of(nnx.merge(structure, params)):
                layer_key = jax.random.fold_in(repeat_key, int(name)) if name and key is not None else repeat_key
                layer_cache = caches[name] if name and caches is not None else caches
                x, outs[name] = layer.apply(one, x, context, prepared[layer.mixer], layer_key, layer_cache)
            return x, outs.get("") or joined(outs)

        if context.remat != "none":
            # Inside a scan nothing can be merged with the first computation, so the guard against it is not needed.
            repeat = jax.checkpoint(repeat, policy=_policy(context.remat), prevent_cse=not context.scan)
        inputs = (stacked, keys, cache)
        if context.scan:
            x_BLD, outs = jax.lax.scan(repeat, x_BLD, inputs)
        else:
            each = []
            for one in unstack(inputs, self.times):
                x_BLD, out = repeat(x_BLD, one)
                each.append(out)
            outs = jax.tree.map(lambda *a: jnp.stack(a), *each)
        losses, metrics = jax.tree.map(lambda a: jnp.sum(a, axis=0), (outs.losses, outs.metrics))
        return x_BLD, Out(outs.cache, losses, metrics, outs.statistics)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stack(Config, where="model"):
    """The layers and last norm of an encoder or a decoder.

    Attributes:
      groups: groups of layers in order; each is compiled once, whatever its repeats.
      positions: positions of the embeddings and of all layers without their own.
      final_norm: norm after the last layer; none where layers end in a norm.
      final_dropout: rate of dropout after the last norm.
    """

    groups: tuple[Group, ...]
    positions: Positions = NoPositions()
    final_norm: Norm | None = None
    final_dropout: BelowOne = 0.0

    def __post_init__(self):
        require(bool(self.groups), "model.groups", "no layer", "one group or more")

    @property
    def depth(self) -> int:
        """Layers in all."""
        return sum(group.times * len(group.pattern) for group in self.groups)

    def layers(self) -> Iterator[tuple[int, Layer]]:
        """(number of repeats, layer) of all unlike layers."""
        for group in self.groups:
            for layer in group.pattern:
                yield group.times, layer

    def named_groups(self) -> Iterator[tuple[str, Group]]:
        """(name of its parameters, group)."""
        for number, group in enumerate(self.groups):
            yield ("layers" if len(self.groups) == 1 else f"layers_{number}"), group

    def check(self, width: int) -> None:
        """Raises UserError where positions and layers of this width do not suit each other."""
        for _, layer in self.layers():
            (layer.mixer.positions or self.positions).check(width, layer.mixer.head_dim)
        heads, learned = self._bias_heads(), type(self.positions).declare_bias is not Positions.declare_bias
        if len(heads) > 1 and learned and not self.positions.per_layer:
            got = f"layers of {', '.join(map(str, sorted(heads)))} heads cannot share one table"
            raise UserError("model.positions", got, "a table for each layer", "T5Relative(own_tables=True)")

    def declare(self, width: int, init: Init) -> Module:
        """All layers, stacked by group, the table of positions that they share, and the last norm."""
        from t5x_like.layers.module import Module, Site

        site = Site(width, self.depth, init, self.positions)
        heads = max(self._bias_heads(), default=0)
        table = self.positions.declare_bias(heads, width, init) if heads and not self.positions.per_layer else None
        norm = self.final_norm and self.final_norm.declare(width)
        groups = {name: group.declare(site) for name, group in self.named_groups()}
        return Module(self, **groups, position_bias=table, final_norm=norm)

    def apply(
        self, parts: Module, x_BLD: jax.Array, context: Context, key: jax.Array | None = None, cache: Any = None
    ) -> tuple[jax.Array, Out]:
        """([B, L, D] after the last norm, further results of the layers, with the updated cache).

        Args:
          parts: parameters of the stack.
          x_BLD: embedded inputs.
          context: context of the call; the stack adds its positions.
          key: random key of dropout.
          cache: cache of all layers; see ``start_cache``.
        """
        from t5x_like.arrays.keys import maybe_named
        from t5x_like.arrays.trees import join
        from t5x_like.layers.dropout import dropout

        table = None if parts.position_bias is None else parts.position_bias[...]
        context = dataclasses.replace(context, positions=self.positions, position_table=table)
        prepared = {layer.mixer: layer.mixer.prepare(context) for _, layer in self.layers()}
        outs = {}
        for name, group in self.named_groups():
            own = None if cache is None else cache[name]
            x_BLD, outs[name] = group.run(getattr(parts, name), x_BLD, context, prepared, maybe_named(key, name), own)
        if parts.final_norm is not None:
            x_BLD = parts.final_norm(x_BLD)
        x_BLD = dropout(x_BLD, self.final_dropout, maybe_named(key, "final"))
        out = joined(outs)
        return x_BLD, out if cache is None else out._replace(cache=join(cache, out.cache))

    def start_cache(self, parts: Module, batch: int, columns: int, memory_BSD: jax.Array | None, dtype: Any) -> Cache:
        """An empty cache for ``columns`` columns, by group and layer, stacked over repeats: arrays [times, B, ...].

        Keys and values of the encoder's output ``memory_BSD`` are computed here, once.
        """
        import jax
        from flax import nnx

        from t5x_like.layers.param import declare

        def of_group(group: Group, stacked: Module) -> Any:
            structure, params = declare(stacked)

            def one(params):
                found = {
                    name: layer.start_cache(parts, batch, columns, memory_BSD, dtype)
                    for name, layer, parts in group.layers_of(nnx.merge(structure, params))
                }
                return found.get("", found)

            return jax.lax.map(one, params)

        return {name: of_group(group, getattr(parts, name)) for name, group in self.named_groups()}

    def _bias_heads(self) -> set[int]:
        """Heads of the layers that take the stack's bias."""
        return {layer.mixer.heads for _, layer in self.layers() if layer.mixer.positions is None} - {0}


def _policy(remat: str) -> Any:
    """Policy of the activations kept for the gradient; all others are recomputed."""
    import jax

    policies = jax.checkpoint_policies
    if remat == "full":
        return policies.nothing_saveable
    return policies.save_from_both_policies(
        policies.dots_with_no_batch_dims_saveable,
        policies.save_only_these_names("attention"),  # or its forward pass would be run twice
    )


def unstack(tree, count: int) -> list:
    """The slices of all leaves along their first dimension. ``lax.split`` rather than indexing: its transpose is one
    concatenation, where that of indexing adds a padded array per layer."""
    import jax
    import jax.numpy as jnp

    leaves, structure = jax.tree.flatten(tree)
    parts = [[jnp.squeeze(p, 0) for p in jax.lax.split(leaf, (1,) * count, axis=0)] for leaf in leaves]
    return [jax.tree.unflatten(structure, [p[i] for p in parts]) for i in range(count)]
