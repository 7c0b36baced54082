"""Compiles the GPU attention kernels ahead of time, without a GPU, and prints what ptxas says of each.

    pip install --no-deps jax-cuda13-plugin jax-cuda13-pjrt    # of jax's version; ptxas from CUDA 13 on PATH
    python benchmarks/kernels_gpu.py [--chips a100,h100,b200] [--heads 64,128] [--features causal,t5] [--json FILE]

For each chip, feature and kernel: registers of a thread, and bytes spilled (stores and loads). Compiling is the whole
check: no kernel runs. Without the plugin it says so and measures nothing. 3 to 10 seconds a line of three kernels.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

KERNELS = ("attention_forward", "attention_dq", "attention_dkv")
LENGTH = 1024

# What XLA's compiler needs to know of a chip; numbers of NVIDIA's data sheets and CUDA's device properties.
_TARGET = """
gpu_device_info {
  cuda_compute_capability { %(capability)s }
  core_count: %(cores)d
  shared_memory_per_block_optin: %(shared)d
  device_memory_size: %(memory)d
  memory_bandwidth: %(bandwidth)d
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_core: %(shared_core)d
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  fpus_per_core: %(fpus)d l2_cache_size: %(cache)d clock_rate_ghz: %(clock)g
}
platform_name: "CUDA"
runtime_version { major: 13 }
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "%(name)s"
"""
_ACCELERATED = "feature_extension: ACCELERATED_FEATURES"
_CHIPS = {
    "a100": dict(
        name="NVIDIA A100-SXM4-80GB", capability="major: 8 minor: 0", cores=108, shared=166912, shared_core=167936,
        memory=80 << 30, bandwidth=2039 * 10**9, fpus=64, cache=40 << 20, clock=1.41,
    ),
    "h100": dict(
        name="NVIDIA H100 80GB HBM3", capability=f"major: 9 {_ACCELERATED}", cores=132, shared=232448,
        shared_core=233472, memory=80 << 30, bandwidth=3352 * 10**9, fpus=128, cache=50 << 20, clock=1.98,
    ),
    "b200": dict(
        name="NVIDIA B200", capability=f"major: 10 minor: 0 {_ACCELERATED}", cores=148, shared=232448,
        shared_core=233472, memory=180 << 30, bandwidth=8000 * 10**9, fpus=128, cache=126 << 20, clock=1.96,
    ),
}  # fmt: skip


def target(chip: str) -> str:
    """The description of a chip, for ``get_topology_desc(target_config=...)``."""
    return _TARGET % _CHIPS[chip]


def missing() -> str:
    """Why nothing can be compiled here; empty if it can."""
    if importlib.util.find_spec("jax_plugins") is None or importlib.util.find_spec("jax_plugins.xla_cuda13") is None:
        return "the packages jax-cuda13-plugin and jax-cuda13-pjrt are not installed"
    return ""


def device(chip: str) -> Any:
    """A device to compile for. The process must have JAX_PLATFORMS=cpu, or the plugin asks for cuDNN."""
    from jax.experimental import topologies

    return topologies.get_topology_desc(
        platform="cuda", topology_name="", topology="1x1x1", target_config=target(chip)
    ).devices[0]


def features() -> dict[str, Callable[[], dict[str, Any]]]:
    """Arguments of ``attention`` by name, beside queries, keys and values; and of those head and dtype."""
    import jax.numpy as jnp

    from pallas_kernels import biases, dropout, masks

    ids = jnp.ones((2, LENGTH), jnp.int32)
    causal, heads = masks.Causal(), 8
    buckets = jnp.zeros((32, heads), jnp.float32)

    def dense(*shape: int) -> Callable[[], dict[str, Any]]:
        return lambda: dict(bias=biases.Dense(jnp.zeros((*shape, LENGTH, LENGTH), jnp.bfloat16)))

    return {
        "causal": lambda: dict(mask=causal),
        "full": dict,
        "mqa": lambda: dict(mask=causal, key_heads=1),
        "ragged": lambda: dict(mask=causal, length=1000),
        "window": lambda: dict(mask=masks.SlidingWindow(256, 0)),
        "chunked": lambda: dict(mask=masks.Chunked(200) & causal),
        "segments": lambda: dict(mask=causal & masks.Segments(ids, ids)),
        "prefix": lambda: dict(mask=(causal | masks.Prefix(ids)) & masks.Segments(ids, ids)),
        "ordered": lambda: dict(mask=masks.Ordered(ids, ids)),
        "bigbird": lambda: dict(mask=masks.BigBird(size=64)),
        "soft cap": lambda: dict(mask=causal, soft_cap=50.0),
        "sinks": lambda: dict(mask=causal, sinks=jnp.zeros((heads,), jnp.float32)),
        "dropout": lambda: dict(mask=causal, dropout=dropout.Dropout(0.1, jnp.int32(0))),
        "t5": lambda: dict(bias=biases.T5Relative(buckets, True)),
        "t5 causal": lambda: dict(mask=causal, bias=biases.T5Relative(buckets, False)),
        "alibi": lambda: dict(mask=causal, bias=biases.Alibi(jnp.zeros((heads,), jnp.float32))),
        "dense": dense(2, heads),
        "dense shared": dense(1, 1),
        "offset": lambda: dict(mask=causal, q_offset=jnp.int32(0)),
        "float32": lambda: dict(mask=causal, dtype=jnp.float32),
        "all": lambda: dict(
            mask=causal & masks.Segments(ids, ids), bias=biases.T5Relative(buckets, False), soft_cap=50.0,
            sinks=jnp.zeros((heads,), jnp.float32), dropout=dropout.Dropout(0.1, jnp.int32(0)),
        ),
    }  # fmt: skip


def both_ways(feature: dict[str, Any], size: int, value_size: int, placed: Callable[[Any], Any]) -> tuple[Any, tuple]:
    """The forward and backward pass, to be compiled, and its arguments: what ``placed`` makes of arrays or shapes."""
    import jax
    import jax.numpy as jnp

    from pallas_kernels.attention import attention
    from pallas_kernels.masks import Full

    options = {"mask": Full(), "dtype": jnp.bfloat16, "key_heads": 4, "length": LENGTH, "q_offset": 0} | feature
    dtype, key_heads, length = (options.pop(name) for name in ("dtype", "key_heads", "length"))
    static = {name: options.pop(name) for name in ("soft_cap",) if name in options}
    if isinstance(options["q_offset"], int):
        static["q_offset"] = options.pop("q_offset")
    shapes = ((2, length, 8, size), (2, length, key_heads, size), (2, length, key_heads, value_size))
    q, k, v = (placed(jax.ShapeDtypeStruct(shape, dtype)) for shape in shapes)
    out = placed(jax.ShapeDtypeStruct((2, length, 8, value_size), dtype))
    lse = placed(jax.ShapeDtypeStruct((2, 8, length), jnp.float32))
    trained = {name: options.pop(name) for name in ("bias", "sinks") if name in options}
    options = jax.tree.map(jnp.asarray, options)

    def run(q, k, v, trained, options, gradients):
        def forward(q, k, v, trained):
            return attention(q, k, v, **trained, **options, **static, backend="gpu", return_lse=True)

        out, pull = jax.vjp(forward, q, k, v, trained)
        return out, pull(gradients)

    return run, (q, k, v, jax.tree.map(placed, trained), jax.tree.map(placed, options), (out, lse))


def _work(chip: str, heads: list[str], names: list[str]) -> None:
    """In a process of its own, whose stderr tells what ptxas says: lines that start with # are from here."""
    import jax

    sharding = jax.sharding.SingleDeviceSharding(device(chip))

    def placed(array):
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)

    for size, value_size in (map(int, (head if "/" in head else f"{head}/{head}").split("/")) for head in heads):
        for name in names:
            print(f"#case {size}/{value_size} {name}", file=sys.stderr, flush=True)
            try:
                run, arguments = both_ways(features()[name](), size, value_size, placed)
                jax.jit(run).lower(*arguments).compile()
            except Exception as failure:  # the rest of the table is worth having
                print(f"#failed {type(failure).__name__}: {str(failure)[:300]!r}", file=sys.stderr, flush=True)


