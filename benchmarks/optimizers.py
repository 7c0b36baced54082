"""Steps that optimizers need to the same held-out loss, on the quickstart (configs/t5_sotu.py).

    python benchmarks/optimizers.py --folder DIRECTORY [--optimizers muon adafactor] [--steps 1100] [--seeds 3]
                                    [--rates 0.02 0.05 0.1] [--target LOSS] [--json FILE]

Each cell, an optimizer with one learning rate and one seed, is a run of its own in a folder of its own; cells that are
complete are not run again, and one that was stopped resumes. All cells of a call have the same steps, schedule and
clipping. Prints, and writes, the held-out loss at the end and the steps to the target loss, which is by default the
highest of the best of each optimizer (mean over seeds): all of them reach that.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from table import show

ROOT = Path(__file__).resolve().parents[1]
OPTIMIZERS = {  # name: (assignments after optimizer=CLASS, learning rates)
    "adafactor": (["optimizer=Adafactor"], [0.02, 0.05, 0.1]),
    "muon": (["optimizer=Muon"], [0.01, 0.02, 0.05]),
    "muon-rms": (["optimizer=Muon", "optimizer.scale=rms"], [0.003, 0.01, 0.03]),
    "adamw": (["optimizer=AdamW"], [0.001, 0.003, 0.01]),
}
SCHEDULE = ["optimizer.clip_norm=1.0", "optimizer.schedule.kind=cosine", "optimizer.schedule.hold=0",
            "optimizer.schedule.warmup=0.03", "optimizer.schedule.end=0.1"]  # fmt: skip


def run_cell(folder: Path, name: str, rate: float, seed: int, steps: int, every: int) -> list[tuple[int, float]]:
    """(step, held-out loss) of each evaluation of one run, which is made, or finished, if it is not complete."""
    directory = folder / f"{name}-{rate:g}-{seed}-{steps}"
    curve = held_out(directory)
    if not curve or curve[-1][0] < steps:
        assignments = [*OPTIMIZERS[name][0], f"optimizer.learning_rate={rate}", *SCHEDULE, f"train.seed={seed}",
                       f"train.steps={steps}", f"train.evaluate_every.steps={every}", "checkpoint.keep_last=1",
                       "report.tensorboard=false", "report.plots=false"]  # fmt: skip
        command = [sys.executable, "-m", "t5x_like", "train", str(ROOT / "configs" / "t5_sotu.py"), *assignments]
        done = subprocess.run([*command, "--directory", str(directory)], cwd=ROOT, capture_output=True, text=True)
        curve = held_out(directory)
        if done.returncode and "not finite" not in done.stderr:
            raise SystemExit(f"{directory.name}: {done.stderr[-2000:]}")
    return curve


def held_out(directory: Path) -> list[tuple[int, float]]:
    """What the metrics of a run's folder say; empty where there are none."""
    path = directory / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return [(row["step"], row["held_out/loss"]) for row in rows if row.get("held_out/loss") is not None]


def steps_to(curve: list[tuple[int, float]], target: float) -> float:
    """The first step with at most the target loss, on straight lines between evaluations; infinity if there is none."""
    before: tuple[int, float] | None = None
    for step, loss in curve:
        if loss <= target:
            if before is None:
                return float(step)
            return before[0] + (step - before[0]) * (before[1] - target) / (before[1] - loss)
        before = (step, loss)
    return float("inf")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="of the runs")
    parser.add_argument("--optimizers", nargs="+", default=["adafactor", "muon"], choices=OPTIMIZERS)
    parser.add_argument("--rates", nargs="+", type=float, help="instead of each optimizer's own grid")
    parser.add_argument("--steps", type=int, default=1100)
    parser.add_argument("--every", type=int, default=0, help="steps between evaluations; 0: a twentieth of the run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--target", type=float, help="held-out loss, nats per target token")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    curves: dict[tuple[str, float], list[list[tuple[int, float]]]] = {}
    for name in options.optimizers:
        for rate in options.rates or OPTIMIZERS[name][1]:
            curves[name, rate] = [
                run_cell(options.folder, name, rate, seed, options.steps, options.every or max(1, options.steps // 20))
                for seed in range(options.seeds)
            ]
    last = {cell: statistics.mean(c[-1][1] if c and c[-1][0] == options.steps else float("inf") for c in runs)
            for cell, runs in curves.items()}  # fmt: skip
    best = [min(loss for (n, _), loss in last.items() if n == name) for name in options.optimizers]
    target = options.target or max(best)
    rows = [
        {"optimizer": name, "learning_rate": rate, "seeds": options.seeds, "steps": options.steps,
         "held_out_loss": last[name, rate], "target": target,
         "steps_to_target": statistics.mean(steps_to(curve, target) for curve in runs)}
        for (name, rate), runs in curves.items()
    ]  # fmt: skip
    cells = [(*(r[key] for key in ("optimizer", "learning_rate")), f"{r['held_out_loss']:.3f}",
              f"{r['steps_to_target']:.0f}") for r in rows]  # fmt: skip
    show(("optimizer", "rate", f"loss at {options.steps}", f"steps to {target:.3f}"), cells)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
