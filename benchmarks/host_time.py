"""Host time of a step: CPU seconds of the thread that dispatches, between one dispatch and the next.

    python benchmarks/host_time.py [--steps 500] [--rounds 3] [--against TREE] [--json FILE]

The quickstart with 50 thousand parameters, dispatched asynchronously; saves, evaluations and lines of
progress are left out. With --against another checkout is measured in turn with this one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from table import Point, at_most, show_points, write_json

HERE = Path(__file__).parents[1]
PARTS = {"next": "the next batch", "_dispatch": "dispatch", "_read": "metrics"}
WARM = 50


def small_run(folder: Path, steps: int):
    """The quickstart, small, on bytes, without saves and evaluations before the end."""
    from t5x_like import config as t

    (folder / "text.txt").write_text("\n".join(f"The {n}th of many lines of text." for n in range(20_000)))
    corpus = t.Corpus("lines", t.TextFiles((str(folder / "text.txt"),)), t.Bytes(), licence="none", origin="made here")
    return t.Run(
        name="small", objective=t.SpanCorruption(), data=t.DataConfig(corpus, input_length=32),
        model=t.t5_1_1(vocab_size=384, d_model=24, d_ff=48, heads=2, head_dim=12, encoder_layers=2, decoder_layers=2,
                       scan_layers=False),
        optimizer=t.Adafactor(learning_rate=0.05, clip_norm=1.0),
        train=t.TrainConfig(steps=steps, batch_size=8, evaluate_every=t.Every(0), evaluate_batches=1),
        checkpoint=t.CheckpointConfig(every=t.Every(0)),
        report=t.ReportConfig(plots=False, tensorboard=False, every=10),
    )  # fmt: skip


def measure(steps: int) -> dict[str, float]:
    """Milliseconds of CPU of this thread, medians over steps: ``all``, and of each of ``PARTS``."""
    from t5x_like.train import loop, run

    began: list[float] = []
    spent: dict[str, list[float]] = {name: [] for name in PARTS}

    def timed(name: str, function: Callable[..., Any]) -> Any:
        def call(*args, **kwargs):
            if name == "_dispatch":
                began.append(time.thread_time())
            start = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                spent[name].append(time.thread_time() - start)

        return call

    for name in ("_dispatch", "_read"):
        setattr(loop.Loop, name, timed(name, getattr(loop.Loop, name)))
    batches = run.Feed.__iter__

    def each(self):
        following = timed("next", batches(self).__next__)
        while True:
            try:
                yield following()
            except StopIteration:
                return

    run.Feed.__iter__ = each
    with tempfile.TemporaryDirectory() as folder:
        run.train(small_run(Path(folder), steps + 2 * WARM), Path(folder) / "run")
    whole = [after - before for before, after in zip(began, began[1:], strict=False)][WARM:][:steps]
    found = {"all": statistics.median(whole)}
    found |= {name: statistics.median(seconds[WARM:][:steps]) for name, seconds in spent.items()}
    return {name: 1e3 * seconds for name, seconds in found.items()}


def ledger_share(step: float) -> float:
    """Percent of a step of ``step`` milliseconds that the ledger takes: its call of each step, and lines at their most
    frequent."""
    from t5x_like.report.clock import Clock
    from t5x_like.report.ledger import SHORTEST, Ledger

    with tempfile.TemporaryDirectory() as folder:
        ledger, took = Ledger(Path(folder), lap=Clock().lap), {}
        for name, call, count in (("step", ledger.stepped, 100_000), ("line", lambda n: ledger.add("steps", n), 2_000)):
            call(0)
            start = time.thread_time()
            for number in range(count):
                call(number)
            took[name] = 1e3 * (time.thread_time() - start) / count
    return 100 * (took["step"] + took["line"] * step / (1e3 * SHORTEST)) / step


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--against", metavar="TREE", help="another checkout to measure in turn with this one")
    parser.add_argument("--json", metavar="FILE", help="write the points to this file")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        sys.stderr.write(json.dumps(measure(options.steps)) + "\n")
        return 0
    trees = [HERE, *([Path(options.against)] if options.against else [])]
    found: dict[Path, list[dict[str, float]]] = {tree: [] for tree in trees}
    for _ in range(options.rounds):
        for tree in trees:
            command = [sys.executable, __file__, "--one", "--steps", str(options.steps)]
            environment = os.environ | {"PYTHONPATH": str(tree), "JAX_PLATFORMS": "cpu"}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tree)
            if done.returncode:
                print(done.stderr, file=sys.stderr)
                return 1
            found[tree].append(json.loads(done.stderr.splitlines()[-1]))
    middle = {
        tree: {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
        for tree, rounds in found.items()
    }
    ours = middle[HERE]
    points = [at_most("host ms a step", ours["all"], 1.0)]
    points += [Point(f"of these {text}", ours[name]) for name, text in PARTS.items()]
    points.append(at_most("the ledger, % of such a step", ledger_share(ours["all"]), 0.1))
    if options.against:
        points.append(at_most("host time, ours / the other checkout's", ours["all"] / middle[trees[1]]["all"], 1.05))
    show_points(points)
    write_json(options.json, points)
    return 0


if __name__ == "__main__":
    sys.exit(main())
