"""A digest of an array's bits, the same however the array is split over devices. Must not know files.

Every element's bits are mixed with its position by a bijection of 32-bit words; the digest is the sum modulo 2**32 and
the exclusive or of the results. One changed element always changes both, two exchanged ones nearly always, and the
order in which they are taken, hence the mesh, never. It guards against damage, not against malice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

GOLDEN = np.uint32(0x9E3779B9)  # 2**32 / golden ratio, odd: consecutive positions land far apart


@jax.jit
def digest(array: jax.Array) -> jax.Array:
    """The digest of one array of any shape and of any dtype but keys: uint32 of shape (2,).

    The computation is elementwise work fused into one reduction: it reads the array once and needs no memory of its
    size, and it is dispatched without waiting.
    """
    words = _words(array)
    position = jnp.full(words.shape, np.uint32(1))
    stride = 1
    for dimension in reversed(range(words.ndim)):
        position += jax.lax.broadcasted_iota(jnp.uint32, words.shape, dimension) * np.uint32(stride % 2**32)
        stride *= words.shape[dimension]
    mixed = _mix(words + position * GOLDEN)
    # Both in one reduction: XLA's CPU backend rewrites a reduction of one operand so that the elementwise work before
    # it is no longer fused, which took 10 times the time and a copy of the array.
    zero = np.uint32(0)
    sums = jax.lax.reduce((mixed, mixed), (zero, zero), lambda a, b: (a[0] + b[0], a[1] ^ b[1]), range(mixed.ndim))
    return jnp.stack(sums)


def dispatch(arrays: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Starts the digests of many arrays and the copies of the results to the host, without waiting.

    One small compiled program per distinct shape, dtype and sharding, rather than one large program: it compiles
    faster, and the arrays need not lie on the same devices.
    """
    digests = {path: digest(array) for path, array in arrays.items()}
    for value in digests.values():
        value.copy_to_host_async()
    return digests


def fetch(digests: Mapping[str, jax.Array]) -> dict[str, str]:
    """Waits for dispatched digests: sixteen hexadecimal digits for each."""
    return {path: "".join(f"{int(word):08x}" for word in np.asarray(value)) for path, value in digests.items()}


def _words(array: jax.Array) -> jax.Array:
    """The bits as uint32; elements of 8 bytes become two words in a new last dimension."""
    if array.dtype == jnp.bool_:
        return array.astype(jnp.uint32)
    bits = array.dtype.itemsize * 8
    if math.prod(array.shape) and bits > 32:
        return jax.lax.bitcast_convert_type(array, jnp.uint32)
    unsigned = {8: jnp.uint8, 16: jnp.uint16, 32: jnp.uint32}.get(bits, jnp.uint32)
    return jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)


def _mix(x: jax.Array) -> jax.Array:
    """MurmurHash3's finalizer, a bijection of uint32 (Appleby, public domain)."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))
