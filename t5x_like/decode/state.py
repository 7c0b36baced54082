"""The state of a batch of rows in decoding: cache, segments, positions. A strategy calls ``prefill``, ``step`` and
``reorder``, and knows nothing of caches and masks.

Letters: B batch, P prompt columns, C cache columns, L new columns, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from t5x_like.models.transformer import Transformer

CACHE_ROWS = 1  # the dimension of cache arrays that counts rows; the first counts layers


class DecodeState(NamedTuple):
    """State of B rows whose first ``column`` columns are in the cache."""

    cache: Any  # as the model gives it
    column: jax.Array  # int32 scalar: the next column to be written
    vocab_size: jax.Array  # int32 scalar: ids from it on are no tokens; rows of a padded table have them
    positions_B: jax.Array  # int32: position of the next token of each row
    segments_BC: jax.Array  # int32: 0 where a column is padding
    prefix_BC: jax.Array | None  # non-zero where columns see each other in both directions
    encoder_segments_BS: jax.Array | None


def prefill(
    model: Transformer, prompt: Mapping[str, jax.Array], new: int, bidirectional: bool = False,
    vocab_size: jax.Array | int | None = None,
) -> tuple[jax.Array, DecodeState]:
    """(logits [B, V] of the first new token, the state after the prompt).

    Args:
      model: the model with its parameters.
      prompt: ``prompt`` and ``segments`` [B, P], padded on the left with segment 0; where there is an encoder also
        ``encoder_tokens`` and ``encoder_segments``.
      new: largest number of tokens that can follow.
      bidirectional: whether the prompt's tokens see each other in both directions.
      vocab_size: ids of the tokenizer; all others have logits of -infinity. None: the model's.
    """
    tokens_BP, segments_BP = prompt["prompt"], prompt["segments"]
    B, P = tokens_BP.shape
    cache = model.start_cache(B, P + new, model.encode(prompt) if model.config.has_encoder else None)
    segments_BC = jnp.pad(segments_BP, ((0, 0), (0, new)), constant_values=1)
    prefix_BC = jnp.pad(segments_BP, ((0, 0), (0, new))) if bidirectional else None
    positions_B, encoder_segments_BS = jnp.sum(segments_BP, axis=1), prompt.get("encoder_segments")
    size = jnp.asarray(model.config.vocab_size if vocab_size is None else vocab_size, jnp.int32)
    state = DecodeState(cache, jnp.int32(0), size, positions_B, segments_BC, prefix_BC, encoder_segments_BS)
    positions_BP = jnp.maximum(jnp.cumsum(segments_BP, axis=1) - 1, 0)
    x_BPD, cache = _activations(model, state, tokens_BP, positions_BP, segments_BP)
    return _logits(model, state, x_BPD[:, -1]), state._replace(cache=cache, column=jnp.int32(P))


def step(model: Transformer, state: DecodeState, tokens_BL: jax.Array) -> tuple[jax.Array, DecodeState]:
    """(logits [B, L, V] of the token after each of ``tokens_BL``, the state after all of them)."""
    L = tokens_BL.shape[1]
    positions_BL = state.positions_B[:, None] + jnp.arange(L, dtype=jnp.int32)
    x_BLD, cache = _activations(model, state, tokens_BL, positions_BL, jnp.ones_like(tokens_BL))
    after = state._replace(cache=cache, column=state.column + L, positions_B=state.positions_B + L)
    return _logits(model, state, x_BLD), after


def reorder(state: DecodeState, rows_N: jax.Array) -> DecodeState:
    """The state of the rows ``rows_N``, in that order, with repeats: those that a beam search keeps."""

    def take(array: Any) -> Any:
        return None if array is None else array[rows_N]

    cache = jax.tree.map(lambda a: jnp.take(a, rows_N, axis=CACHE_ROWS), state.cache)
    return DecodeState(cache, state.column, state.vocab_size, *map(take, state[3:]))


def _logits(model: Transformer, state: DecodeState, x: jax.Array) -> jax.Array:
    logits = model.head().logits(x)
    return jnp.where(jnp.arange(logits.shape[-1]) < state.vocab_size, logits, -jnp.inf)


def _activations(model, state: DecodeState, tokens_BL, positions_BL, segments_BL) -> tuple[jax.Array, Any]:
    """(activations [B, L, D] of the next columns, the cache with them)."""
    batch = {"decoder_tokens": tokens_BL, "decoder_positions": positions_BL, "decoder_segments": segments_BL}
    if state.encoder_segments_BS is not None:
        batch["encoder_segments"] = state.encoder_segments_BS
    return model.decode(batch, state.cache, state.column, state.segments_BC, state.prefix_BC)
