"""A digest of an array's bits, the same however the array is split over devices. Must not know files.

Every element's bits are mixed with its position by a bijection of 32-bit words; the digest is the sum modulo 2**32 and
the exclusive or of the results. One changed element always changes both, two exchanged ones nearly always, and the
order in which they are taken, hence the mesh, never. It guards against damage, not against malice.

Each device takes that of its own part, and the host adds them up: no device waits for another, so that many digests can
be under way beside a training step. (Collectives of independent programs can wait for each other for good on CPUs.)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from t5x_like.checkpoint.job import Job
from t5x_like.checkpoint.parts import Index, bounds, held

GOLDEN = np.uint32(0x9E3779B9)  # 2**32 / golden ratio, odd: consecutive positions land far apart


def digest(part: jax.Array, start: Sequence[Any] = (), shape: Sequence[int] = ()) -> jax.Array:
    """The digest of an array of any dtype but keys, or what a part adds to it: uint32 of shape (2,).

    The computation is elementwise work fused into one reduction: it reads the array once and needs no memory of its
    size, and it is dispatched without waiting.

    Args:
      part: the array or part.
      start: first index of the part in each dimension.
      shape: of the whole array; by default the part's.
    """
    words = _words(part)
    sizes = (*(shape or part.shape), *words.shape[part.ndim :])
    position = jnp.full(words.shape, np.uint32(1))
    stride = 1
    for dimension in reversed(range(words.ndim)):
        at = jax.lax.broadcasted_iota(jnp.uint32, words.shape, dimension)
        if dimension < len(start):
            at += jnp.asarray(start[dimension], jnp.uint32)
        position += at * np.uint32(stride % 2**32)
        stride *= sizes[dimension]
    mixed = _mix(words + position * GOLDEN)
    # Both in one reduction: XLA's CPU backend rewrites a reduction of one operand so that the elementwise work before
    # it is no longer fused, which took 10 times the time and a copy of the array.
    zero = np.uint32(0)
    sums = jax.lax.reduce((mixed, mixed), (zero, zero), lambda a, b: (a[0] + b[0], a[1] ^ b[1]), range(mixed.ndim))
    return jnp.stack(sums)


def dispatch(arrays: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Starts the digests of the parts of arrays and the copies of the results to the host, without waiting.

    One small compiled program per distinct shape, dtype and sharding, rather than one large program: it compiles
    faster, and the arrays need not lie on the same devices.
    """
    digests = {path: _program(array.sharding)(array) for path, array in arrays.items()}
    for value in digests.values():
        value.copy_to_host_async()
    return digests


class Found(NamedTuple):
    """Digests, sixteen hexadecimal digits each.

    Attributes:
      all: path to the digest of the array, each part counted once, by the first process that holds it.
      own: the same by what this process holds alone, of the arrays that it holds whole.
    """

    all: dict[str, str]
    own: dict[str, str]


def fetch(
    arrays: Mapping[str, jax.Array], digests: Mapping[str, jax.Array], collect: Callable[[np.ndarray], np.ndarray]
) -> Found:  # fmt: skip
    """Waits for the digests of ``dispatch`` and adds up the parts of each array.

    ``collect`` is a function from numbers of this process to those of all, along a new first axis: ``Job.collect``.
    """
    numbers, own = np.zeros((len(arrays), 2), np.uint32), {}
    process = jax.process_index()
    for number, (path, array) in enumerate(arrays.items()):
        parts = _parts(array, digests[path])
        holders = held(array.sharding, array.shape)
        numbers[number] = _total(words for index, words in parts.items() if holders[index][0] == process)
        if len(parts) == len(holders):
            own[path] = _hexadecimal(_total(parts.values()))
    everyone = collect(numbers)
    return Found({path: _hexadecimal(_total(everyone[:, number])) for number, path in enumerate(arrays)}, own)


def of(arrays: Mapping[str, jax.Array]) -> dict[str, str]:
    """Path to digest; every process of a run calls it with its arrays."""
    return fetch(arrays, dispatch(arrays), Job.current().collect).all


def _parts(array: jax.Array, found: jax.Array) -> dict[Index, np.ndarray]:
    """Each part that this process holds to its digest."""
    if not isinstance(array.sharding, NamedSharding):
        return {index: np.asarray(found) for index in held(array.sharding, array.shape)}
    of = {shard.device: np.asarray(shard.data)[0] for shard in found.addressable_shards}
    return {bounds(index, array.shape): of[device]
            for device, index in array.sharding.addressable_devices_indices_map(array.shape).items()}  # fmt: skip


def _total(parts: Any) -> np.ndarray:
    words = np.array(list(parts), np.uint32).reshape(-1, 2)
    return np.array([words[:, 0].sum(dtype=np.uint32), np.bitwise_xor.reduce(words[:, 1])])


def _hexadecimal(words: np.ndarray) -> str:
    return "".join(f"{int(word):08x}" for word in words)


@functools.lru_cache(1024)
def _program(sharding: jax.sharding.Sharding) -> Callable[[jax.Array], jax.Array]:
    """The digest of each device's part, [devices, 2] over the mesh's devices; of another sharding the whole, [2]."""
    if not isinstance(sharding, NamedSharding):
        return jax.jit(digest)
    mesh, spec = sharding.mesh, sharding.spec

    def whole(array: jax.Array) -> jax.Array:
        def part(block: jax.Array) -> jax.Array:
            start = [_index(mesh, axes) * size for axes, size in zip(spec, block.shape, strict=False)]
            return digest(block, start, array.shape)[None]

        out = PartitionSpec(mesh.axis_names)
        return jax.shard_map(part, mesh=mesh, in_specs=spec, out_specs=out, check_vma=False)(array)

    return jax.jit(whole)


def _index(mesh: Mesh, axes: str | Sequence[str] | None) -> Any:
    """Which of the parts along a dimension that is split over ``axes`` a device has."""
    names = () if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)
    return jax.lax.axis_index(names).astype(jnp.uint32) if names else 0


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
