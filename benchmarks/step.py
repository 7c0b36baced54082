"""Our train step against others' of the same model on the CPU: tokens/s, CPU time, first step, memory.

    python benchmarks/step.py [--family decoder | t5] [--torch] [--wide] [--rounds N] [--json FILE]

--family decoder, the default: 4 layers, width 256, 4 heads of 64, gated MLP of 1024, vocabulary 8192, on batches of
8 x 256 tokens in float32 (sizes.py). The contenders: plain_decoder.py, the same in plain JAX, scanned and
unrolled; ours (our_decoder.py) scanned and unrolled; with --torch also torch_decoder.py, eager; with --wide ours
unrolled with 512-bit vectors.

--family t5: T5 1.1 with 10 million parameters on batches of 8 x 512 inputs and 8 x 114 targets in float32
(sizes.py). The contenders: ours, unrolled (our_t5.py), and ``transformers`` in PyTorch, eager (torch_t5.py), by its
own choice of attention.

Each contender runs in its own process. Every process is started several times, one contender after the other, which
gives the seconds to the first step (from the start of the process to the loss of the first step; and without imports).
The last ones stay alive and make a few steps each in turn, round after round, so that whatever else the machine does
meets all alike. Figures are medians over rounds, ratios are medians of the ratios within a round. CPU seconds are those
of all threads of the process, and say more than wall seconds where the machine is shared. Peak memory is the process's
largest resident size, compiler included; temporary memory is what the compiled step itself asks for.
At the end all start from the same parameters, and their losses over a few steps must agree.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sizes import SMOKE, T5, Decoder
from table import Point, at_least, at_most, show, show_points, write_json

HERE = Path(__file__).parent
AGREEMENT_STEPS = 5
# Settings of the caller's shell that would change what is measured: 8 virtual devices, say, or a compilation cache.
UNWANTED = ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES", "JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_X64")
Figures = dict[str, Any]
Sizes = Decoder | T5


@dataclasses.dataclass(frozen=True)
class Kind:
    """A contender: its name in the tables, the module that has it, its form, flags for XLA, the class of its sizes."""

    name: str
    module: str
    form: str
    xla_flags: str = ""
    family: str = "Decoder"


PLAIN = {form: Kind(f"plain {form}", "plain_decoder", form) for form in ("scanned", "unrolled")}
OURS = {form: Kind(f"ours {form}", "our_decoder", form) for form in ("scanned", "unrolled")}
WIDE = Kind("ours unrolled, 512 bits", "our_decoder", "unrolled", "--xla_cpu_prefer_vector_width=512")
TORCH = Kind("PyTorch eager", "torch_decoder", "eager")
OUR_T5 = Kind("ours", "our_t5", "unrolled", family="T5")
TRANSFORMERS = Kind("transformers", "torch_t5", "eager", family="T5")


class Process:
    """A worker that has made its first step."""

    def __init__(self, kind: Kind, sizes: Sizes):
        environment = {name: value for name, value in os.environ.items() if name not in UNWANTED}
        environment["JAX_PLATFORMS"] = "cpu"
        if kind.xla_flags:
            environment["XLA_FLAGS"] = kind.xla_flags
        command = [sys.executable, str(HERE / "worker.py"), kind.module, kind.form, kind.family]
        command.append(json.dumps(dataclasses.asdict(sizes)))
        self.kind = kind
        begin = time.perf_counter()
        self.pipe = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )
        try:
            self.start: Figures = self._answer()
        except BaseException:
            self.end()
            raise
        self.start["to_first_step"] = time.perf_counter() - begin

    def ask(self, do: str, **facts: Any) -> Figures:
        """Has the worker do something, and waits until it has."""
        assert self.pipe.stdin is not None
        self.pipe.stdin.write(json.dumps({"do": do} | facts) + "\n")
        self.pipe.stdin.flush()
        return self._answer()

    def end(self) -> None:
        """Ends the worker; safe to call again."""
        assert self.pipe.stdin is not None and self.pipe.stdout is not None
        self.pipe.stdin.close()
        self.pipe.stdout.close()
        self.pipe.wait()

    def _answer(self) -> Figures:
        assert self.pipe.stdout is not None
        line = self.pipe.stdout.readline()
        if not line:
            raise SystemExit(f"{self.kind.name}: the worker ended; its error is above")
        return json.loads(line)


def main() -> int:
    options = parse()
    family = T5 if options.family == "t5" else Decoder
    sizes = SMOKE[family] if options.smoke else family()
    kinds = contenders(options)
    starts: dict[str, list[Figures]] = {kind.name: [] for kind in kinds}
    alive: list[Process] = []
    try:
        for number in range(options.starts):
            for process in alive:
                process.end()
            alive = []
            for kind in kinds:
                print(f"start {number + 1} of {options.starts}: {kind.name}", file=sys.stderr, flush=True)
                alive.append(Process(kind, sizes))
                starts[kind.name].append(alive[-1].start)
        rounds = take_turns(alive, options.rounds, options.steps)
        memory = {process.kind.name: process.ask("memory") for process in alive}
        losses = same_losses(alive)
    finally:
        for process in alive:
            process.end()
    print_measured(kinds, sizes, starts, rounds, memory, options.steps)
    points = agreement(losses)
    if options.family == "t5":
        points += compare_t5(kinds, sizes, rounds, options.steps)
    else:
        points += compare(kinds, sizes, starts, rounds, memory, options.steps)
    print()
    show_points(points)
    write_json(options.json, points)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=("decoder", "t5"), default="decoder", help="which model")
    parser.add_argument("--forms", nargs="+", choices=tuple(OURS), default=list(OURS), help="of the JAX programs")
    parser.add_argument("--torch", action="store_true", help="also PyTorch, if it is installed (the extra 'bench')")
    parser.add_argument("--wide", action="store_true", help="also ours unrolled with 512-bit vectors")
    parser.add_argument("--starts", type=int, default=3, metavar="N", help="times each process is started")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="times each makes its steps")
    parser.add_argument("--steps", type=int, default=3, metavar="N", help="steps in a round")
    parser.add_argument("--smoke", action="store_true", help="a tiny model, one round: shows that it runs, no more")
    parser.add_argument("--json", metavar="FILE", help="write the points to this file")
    options = parser.parse_args()
    if min(options.starts, options.rounds, options.steps) < 1:
        parser.error("--starts, --rounds and --steps are whole numbers from 1")
    if (options.torch or options.wide) and "unrolled" not in options.forms:
        parser.error("--torch and --wide are compared with ours unrolled: leave 'unrolled' among --forms")
    if options.smoke:
        options.starts, options.rounds, options.steps = 1, 1, 1
    return options


def contenders(options: argparse.Namespace) -> list[Kind]:
    if options.family == "t5":
        there = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
        if not there:
            print("transformers is left out: it is not installed (pip install 't5x-like[parity]')", file=sys.stderr)
        return [OUR_T5, TRANSFORMERS] if there else [OUR_T5]
    kinds = [of[form] for form in dict.fromkeys(options.forms) for of in (PLAIN, OURS)]
    if options.wide:
        kinds.append(WIDE)
    if options.torch and importlib.util.find_spec("torch") is None:
        print("PyTorch is left out: it is not installed (pip install 't5x-like[bench]')", file=sys.stderr)
    elif options.torch:
        kinds.append(TORCH)
    return kinds


def take_turns(alive: list[Process], rounds: int, steps: int) -> dict[str, list[Figures]]:
    """What each process took for its steps, round by round; every second round goes through them backwards."""
    taken: dict[str, list[Figures]] = {process.kind.name: [] for process in alive}
    for process in alive:
        process.ask("steps", count=1)  # the first after a pause is not counted
    for number in range(rounds):
        for process in alive if number % 2 == 0 else alive[::-1]:
            taken[process.kind.name].append(process.ask("steps", count=steps))
    return taken


def same_losses(alive: list[Process]) -> dict[str, list[float]]:
    """The losses of a few steps of every process, all from the plain program's parameters."""
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "parameters.npz")
        alive[0].ask("save", file=file)
        return {p.kind.name: p.ask("losses", file=file, count=AGREEMENT_STEPS)["losses"] for p in alive}


