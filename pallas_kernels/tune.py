"""Times block sizes on the device that is there, and keeps the fastest for later calls:

    python -m pallas_kernels.tune

Writes ``measured.json`` beside this file, or where $PALLAS_KERNELS_MEASURED says; ``blocks.resolve`` reads it. Knows
the call and nothing of its kernels.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from pallas_kernels.attention import Backend, attention
from pallas_kernels.blocks import BlockSizes, Measured, chip_name, load_measured, measured_path, save_measured
from pallas_kernels.masks import Causal

Timer = Callable[[Callable, Sequence[jax.Array]], float]
SIZES = {"tpu": (256, 512, 1024, 2048), "gpu": (32, 64, 128)}


def milliseconds(function: Callable, arguments: Sequence[jax.Array], repeats: int = 5) -> float:
    """Median time of a compiled call, after one that is not counted."""
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def tune(
    head: int, length: int, backend: Backend, sizes: Sequence[int], timer: Timer = milliseconds, interpret=False
) -> Measured:
    """Tries all pairs of sizes up to the length, forward and backward apart; causal, bfloat16, 8 heads of two rows.

    Sizes that do not compile are passed over.

    Raises:
      RuntimeError: none compiles.
    """
    q = jax.random.normal(jax.random.key(0), (2, length, 8, head), jnp.bfloat16)

    def forward(blocks: BlockSizes):
        return jax.jit(lambda q: attention(q, q, q, mask=Causal(), backend=backend, blocks=blocks, interpret=interpret))

    def backward(blocks: BlockSizes):
        return jax.jit(jax.grad(lambda q: jnp.sum(forward(blocks)(q).astype(jnp.float32))))

    best = {}
    for name, make in (("forward", forward), ("backward", backward)):
        found = {}
        for pair in itertools.product([size for size in sizes if size <= length] or sizes[:1], repeat=2):
            blocks = BlockSizes(pair[0], pair[1]) if name == "forward" else BlockSizes(0, 0, pair[0], pair[1])
            try:
                found[pair] = timer(make(blocks), [q])
            except (jax.errors.JaxRuntimeError, ValueError, NotImplementedError) as error:
                print(f"  {name} {pair}: passed over: {str(error).splitlines()[0][:100]}")
                continue
            print(f"  {name} {pair}: {found[pair]:.3f} ms")
        if not found:
            raise RuntimeError(f"no block sizes of {tuple(sizes)} compile for heads of {head}, length {length}")
        best[name] = min(found, key=found.__getitem__)
    return Measured(head, length, *best["forward"], *best["backward"])


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m pallas_kernels.tune", description=__doc__)
    parser.add_argument("--head-sizes", default="64,128", help="comma separated (default: 64,128)")
    parser.add_argument("--lengths", default="512,2048,8192", help="comma separated (default: 512,2048,8192)")
    options = parser.parse_args(arguments)
    platform = jax.devices()[0].platform
    backends: dict[str, Backend] = {"tpu": "tpu", "gpu": "gpu", "cuda": "gpu"}
    backend = backends.get(platform)
    if backend is None:
        parser.exit(2, f"there are no kernels for {platform}: run this where a TPU or GPU is\n")
    numbers = [[int(n) for n in text.split(",")] for text in (options.head_sizes, options.lengths)]
    table = load_measured()
    chip = chip_name()
    for head, length in itertools.product(*numbers):
        print(f"{chip}, heads of {head}, length {length}")
        entry = tune(head, length, backend, SIZES[backend])
        others = [old for old in table.get(chip, []) if (old.head, old.length) != (head, length)]
        table[chip] = [*others, entry]
        save_measured(table)
    print(f"written to {measured_path()}")


if __name__ == "__main__":
    main()
