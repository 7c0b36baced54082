"""What it costs to come to the first step: user and system seconds of the process, from exec to the end of step 1.

    python benchmarks/start.py [--rounds 3] [--config t5_sotu] [--against TREE] [--json FILE]

The quickstart on a prepared corpus, without evaluation and curves: with an empty folder of compiled programs, and with
the programs of the start before. With --against another checkout is measured in turn with this one.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from table import Point, at_most, show_points, write_json

HERE = Path(__file__).parents[1]
# The command line, but the process ends when the arrays of the first step are there.
UNTIL_STEP_1 = """
import os, sys
from t5x_like.cli import main
import t5x_like.cli.commands as commands

train = commands.train
def until_step_1(options):
    import jax
    from t5x_like.train import loop

    dispatch = loop.Loop._dispatch
    def first(self, *arguments, **named):
        jax.block_until_ready(dispatch(self, *arguments, **named))
        os._exit(0)
    loop.Loop._dispatch = first
    return train(options)
commands.train = until_step_1
sys.exit(main.main(sys.argv[1:]))
"""


def start(tree: Path, arguments: list[str], cache: Path, folder: Path) -> tuple[float, float]:
    """(user and system seconds, seconds) of a process that trains until the end of step 1.

    Raises:
      SystemExit: it failed.
    """
    environment = {"PYTHONPATH": str(tree), "JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(cache)}
    cached = os.environ.get("T5X_LIKE_CACHE") or str(Path("~/.cache/t5x-like").expanduser())  # the prepared corpus
    with tempfile.TemporaryDirectory(dir=folder) as run, tempfile.TemporaryFile() as output:
        command = [sys.executable, "-c", UNTIL_STEP_1, "train", *arguments, "--directory", f"{run}/run"]
        began = time.perf_counter()
        process = subprocess.Popen(command, cwd=tree, stdout=output, stderr=output,
                                   env=os.environ | environment | {"T5X_LIKE_CACHE": cached})  # fmt: skip
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise SystemExit(output.read().decode(errors="replace"))
    return used.ru_utime + used.ru_stime, seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--config", default="t5_sotu", help="a run file, or the name of a shipped one")
    parser.add_argument("--against", metavar="TREE", help="another checkout to measure in turn with this one")
    parser.add_argument("--json", metavar="FILE", help="write the points to this file")
    parser.add_argument("--smoke", action="store_true", help="one round")
    options, assignments = parser.parse_known_args()
    arguments = [options.config, "report.plots=false", *assignments]
    trees = {"": HERE} | ({"the other checkout: ": Path(options.against).resolve()} if options.against else {})
    points = []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        cold = {name: start(tree, arguments, folder / f"cache{name[:3]}", folder) for name, tree in trees.items()}
        warm: dict[str, list[tuple[float, float]]] = {name: [] for name in trees}
        for _ in range(1 if options.smoke else options.rounds):
            for name, tree in trees.items():
                warm[name].append(start(tree, arguments, folder / f"cache{name[:3]}", folder))
    for name in trees:
        used, seconds = (statistics.median(column) for column in zip(*warm[name], strict=True))
        of = f"{name}to the end of step 1"
        points.append(at_most(f"CPU s {of}, programs kept", used, 8) if not name else Point(f"CPU s {of}, again", used))
        points += [Point(f"s {of}, again", seconds), Point(f"CPU s {of}, first start", cold[name][0])]
    show_points(points)
    write_json(options.json, points)
    return 0


if __name__ == "__main__":
    sys.exit(main())
