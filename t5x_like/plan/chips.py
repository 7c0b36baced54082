"""Peak arithmetic and memory of devices: published figures for accelerators, a measurement for a CPU."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

import jax
import jax.numpy as jnp

# Where Linux says how much memory a container may use.
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")

# Dense bfloat16 TFLOP/s of one jax device, by the start of its ``device_kind``; from the makers' data sheets. That of a
# TPU7x is half a chip: a jax device is one of its two cores.
PEAK_TFLOPS = (
    ("TPU v4", 275.0), ("TPU v5 lite", 197.0), ("TPU v5e", 197.0), ("TPU v5p", 459.0), ("TPU v5", 459.0),
    ("TPU v6 lite", 918.0), ("TPU v6e", 918.0), ("TPU7x", 1153.5),
    ("NVIDIA A100", 312.0), ("NVIDIA H100", 989.0), ("NVIDIA H200", 989.0), ("NVIDIA B200", 2250.0),
)  # fmt: skip


# GiB of memory of one jax device that programs may use, by the start of its ``device_kind``: as libtpu says when a
# program does not fit.
MEMORY_GIB = (
    ("TPU v4", 32.0), ("TPU v5 lite", 15.75), ("TPU v5e", 15.75), ("TPU v5p", 95.74), ("TPU v5", 95.74),
    ("TPU v6 lite", 31.25), ("TPU v6e", 31.25), ("TPU7x", 94.75),
)  # fmt: skip


def peak_flops(device: jax.Device) -> float | None:  # pyright: ignore[reportInvalidTypeForm]: jax.Device is a class
    """Floating-point operations a second of one device, or None where it is not known.

    The devices of a CPU share its cores, so the figure measured there is of all local devices together, divided by
    their number.
    """
    for kind, teraflops in PEAK_TFLOPS:
        if device.device_kind.startswith(kind):
            return teraflops * 1e12
    if device.platform == "cpu":
        return _measured_cpu_flops() / jax.local_device_count()
    return None


def memory_bytes(device: jax.Device) -> int | None:  # pyright: ignore[reportInvalidTypeForm]: jax.Device is a class
    """Bytes of memory that a device has, or None where it does not say. The devices of a CPU share the machine's, or
    what a container may use of it. Of a TPU that is not here, what its kind has."""
    if device.platform != "cpu":
        try:
            return (device.memory_stats() or {}).get("bytes_limit")
        except jax.errors.JaxRuntimeError:  # it is not here
            return next((int(size * 2**30) for kind, size in MEMORY_GIB if device.device_kind.startswith(kind)), None)
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in map(Path, CGROUP_LIMITS):
        if path.is_file() and (text := path.read_text().strip()).isdigit():
            limits.append(int(text))
    return min(limits) // jax.local_device_count()


def peak_bytes(device: jax.Device) -> float:  # pyright: ignore[reportInvalidTypeForm]: jax.Device is a class
    """Bytes that a device has held at most since the process began; of a CPU, that the whole process has."""
    stats = device.memory_stats() or {}
    return float(stats.get("peak_bytes_in_use", 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))


def _measured_cpu_flops(size: int = 1024, repeats: int = 3) -> float:
    """Of a float32 matrix product, the best of a few, within about 0.2 s."""
    a = jnp.ones((size, size), jnp.float32)
    product = jax.jit(jnp.matmul)
    product(a, a).block_until_ready()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        product(a, a).block_until_ready()
        seconds.append(time.perf_counter() - began)
    return 2.0 * size**3 / min(seconds)
