"""The transformer: an encoder, a decoder, or both, over one token table.

A batch is a dict of arrays; which are needed follows from the model's shape:

    encoder_tokens, encoder_segments, encoder_positions    [B, S] int32
    encoder_order                                          [B, S] int32, who sees whom in permutation LM: masks.Ordered
    decoder_tokens, decoder_segments, decoder_positions    [B, L] int32
    decoder_prefix                                         [B, L] int32, non-zero in a bidirectional prefix

Segments and positions may be left out: every row is then one example from its first column to its last. Segment 0 is
padding. The loss's ``targets`` and ``weights`` are not looked at here.

Letters: B batch, L decoder positions, S encoder positions, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_like.arrays.keys import maybe_named
from t5x_like.arrays.trees import Tree, map_named
from t5x_like.layers.attention import Cache, Visible
from t5x_like.layers.dropout import dropout
from t5x_like.layers.embedding import OutputHead, OutputTransform, Table
from t5x_like.layers.norms import make_norm
from t5x_like.layers.param import declare
from t5x_like.layers.positions import rotation, sinusoids
from t5x_like.layers.stack import Stack, unstack
from t5x_like.models.config import ModelConfig
from t5x_like.ops.attention import Causal, Full, Mask, Ordered, Prefix, Segments, SlidingWindow
from t5x_like.ops.losses import Head
from t5x_like.sharding.mesh import constrain

Batch = Mapping[str, jax.Array]


class Transformer(nnx.Module):
    """A model's parameters, and what it computes with them once they are merged in."""

    def __init__(self, config: ModelConfig):
        c = self.config = config
        small_std = None if c.init == "fan_in" else c.init_std
        self.token_embedding = Table(c.vocab_size, c.d_model, "vocab", c.embedding_init_std)
        self.type_embedding = (
            Table(c.token_types, c.d_model, "positions", c.embedding_init_std) if c.token_types else None
        )
        self.embedding_norm = make_norm(c.norm, c.d_model, c.norm_eps, c.bias) if c.embedding_norm else None
        self.encoder_positions = self._position_table(c.encoder_layers)
        self.encoder: Any = Stack(c, c.encoder_layers, cross=False, bidirectional=True) if c.has_encoder else None
        self.decoder_positions = self._position_table(c.decoder_layers)
        self.decoder: Any = (
            Stack(c, c.decoder_layers, cross=c.has_encoder, bidirectional=False) if c.has_decoder else None
        )
        transform = (c.d_model, c.activation, c.norm, c.norm_eps, c.bias, small_std)
        self.output_transform = OutputTransform(*transform) if c.head_transform else None
        graphdef, specs = declare(OutputTransform(*transform))  # of one future head; stacked, as layers are
        stacked = map_named(lambda _, spec: spec.stack(c.future_heads), specs)
        self.future_transforms: Any = nnx.merge(graphdef, stacked) if c.future_heads else None
        self.output_head = OutputHead(c.vocab_size, c.d_model, c.tied_head, c.head_bias, small_std)

    def _position_table(self, layers: int) -> Table | None:
        c = self.config
        learned = layers and c.positions == "learned"
        return Table(c.max_length, c.d_model, "positions", c.embedding_init_std) if learned else None

    def __call__(self, batch: Batch, key: jax.Array | None = None) -> jax.Array:
        """Activations before the logits, [B, L, D] of the decoder (of the encoder where there is no decoder).

        Args:
          batch: see the module's text.
          key: for dropout; None is none.
        """
        memory = self.encode(batch, maybe_named(key, "encoder")) if self.config.has_encoder else None
        if memory is not None and not self.config.has_decoder:
            return self.transform(memory)
        x_BLD = self.embed("decoder", batch, key)
        visible = self._visible("decoder", batch, decoder_mask(batch, self.config.window))
        cross = Visible(segment_mask(batch, "decoder", "encoder")) if memory is not None else None
        x_BLD, _ = self.decoder(x_BLD, visible, maybe_named(key, "decoder"), cross=cross, memory_BSD=memory)
        return self.transform(x_BLD)

    def encode(self, batch: Batch, key: jax.Array | None = None) -> jax.Array:
        """The encoder's output [B, S, D]."""
        mask = segment_mask(batch, "encoder", "encoder")
        if "encoder_order" in batch:
            mask = mask & Ordered(batch["encoder_order"], batch["encoder_order"])
        if self.config.window:
            mask = mask & SlidingWindow(self.config.window, self.config.window)
        x_BSD = self.embed("encoder", batch, key)
        return self.encoder(x_BSD, self._visible("encoder", batch, mask), key)[0]

    def decode(
        self, batch: Batch, cache: dict[str, Cache], offset: jax.Array, mask: Mask, cross_mask: Mask | None = None
    ) -> tuple[jax.Array, dict[str, Cache]]:
        """Activations of the columns from ``offset`` on, and the cache with their keys and values.

        Args:
          batch: decoder_tokens and decoder_positions of these columns only.
          cache: from ``start_cache``.
          offset: the first column; int32 scalar.
          mask: over all the cache's columns.
          cross_mask: of these queries over the encoder's columns.
        """
        visible = self._visible("decoder", batch, mask, offset)
        cross = None if cross_mask is None else Visible(cross_mask)
        x_BLD, cache = self.decoder(self.embed("decoder", batch, None), visible, cross=cross, cache=cache)
        return self.transform(x_BLD), cache

    def start_cache(self, batch: int, columns: int, memory_BSD: jax.Array | None = None) -> dict[str, Cache]:
        """An empty decoder cache; see ``Stack.start_cache``."""
        return self.decoder.start_cache(batch, columns, memory_BSD, jnp.dtype(self.config.dtype))

    def embed(self, side: str, batch: Batch, key: jax.Array | None) -> jax.Array:
        """Token, position and type embeddings of one side, [B, L, D]."""
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        tokens = batch[f"{side}_tokens"]
        x = self.token_embedding(tokens, dtype)
        if c.scale_embeddings:
            x = x * jnp.asarray(c.d_model**0.5, dtype)
        if c.positions == "learned":
            x = x + getattr(self, f"{side}_positions")(positions(batch, side), dtype)
        elif c.positions == "sinusoidal":
            x = x + sinusoids(positions(batch, side), c.d_model).astype(dtype)
        if self.type_embedding is not None:
            types = batch.get(f"{side}_types", jnp.zeros_like(tokens))
            x = x + self.type_embedding(types, dtype)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        return constrain(
            dropout(x, c.dropout.embedding, maybe_named(key, f"{side}_embedding")), "batch", None, None
        )

    def transform(self, x_BLD: jax.Array) -> jax.Array:
        return x_BLD if self.output_transform is None else self.output_transform(x_BLD)

    def future(self, x_BLD: jax.Array) -> list[jax.Array]:
        """What each future head makes of this model's activations: [B, L, D] for the token 2 ahead, 3 ahead, ..., to be
        projected by the same ``head``."""
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

    def _visible(self, side: str, batch: Batch, mask: Mask, offset: jax.Array | int = 0) -> Visible:
        turned = None
        if self.config.positions == "rope":
            turned = rotation(positions(batch, side), self.config.head_dim, self.config.rope_theta)
        return Visible(mask, None, turned, offset)


