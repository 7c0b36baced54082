"""Saving and restoring a state of 420 MB: against a copy of its files, Orbax alone, and another checkout.

    python benchmarks/checkpoint.py [--megabytes 420] [--rounds 5] [--against TREE] [--smoke] [--json FILE]

Every figure is a median over rounds in which all contenders take turns, each in a folder of its own; files are in the
page cache for all. The state is 100 float32 matrices of random numbers, which hardly compress. With --against the
restore of another checkout, of the files that it writes, is measured in turn with this one, each in a process.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from table import Point, at_most, show_points, write_json

HERE = Path(__file__).parents[1]
ARRAYS = 100


def timed(function: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock, and of all CPUs."""
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - cpu


def copy_files(source: Path, target: Path) -> None:
    """The bytes of every file, through user space as a save has them."""
    target.mkdir()
    for number, path in enumerate(each for each in source.rglob("*") if each.is_file()):
        (target / str(number)).write_bytes(path.read_bytes())


def measure(megabytes: int, rounds: int, folder: Path) -> dict[str, list[float]]:
    """Name to a figure of each round."""
    import jax
    from orbax.checkpoint import v1 as ocp

    from t5x_like.checkpoint import digests
    from t5x_like.checkpoint.checkpoints import Checkpoints

    side = int((megabytes * 1e6 / 4 / ARRAYS) ** 0.5)
    state = {f"x{n}": jax.random.normal(jax.random.key(n), (side, side)) for n in range(ARRAYS)}
    jax.block_until_ready(state)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    template = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here) for name, x in state.items()}
    found: dict[str, list[float]] = {}

    def note(name: str, figure: float) -> None:
        found.setdefault(name, []).append(figure)

    for number in range(rounds + 1):
        where = folder / str(number)
        checkpoints = Checkpoints(where)

        def save(checkpoints=checkpoints) -> None:
            began = time.perf_counter()
            checkpoints.save(1, state, {})
            note("blocked", time.perf_counter() - began)
            checkpoints.wait()

        note("save", timed(save)[0])
        checkpoints.close()
        note("digest", timed(lambda: digests.of(state))[0])
        note("copy", timed(lambda: copy_files(where / "1", folder / "copy"))[0])  # noqa: B023
        note("bytes", sum(x.nbytes for x in state.values()))
        shutil.rmtree(folder / "copy")
        ours, orbax = [], []
        for turn in range(6):  # a restore is short beside what else the machine does: the least of three
            with Checkpoints(where, read_only=True) as reader:
                if turn % 2:
                    ours.append(timed(lambda: jax.block_until_ready(reader.restore(template)[0])))  # noqa: B023
                else:
                    orbax.append(timed(lambda: jax.block_until_ready(ocp.load(str(where / "1"), template))))  # noqa: B023
        note("restore", min(wall for wall, _ in ours))
        note("orbax", min(wall for wall, _ in orbax))
        note("restore cpu", min(cpu for _, cpu in ours))
        note("orbax cpu", min(cpu for _, cpu in orbax))
        shutil.rmtree(where)
    return {name: figures[1:] for name, figures in found.items()}  # the first round compiles


RESTORE = """
import json, sys, tempfile, time, jax
from t5x_like.checkpoint.checkpoints import Checkpoints
side = int((int(sys.argv[1]) * 1e6 / 4 / 100) ** 0.5)
state = {f"x{n}": jax.random.normal(jax.random.key(n), (side, side)) for n in range(100)}
template = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in state.items()}
seconds = []
with tempfile.TemporaryDirectory(dir=sys.argv[2]) as folder:
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(1, state, {})
    for _ in range(4):
        with Checkpoints(folder, read_only=True) as checkpoints:
            cpu = time.process_time()
            jax.block_until_ready(checkpoints.restore(template)[0])
            seconds.append(time.process_time() - cpu)
sys.stderr.write(json.dumps(seconds[1:]) + "\\n")
"""


def restores(tree: Path, megabytes: int, folder: Path) -> list[float]:
    """CPU seconds of three restores by a checkout, after one that compiles, in a process of its own."""
    command = [sys.executable, "-c", RESTORE, str(megabytes), str(folder)]
    environment = os.environ | {"PYTHONPATH": str(tree), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tree)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stderr.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=420)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", metavar="DIR", help="where to write (default: the temporary folder)")
    parser.add_argument("--against", metavar="TREE", help="another checkout whose restore is measured in turn")
    parser.add_argument("--json", metavar="FILE", help="write the points to this file")
    parser.add_argument("--smoke", action="store_true", help="4 MB, one round: shows that everything runs")
    options = parser.parse_args()
    if options.smoke:
        options.megabytes, options.rounds = 4, 1
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    sys.path.insert(0, str(HERE))
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        rounds = measure(options.megabytes, options.rounds, Path(folder))
        pairs = [(restores(HERE, options.megabytes, Path(folder)),
                  restores(Path(options.against), options.megabytes, Path(folder)))
                 for _ in range(options.rounds * bool(options.against))]  # fmt: skip

    def ratio(one: str, other: str) -> float:
        return statistics.median(a / b for a, b in zip(rounds[one], rounds[other], strict=True))

    speed = {name: rounds["bytes"][0] / 1e6 / statistics.median(rounds[name]) for name in ("save", "restore", "copy")}
    points = [
        at_most("async save: seconds blocked / seconds of a save", ratio("blocked", "save"), 0.10),
        at_most("digest / save, seconds", ratio("digest", "save"), 0.05),
        Point("seconds blocked by a save", statistics.median(rounds["blocked"])),
        Point("save, MB/s", speed["save"]),
        Point("restore with verification, MB/s", speed["restore"]),
        Point("copy of the same files, MB/s", speed["copy"]),
        Point("save / copy, MB/s", ratio("copy", "save")),
        Point("restore / copy, MB/s", ratio("copy", "restore")),
        at_most("restore with verification / Orbax's own, seconds", ratio("restore", "orbax"), 1.15),
        Point("restore with verification / Orbax's own, CPU seconds", ratio("restore cpu", "orbax cpu")),
    ]
    if pairs:
        against = statistics.median(min(ours) / min(theirs) for ours, theirs in pairs)
        points.append(at_most("restore, CPU seconds, ours / the other checkout's", against, 0.5))
    show_points(points)
    write_json(options.json, points)
    return 0


if __name__ == "__main__":
    sys.exit(main())