def agreement(losses: dict[str, list[float]]) -> list[Point]:
    """How far each contender's losses are from those of the first."""
    first_name, reference = next(iter(losses.items()))
    print(f"\nLosses from the parameters of '{first_name}'; all contenders compute the same thing:")
    show(("contender", *(f"step {i + 1}" for i in range(len(reference)))),
         [(name, *(f"{value:.6f}" for value in values)) for name, values in losses.items()])  # fmt: skip
    apart = {name: [abs(a - b) for a, b in zip(values, reference, strict=True)] for name, values in losses.items()}
    points = []
    if ours := [apart[kind.name] for kind in OURS.values() if kind.name in apart]:
        points.append(at_most("loss of the first step, |ours - plain|", max(a[0] for a in ours), 1e-5))
        points.append(at_most(f"loss of {AGREEMENT_STEPS} steps, |ours - plain|", max(max(a) for a in ours), 1e-4))
    for kind, other in ((TORCH, "plain"), (TRANSFORMERS, "ours")):
        if kind.name in apart:
            name = "PyTorch" if kind is TORCH else kind.name
            points.append(at_most(f"loss of {AGREEMENT_STEPS} steps, |{name} - {other}|", max(apart[kind.name]), 1e-4))
    return points


def print_measured(
    kinds: list[Kind], sizes: Sizes, starts: Figures, rounds: Figures, memory: Figures, steps: int
) -> None:
    """The table of what was measured, one contender per line."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load = os.getloadavg()[0]
    print(f"{sizes}, {cores} cores, load {load:.1f}")
    if load > cores + 1:  # a contender at work is a load of about the number of cores
        print("Other work runs on this machine: trust the CPU seconds more than the tokens/s.")
    heading = (
        "contender", "tokens/s", "best", "CPU s/step", "s to first step", "without imports", "CPU s to it", "peak MB",
        "temporary MB",
    )  # fmt: skip
    rows = []
    for kind in kinds:
        speeds = [sizes.tokens * steps / r["seconds"] for r in rounds[kind.name]]
        temporary = memory[kind.name]["temporary"]
        rows.append((
            kind.name,
            statistics.median(speeds),
            max(speeds),
            statistics.median(r["cpu"] / steps for r in rounds[kind.name]),
            *(statistics.median(s[what] for s in starts[kind.name]) for what in ("to_first_step", "first_step", "cpu")),
            memory[kind.name]["peak"] / 2**20,
            "-" if temporary is None else temporary / 2**20,
        ))  # fmt: skip
    show(heading, rows)


def ratio(figures: Figures, one: Kind, other: Kind, what: str) -> float:
    """The median over rounds or starts of what one took, divided by what the other took."""
    return statistics.median(a[what] / b[what] for a, b in zip(figures[one.name], figures[other.name], strict=True))


def compare_t5(kinds: list[Kind], sizes: Sizes, rounds: Figures, steps: int) -> list[Point]:
    """Speeds as ratios, above 1 where ours is faster."""
    points = []
    if TRANSFORMERS in kinds:
        for what, name in (("seconds", "tokens/s"), ("cpu", "tokens per CPU second")):
            figure = ratio(rounds, TRANSFORMERS, OUR_T5, what)
            points.append(at_least(f"{name}, {OUR_T5.name} / {TRANSFORMERS.name}", figure, 1.0))
    return points + speeds(kinds, sizes, rounds, steps)


def speeds(kinds: list[Kind], sizes: Sizes, rounds: Figures, steps: int) -> list[Point]:
    medians = [statistics.median(sizes.tokens * steps / r["seconds"] for r in rounds[kind.name]) for kind in kinds]
    return [Point(f"tokens/s, {kind.name}", median) for kind, median in zip(kinds, medians, strict=True)]


def compare(
    kinds: list[Kind], sizes: Sizes, starts: Figures, rounds: Figures, memory: Figures, steps: int
) -> list[Point]:
    """Every ratio, with its goal where there is one."""

    def memory_ratio(one: Kind, other: Kind, what: str) -> float:
        return memory[one.name][what] / memory[other.name][what]

    points = []
    for form, ours in ((form, kind) for form, kind in OURS.items() if kind in kinds):
        plain = PLAIN[form]
        speed = f"tokens/s, ours / plain, {form}"
        figure = 1 / ratio(rounds, ours, plain, "seconds")
        points.append(at_least(speed, figure, 1.6) if form == "unrolled" else Point(speed, figure))
        best = min(r["seconds"] for r in rounds[plain.name]) / min(r["seconds"] for r in rounds[ours.name])
        points.append(Point(f"the same of each one's best round, {form}", best))
        points.append(Point(f"CPU seconds per step, ours / plain, {form}", ratio(rounds, ours, plain, "cpu")))
        first = ratio(starts, ours, plain, "to_first_step")
        points.append(at_most(f"seconds to first step, ours / plain, {form}", first, 1.25))
        without = ratio(starts, ours, plain, "first_step")
        points.append(at_most(f"seconds to first step without imports, ours / plain, {form}", without, 1.25))
        points.append(at_most(f"peak memory, ours / plain, {form}", memory_ratio(ours, plain, "peak"), 1.1))
        temporary = memory_ratio(ours, plain, "temporary")
        points.append(at_most(f"temporary memory of the step, ours / plain, {form}", temporary, 1.1))
    for other in (kind for kind in (WIDE, TORCH) if kind in kinds):
        speed = 1 / ratio(rounds, OURS["unrolled"], other, "seconds")
        name = f"tokens/s, ours unrolled / {other.name}"
        points.append(at_least(name, speed, 0.75) if other is TORCH else Point(name, speed))
        cpu = ratio(rounds, OURS["unrolled"], other, "cpu")
        points.append(Point(f"CPU seconds per step, ours unrolled / {other.name}", cpu))
    if WIDE in kinds and TORCH in kinds:
        points.append(Point(f"tokens/s, {WIDE.name} / {TORCH.name}", 1 / ratio(rounds, WIDE, TORCH, "seconds")))
    return points + speeds(kinds, sizes, rounds, steps)


if __name__ == "__main__":
    sys.exit(main())
