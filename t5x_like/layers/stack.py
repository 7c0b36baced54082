"""Layers on layers: the parameters of all layers lie stacked in one array per name, whether or not they are scanned.

So a scanned and an unrolled model have the same parameters, initial values, checkpoints and optimizer.

Letters: B batch, L positions, D model width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_like.arrays.keys import maybe_named, named
from t5x_like.arrays.trees import map_named
from t5x_like.layers.attention import Cache, Visible
from t5x_like.layers.block import Block, bias_table
from t5x_like.layers.config import BlockConfig
from t5x_like.layers.dropout import dropout
from t5x_like.layers.norms import make_norm
from t5x_like.layers.param import declare
from t5x_like.ops.attention import Alibi, T5Relative, alibi_slopes

POLICIES = {
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names("attention"),  # or its forward pass would be run twice
    ),
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Stack(nnx.Module):
    """An encoder or a decoder without its embeddings."""

    def __init__(self, config: BlockConfig, layers: int, *, cross: bool, bidirectional: bool):
        self.config, self.count, self.bidirectional = config, layers, bidirectional
        graphdef, specs = declare(Block(config, layers, cross, bidirectional))
        self.layers = nnx.merge(graphdef, map_named(lambda _, spec: spec.stack(layers), specs))
        shared = config.positions == "t5" and not config.bias_per_layer
        self.position_bias = bias_table(config) if shared else None
        ends_normed = config.norm_placement == "post"  # each layer already ends in a norm
        self.final_norm = None if ends_normed else make_norm(config.norm, config.d_model, config.norm_eps, config.bias)

    def __call__(
        self,
        x_BLD: jax.Array,
        visible: Visible,
        key: jax.Array | None = None,
        *,
        cross: Visible | None = None,
        memory_BSD: jax.Array | None = None,
        cache: dict[str, Cache] | None = None,
    ) -> tuple[jax.Array, dict[str, Cache] | None]:
        """([B, L, D] after the final norm, the updated cache with a leading dimension of layers)."""
        visible = self._with_bias(visible)
        graphdef, stacked = declare(self.layers)
        layer_keys = None if key is None else jax.random.split(named(key, "layers"), self.count)

        def layer(x, inputs):
            params, layer_key, layer_cache = inputs
            return nnx.merge(graphdef, params)(x, visible, cross, memory_BSD, layer_key, layer_cache)

        if self.config.remat != "none":
            # Inside a scan nothing can be merged with the first computation, so the guard against it is not needed.
            layer = jax.checkpoint(layer, policy=POLICIES[self.config.remat], prevent_cse=not self.config.scan_layers)
        inputs = (stacked, layer_keys, cache)
        if self.config.scan_layers:
            x_BLD, written = jax.lax.scan(layer, x_BLD, inputs)
        else:
            each = []
            for one in unstack(inputs, self.count):
                x_BLD, layer_written = layer(x_BLD, one)
                each.append(layer_written)
            written = None if cache is None else jax.tree.map(lambda *a: jnp.stack(a), *each)
        updated = None if cache is None or written is None else {**cache, "self": written}
        if self.final_norm is not None:
            x_BLD = self.final_norm(x_BLD)
        return dropout(x_BLD, self.config.dropout.final, maybe_named(key, "final")), updated

    def start_cache(self, batch: int, columns: int, memory_BSD: jax.Array | None, dtype) -> dict[str, Cache]:
        """An empty cache for ``columns`` columns: {"self", "cross"}[key | value] of [layers, B, S, K, N].

        The encoder's keys and values are computed here, once, from ``memory_BSD``; None for a stack without encoder.
        """
        shape = (self.count, batch, columns, self.config.key_heads, self.config.head_dim)
        cache: dict[str, Cache] = {"self": {name: jnp.zeros(shape, dtype) for name in ("key", "value")}}
        if memory_BSD is not None:
            graphdef, stacked = declare(self.layers)
            cache["cross"] = jax.lax.map(
                lambda params: nnx.merge(graphdef, params).cross_attention.inner.keys_values(memory_BSD), stacked
            )
        return cache

    def _with_bias(self, visible: Visible) -> Visible:
        """The bias that all layers share."""
        bias = visible.bias
        if self.position_bias is not None:
            bias = T5Relative(self.position_bias[...], self.bidirectional, self.config.max_distance)
        elif self.config.positions == "alibi":
            bias = Alibi(jnp.asarray(alibi_slopes(self.config.heads), jnp.float32))
        return Visible(visible.mask, bias, visible.rotation, visible.offset)


def unstack(tree, count: int) -> list:
    """The slices of all leaves along their first dimension. ``lax.split`` rather than indexing: its transpose is one
    concatenation, where that of indexing adds a padded array per layer."""
    leaves, structure = jax.tree.flatten(tree)
    parts = [[jnp.squeeze(p, 0) for p in jax.lax.split(leaf, (1,) * count, axis=0)] for leaf in leaves]
    return [jax.tree.unflatten(structure, [p[i] for p in parts]) for i in range(count)]
