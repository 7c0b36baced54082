"""The transformer: an encoder, a decoder, or both, over one token table.

A batch is a dict of arrays; which are needed follows from the model's front ends, by default:

    encoder_tokens, encoder_segments, encoder_positions    [B, S] int32
    encoder_order                                          [B, S] int32, visible pairs in permutation LM: masks.Ordered
    decoder_tokens, decoder_segments, decoder_positions    [B, L] int32
    decoder_prefix                                         [B, L] int32, non-zero in a bidirectional prefix

Segments and positions may be left out: every row is then one example from its first column to its last. Segment 0 is
padding. The loss's ``targets`` and ``weights`` are not read here.

Letters: B batch, L decoder positions, S encoder positions, D model width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_like.arrays.keys import maybe_named
from t5x_like.arrays.trees import Tree
from t5x_like.layers.context import Cache, Context, Out, joined
from t5x_like.layers.dropout import dropout
from t5x_like.layers.module import Module, Table
from t5x_like.layers.param import ZEROS, declare, param, stacked
from t5x_like.layers.stack import unstack
from t5x_like.models.config import HeadTransform, ModelConfig
from t5x_like.ops.losses import Head
from t5x_like.sharding.mesh import constrain

Batch = Mapping[str, jax.Array]


class Transformer(nnx.Module):
    """A model: its declared parameters, and its computations once arrays are merged in."""

    encoder: Any
    decoder: Any

    def __init__(self, config: ModelConfig):
        c = self.config = config
        D, std = c.d_model, c.embedding_init_std
        looks_up = c.tied_head or any(side.inputs.uses_tokens for _, side in c.sides)
        self.token_embedding: Any = Table(c.vocab_size, D, "vocab", std) if looks_up else None
        for name, side in c.sides:
            setattr(self, name, side.declare(D, c.init))
            setattr(self, f"{name}_inputs", side.inputs.declare(D, c.init, std))
            setattr(self, f"{name}_positions", side.positions.declare_embedding(D, std))
            setattr(self, f"{name}_embedding_norm", side.embedding_norm and side.embedding_norm.declare(D))
        self.output_transform: Any = c.head_transform and c.head_transform.declare(D, c.init)
        future = (c.head_transform or self._future_transform()).declare(D, c.init)
        self.future_transforms: Any = stacked(future, c.future_heads) if c.future_heads else None
        kernel = None if c.tied_head else param((c.vocab_size, D), ("vocab", "embed"), c.init.kernel(D), fan=1)
        bias = param((c.vocab_size,), ("vocab",), ZEROS) if c.head_bias else None
        self.output_head = Module(None, kernel=kernel, bias=bias)

    def _future_transform(self) -> HeadTransform:
        """Activation, norm and bias of the model's last layer."""
        *_, (_, last) = self.config.sides[-1][1].layers()
        found: Any = last.feed_forward
        return HeadTransform(getattr(found, "activation", "gelu_tanh"), last.norm, getattr(found, "bias", False))

    def __call__(self, batch: Batch, key: jax.Array | None = None) -> jax.Array:
        """Activations before the logits, [B, L, D] of the decoder (of the encoder where there is no decoder); see
        ``run``."""
        return self.run(batch, key)[0]

    def run(self, batch: Batch, key: jax.Array | None = None) -> tuple[jax.Array, Out]:
        """(activations before the logits, further results of the layers: side losses, metrics, statistics by side).

        Args:
          batch: arrays by name, as the module's docstring lists them.
          key: random key of dropout; None: no dropout.
        """
        x_BLD: Any = None
        outs: dict[str, Out] = {}
        if self.config.has_encoder:
            encoder_key = maybe_named(key, "encoder")
            x_BLD, outs["encoder"] = self._side("encoder", batch, encoder_key, encoder_key)
        if self.config.has_decoder:
            memory = None if x_BLD is None else (x_BLD, _segments(batch, "decoder", "encoder"))
            x_BLD, outs["decoder"] = self._side("decoder", batch, key, maybe_named(key, "decoder"), memory=memory)
        return self.transform(x_BLD), joined(outs)

    def encode(self, batch: Batch, key: jax.Array | None = None) -> jax.Array:
        """The encoder's output [B, S, D]."""
        return self._side("encoder", batch, key, key)[0]

    def decode(
        self, batch: Batch, cache: Cache, offset: jax.Array, segments_BC: jax.Array, prefix_BC: jax.Array | None = None
    ) -> tuple[jax.Array, Cache]:
        """(activations of the columns from ``offset`` on, the updated cache).

        Args:
          batch: decoder arrays of these columns only; encoder_segments of all the encoder's columns.
          cache: result of ``start_cache``, updated by earlier calls.
          offset: first column; int32 scalar.
          segments_BC: segments of all the cache's columns; 0 is padding.
          prefix_BC: non-zero in a bidirectional prefix; None: no prefix.
        """
        memory = (None, _segments(batch, "decoder", "encoder")) if self.config.has_encoder else None
        segments = (batch["decoder_segments"], segments_BC)
        x_BLD, out = self._side(
            "decoder", batch, None, None, cache, offset=offset, prefix_BS=prefix_BC, segments=segments, memory=memory,
            remat="none",
        )  # fmt: skip
        return self.transform(x_BLD), out.cache

    def start_cache(self, batch: int, columns: int, memory_BSD: jax.Array | None = None) -> Cache:
        """An empty decoder cache; see ``Stack.start_cache``."""
        decoder = self.config.side("decoder")
        return decoder.start_cache(self.decoder, batch, columns, memory_BSD, jnp.dtype(self.config.dtype))

    def embed(self, side: str, batch: Batch, key: jax.Array | None) -> jax.Array:
        """Inputs of the first layer of a side, [B, L, D]."""
        chosen, dtype = self.config.side(side), jnp.dtype(self.config.dtype)
        x = chosen.inputs.apply(getattr(self, f"{side}_inputs"), batch, side, self.token_embedding, dtype)
        parts, norm = getattr(self, f"{side}_positions"), getattr(self, f"{side}_embedding_norm")
        added = chosen.positions.embedding(parts, self._positions(side, batch), x.shape[-1], dtype)
        x = x if added is None else x + added
        x = x if norm is None else norm(x)
        x = dropout(x, chosen.embedding_dropout, maybe_named(key, f"{side}_embedding"))
        return constrain(x, "batch", "length", "activation")

    def transform(self, x_BLD: jax.Array) -> jax.Array:
        return x_BLD if self.output_transform is None else self.output_transform(x_BLD)

    def future(self, x_BLD: jax.Array) -> list[jax.Array]:
        """Activations of each future head: [B, L, D] for the token 2 ahead, 3 ahead, ..., to be projected by the same
        ``head``."""
        graphdef, stacked = declare(self.future_transforms)
        return [nnx.merge(graphdef, one)(x_BLD) for one in unstack(stacked, self.config.future_heads)]

    def head(self) -> Head:
        """The projection to the vocabulary, for ``ops.losses`` or ``Head.logits``."""
        c, own = self.config, self.output_head
        kernel = self.token_embedding.table[...] if own.kernel is None else own.kernel[...]
        bias = None if own.bias is None else own.bias[...]
        return Head(kernel, bias, c.d_model**-0.5 if c.scale_tied_logits else 1.0, c.logits_soft_cap)

    def logits(self, batch: Batch) -> jax.Array:
        """[B, L, V] float32, without dropout."""
        return self.head().logits(self(batch))

    def _side(
        self, side: str, batch: Batch, key: jax.Array | None, layers_key: jax.Array | None, cache: Any = None,
        **changes: Any,
    ) -> tuple[jax.Array, Out]:
        """(output of one stack, further results of its layers), with ``changes`` of the context of training."""
        c = self.config
        context = Context(
            causal=side == "decoder",
            positions_BL=self._positions(side, batch),
            segments=_segments(batch, side, side),
            prefix_BS=batch.get("decoder_prefix") if side == "decoder" else None,
            order_BS=batch.get("encoder_order") if side == "encoder" else None,
            backend=c.attention_backend,
            scan=c.scan_layers,
            remat=c.remat,
        )
        context = dataclasses.replace(context, **changes)
        return getattr(self, side)(self.embed(side, batch, key), context, layers_key, cache)

    def _positions(self, side: str, batch: Batch) -> jax.Array:
        """[B, L] positions of one side; counted along the row where the batch has none."""
        found = batch.get(f"{side}_positions")
        if found is None:
            shape = _rows_of(batch, side)
            found = jnp.broadcast_to(jnp.arange(shape[1], dtype=jnp.int32), shape)
        return found


def _rows_of(batch: Batch, side: str) -> tuple[int, int]:
    """(rows, columns) of one side, by any of its arrays."""
    array = next(array for name, array in batch.items() if name.startswith(f"{side}_"))
    return array.shape[0], array.shape[1]


def _segments(batch: Batch, queries: str, keys: str) -> tuple[jax.Array, jax.Array] | None:
    """Segments of the queries of one side and the keys of another; None where the keys have none."""
    key_segments = batch.get(f"{keys}_segments")
    if key_segments is None:
        return None
    query_segments = batch.get(f"{queries}_segments")
    if query_segments is None:  # one example per row
        query_segments = jnp.ones(_rows_of(batch, queries), key_segments.dtype)
    return query_segments, key_segments


def make_model(config: ModelConfig) -> tuple[nnx.GraphDef, Tree]:
    """(the model's structure for ``nnx.merge(structure, params)``, the specs of its parameters). Needs no device."""
    return declare(Transformer(config))
