"""Random keys by name: the same name gives the same key whatever else is drawn, in any order, on any mesh."""

from __future__ import annotations

import zlib

import jax


def named(key: jax.Array, name: str) -> jax.Array:
    """The key for ``name`` below ``key``."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def maybe_named(key: jax.Array | None, name: str) -> jax.Array | None:
    """As ``named``; None (no dropout) stays None."""
    return None if key is None else named(key, name)
