"""Positions that are added to, or rotate, activations. Biases by distance are in ``pallas_kernels.biases``."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def sinusoids(positions_BL: jax.Array, width: int) -> jax.Array:
    """[B, L, width] float32 (Vaswani et al. 2017, section 3.5): sines in the first half and cosines in the second,
    where the paper has them in turn; the widths are learned against, so their order is free."""
    half = width // 2
    frequencies = 10_000.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions_BL[..., None].astype(jnp.float32) * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def rotation(positions_BL: jax.Array, head_size: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """(cosines, sines) of RoPE, each [B, L, 1, head_size / 2] float32, made once for all layers."""
    frequencies = theta ** (-jnp.arange(0, head_size, 2, dtype=jnp.float32) / head_size)
    angles = positions_BL[..., None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x_BLHN: jax.Array, rotation: tuple[jax.Array, jax.Array]) -> jax.Array:
    """RoPE (Su et al. 2021), pairing dimension i with i + head_size / 2 as Llama does."""
    cosines, sines = rotation
    one, other = jnp.split(x_BLHN.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([one * cosines - other * sines, other * cosines + one * sines], axis=-1)
    return turned.astype(x_BLHN.dtype)
