"""Our attention in plain JAX against ``jax.nn.dot_product_attention`` on the CPU: wall and CPU seconds, memory.

    python benchmarks/attention_cpu.py [--lengths N ...] [--rounds N] [--json FILE]

float32, 8 heads of 64, causal and full, forward alone and forward with backward, one process. Both are compiled, run
once and then run in turn, round after round, every second round backwards; ratios are medians of the ratios within a
round. CPU seconds are those of all threads, and say more than wall seconds where the machine is shared. Temporary
memory is what the compiled function asks for beside its arguments and results; peak is what the process grew by while
it ran once (Linux; 0 elsewhere). Both must give the same numbers.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from table import Point, at_most, show, show_points, write_json

# Settings of the caller's shell that would change what is measured.
for _name in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES", "JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_X64"):
    os.environ.pop(_name, None)
os.environ["JAX_PLATFORMS"] = "cpu"

BATCH = {256: 4, 512: 4, 1024: 2}  # 1 for longer ones
HEADS, HEAD_SIZE = 8, 64
OURS, THEIRS = "ours", "jax.nn"
LONG = 2048  # from here on less memory is promised too


class Measured(NamedTuple):
    """One contender at one size; seconds of each round."""

    wall: list[float]
    cpu: list[float]
    temporary: int
    peak: int
    compiling: float


def main() -> int:
    options = parse()
    rows, points = [], []
    for length in options.lengths:
        for causal in (True, False):
            for backward in (False, True):
                passes = "forward + backward" if backward else "forward"
                what = f"{passes}, {'causal' if causal else 'full'}, T {length}"
                print(what, file=sys.stderr, flush=True)
                batch = 1 if options.smoke else BATCH.get(length, 1)
                measured, apart = measure(batch, length, causal, backward, options.rounds)
                points += judge(what, measured, apart, length)
                for name, m in measured.items():
                    wall, cpu = (statistics.median(seconds) * 1e3 for seconds in (m.wall, m.cpu))
                    memory = m.temporary / 2**20, m.peak / 2**20
                    rows.append((f"{what}, batch {batch}: {name}", wall, cpu, *memory, m.compiling))
    load, cores = os.getloadavg()[0], os.cpu_count()
    print(f"{cores} cores, load {load:.1f}; float32, {HEADS} heads of {HEAD_SIZE}, {options.rounds} rounds")
    show(("contender", "wall ms", "CPU ms", "temporary MB", "peak MB", "s to compile"), rows)
    print()
    show_points(points)
    write_json(options.json, points)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    lengths = [256, 512, 1024, 2048, 4096]
    parser.add_argument("--lengths", nargs="+", type=int, default=lengths, metavar="N", help="of queries and keys")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="times each runs")
    parser.add_argument("--smoke", action="store_true", help="one short length, one round: shows that it runs, no more")
    parser.add_argument("--json", metavar="FILE", help="write the points to this file")
    options = parser.parse_args()
    if min(options.rounds, *options.lengths) < 1:
        parser.error("--rounds and --lengths are whole numbers from 1")
    if options.smoke:
        options.lengths, options.rounds = [64], 1
    return options


def contenders(causal: bool, backward: bool) -> dict[str, Callable[..., Any]]:
    import jax

    from pallas_kernels import Causal, Full, attention

    def with_backward(forward):
        def both(q, k, v, dout):
            out, pull = jax.vjp(forward, q, k, v)
            return out, *pull(dout)

        return both if backward else lambda q, k, v, dout: (forward(q, k, v),)

    mask = Causal() if causal else Full()
    return {
        THEIRS: with_backward(
            lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=causal, implementation="xla")
        ),
        OURS: with_backward(lambda q, k, v: attention(q, k, v, mask=mask, backend="xla")),
    }


def measure(batch: int, length: int, causal: bool, backward: bool, rounds: int) -> tuple[dict[str, Measured], float]:
    """Figures of each contender, and how far their results are apart, as a share of the largest."""
    import jax
    import numpy as np

    numbers = np.random.default_rng(0)
    shape = (batch, length, HEADS, HEAD_SIZE)
    arguments = [jax.numpy.asarray(numbers.normal(size=shape), "float32") for _ in range(4)]
    made, measured, results = {}, {}, {}
    for name, function in contenders(causal, backward).items():
        begin = time.perf_counter()
        made[name] = jax.jit(function).lower(*arguments).compile()
        compiling = time.perf_counter() - begin
        results[name] = [np.asarray(x) for x in made[name](*arguments)]
        temporary = made[name].memory_analysis().temp_size_in_bytes
        peak = grown(lambda run=made[name]: jax.block_until_ready(run(*arguments)))
        measured[name] = Measured([], [], temporary, peak, compiling)
    pairs = zip(results[OURS], results[THEIRS], strict=True)
    apart = max(float(np.max(np.abs(a - b)) / np.max(np.abs(b))) for a, b in pairs)
    for number in range(rounds):
        for name in list(made)[:: 1 if number % 2 == 0 else -1]:
            wall, cpu = time.perf_counter(), time.process_time()
            jax.block_until_ready(made[name](*arguments))
            measured[name].wall.append(time.perf_counter() - wall)
            measured[name].cpu.append(time.process_time() - cpu)
    return measured, apart


def grown(run: Callable[[], Any]) -> int:
    """Bytes of memory that the process had at most, more than before; 0 where the system does not tell."""
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not clear.exists():
        return 0

    def kilobytes(field: str) -> int:
        return int(next(line for line in status.read_text().splitlines() if line.startswith(field)).split()[1])

    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed would hide growth; glibc only
    except (AttributeError, OSError):
        pass
    try:
        clear.write_text("5")  # the peak is counted anew
    except OSError:
        return 0
    before = kilobytes("VmRSS:")
    run()
    return max(kilobytes("VmHWM:") - before, 0) * 1024


def judge(what: str, measured: dict[str, Measured], apart: float, length: int) -> list[Point]:
    ours, theirs = measured[OURS], measured[THEIRS]

    def ratio(one: list[float], other: list[float]) -> float:
        return statistics.median(a / b for a, b in zip(one, other, strict=True))

    points = [
        at_most(f"wall seconds, ours / jax.nn, {what}", ratio(ours.wall, theirs.wall), 1.0),
        at_most(f"CPU seconds, ours / jax.nn, {what}", ratio(ours.cpu, theirs.cpu), 1.0),
        at_most(f"largest difference of results, {what}", apart, 1e-4),
    ]
    for name in ("temporary", "peak"):
        one, other = getattr(ours, name), getattr(theirs, name)
        if other:
            point = f"{name} memory, ours / jax.nn, {what}"
            points.append(at_most(point, one / other, 1.0) if length >= LONG else Point(point, one / other))
    return points


if __name__ == "__main__":
    sys.exit(main())
