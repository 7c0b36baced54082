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
      top_p: sample among the fewest tokens whose probability reaches p (Holtzman et al. 2020); 1 is all.
    """
    if temperature == 0.0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    scaled_BV = logits_BV / temperature
    if top_k and top_k < scaled_BV.shape[-1]:
        kth_B1 = jax.lax.top_k(scaled_BV, top_k)[0][:, -1:]
        scaled_BV = jnp.where(scaled_BV < kth_B1, -jnp.inf, scaled_BV)
    if top_p < 1.0:
        sorted_BV = jnp.sort(scaled_BV, axis=-1, descending=True)
        p_BV = jax.nn.softmax(sorted_BV, axis=-1)
        kept_BV = jnp.cumsum(p_BV, axis=-1) - p_BV < top_p  # the token that crosses p is kept, and always the first
        least_B1 = jnp.min(jnp.where(kept_BV, sorted_BV, jnp.inf), axis=-1, keepdims=True)
        scaled_BV = jnp.where(scaled_BV < least_B1, -jnp.inf, scaled_BV)
    return jax.random.categorical(key, scaled_BV, axis=-1).astype(jnp.int32)