def measure(chip: str, heads: list[str], names: list[str]) -> list[tuple[str, str, str, int, int, int]]:
    """(head, feature, kernel, registers, bytes of spill stores, of spill loads); -1 where it does not compile."""
    command = [sys.executable, __file__, "--worker", chip, "--heads", ",".join(heads), "--features", ",".join(names)]
    logs = {"TF_CPP_MIN_LOG_LEVEL": "0", "TF_CPP_VMODULE": "subprocess_compilation=3", "JAX_PLATFORMS": "cpu"}
    process = subprocess.run(command, env=os.environ | logs, stderr=subprocess.PIPE, text=True, check=False)
    rows, head, name, kernel, spills = {}, "", "", "", (0, 0)
    for line in process.stderr.splitlines():
        if found := re.match(r"#case (\S+) (.*)", line):
            head, name = found.groups()
        elif line.startswith("#failed"):
            print(f"{chip} {head} {name}: {line[8:]}", flush=True)
            rows[head, name, "all"] = (-1, -1, -1)
        elif found := re.search(r"Compiling entry function '(\w+)'", line):
            kernel = found[1]
        elif found := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
            spills = (int(found[1]), int(found[2]))
        elif (found := re.search(r"Used (\d+) registers", line)) and kernel in KERNELS:
            rows[head, name, kernel] = (int(found[1]), *spills)
    if process.returncode or not rows:
        raise RuntimeError(f"{chip}: the compiling process failed:\n{process.stderr[-3000:]}")
    return [(*key, *row) for key, row in rows.items()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chips", default=",".join(_CHIPS), help="of a100, h100, b200")
    parser.add_argument("--heads", default="64,128", help="head sizes; 192/128 for other values than queries and keys")
    parser.add_argument("--features", default="", help="names of the table; empty: all")
    parser.add_argument("--json", help="file to write the figures to")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    heads = options.heads.split(",")
    if options.worker:
        _work(options.worker, heads, options.features.split(","))
        return 0
    if reason := missing():
        print(f"skipped: {reason}")
        return 0
    from table import Point, show, write_json

    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # or the plugin looks for a driver
    names = options.features.split(",") if options.features else list(features())
    rows, points = [], []
    for chip in options.chips.split(","):
        for head, name, kernel, registers, stores, loads in measure(chip, heads, names):
            rows.append((f"{chip} {head} {name}", kernel.removeprefix("attention_"), registers, stores, loads))
            point = f"spill stores of {kernel}, {chip}, head {head}, {name} (bytes)"
            points.append(Point(point, float(stores), "<= 0", stores == 0))
    show(("chip, head, feature", "kernel", "registers", "spill stores", "spill loads"), rows)
    write_json(options.json, points)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