def positions(batch: Batch, side: str) -> jax.Array:
    """[B, L] positions of one side; counted along the row where the batch has none."""
    found = batch.get(f"{side}_positions")
    if found is None:
        tokens = batch[f"{side}_tokens"]
        found = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    return found


def segment_mask(batch: Batch, queries: str, keys: str) -> Mask:
    """Queries of one side see keys of the same segment of the other; all of them where there are no segments."""
    if f"{keys}_segments" not in batch:
        return Full()
    key_segments = batch[f"{keys}_segments"]
    query_segments = batch.get(f"{queries}_segments")
    if query_segments is None:  # sampling: one example per row
        query_segments = jnp.ones(batch[f"{queries}_tokens"].shape, key_segments.dtype)
    return Segments(query_segments, key_segments)


def decoder_mask(batch: Batch, window: int) -> Mask:
    """Causal, with a bidirectional prefix where the batch marks one, within segments, within a window if there is
    one."""
    mask: Mask = Causal()
    if "decoder_prefix" in batch:
        mask = mask | Prefix(batch["decoder_prefix"])
    if window:
        mask = mask & SlidingWindow(window, window)
    return mask & segment_mask(batch, "decoder", "decoder")


def make_model(config: ModelConfig) -> tuple[nnx.GraphDef, Tree]:
    """(the model's structure for ``nnx.merge(structure, params)``, the specs of its parameters). Needs no device."""
    return declare(Transformer(config))
