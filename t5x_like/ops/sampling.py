"""The next token from logits. Letters: B batch, V vocabulary."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def sample(
    logits_BV: jax.Array, key: jax.Array, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> jax.Array:
    """One token per row, int32 [B].

    Args:
      logits_BV: float32.
      key: random key; unused when greedy.
      temperature: divides the logits; 0 takes the most likely token.
      top_k: sample among the k most likely only; 0 is all.
      top_p: sample among the fewest tokens whose probability, after ``top_k``, reaches p (Holtzman et al. 2020); 1 is
        all. Of tokens equally likely those of lower ids come first, here, in ``top_k`` and when greedy.
    """
    if temperature == 0.0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    values_BK, ids_BK, V = logits_BV, None, logits_BV.shape[-1]
    if top_p < 1.0 or 0 < top_k < V:
        values_BK, ids_BK = jax.lax.top_k(logits_BV, min(top_k or V, V))
    # The largest is 0, so that no temperature makes an infinite one of it.
    scaled_BK = (values_BK - jnp.max(values_BK, axis=-1, keepdims=True)) / temperature
    if top_p < 1.0:
        before_BK = jnp.pad(jnp.cumsum(jax.nn.softmax(scaled_BK, axis=-1), axis=-1)[:, :-1], ((0, 0), (1, 0)))
        scaled_BK = jnp.where(before_BK < top_p, scaled_BK, -jnp.inf)  # the one that crosses p, and always the first
    chosen_B = jax.random.categorical(key, scaled_BK, axis=-1)
    chosen_B = chosen_B if ids_BK is None else jnp.take_along_axis(ids_BK, chosen_B[:, None], axis=-1)[:, 0]
    return chosen_B.astype(jnp.int32)
