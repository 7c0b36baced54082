"""Dropout, with its key as an argument: no key, no dropout."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from t5x_like.sharding.mesh import first_row


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes each element with probability ``rate`` and divides the rest by 1 - rate."""
    if not rate or key is None:
        return x
    rows = first_row(x.shape[0]) + jnp.arange(x.shape[0])
    kept = jax.vmap(lambda row: jax.random.bernoulli(jax.random.fold_in(key, row), 1.0 - rate, x.shape[1:]))(rows)
    return jnp.where(kept, x / (1.0 - rate), jnp.zeros((), x.dtype))
