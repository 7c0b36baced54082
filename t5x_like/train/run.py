"""From a config and a folder to a trained model: everything is checked before the first step, then the loop runs.

Reading path to the train step: ``train`` here, ``loop.Loop``, ``step.train_step``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from t5x_like.checkpoint.checkpoints import Checkpoints
from t5x_like.core.config import to_plain
from t5x_like.core.own_code import own_code, trust
from t5x_like.core.places import with_absolute_paths
from t5x_like.evaluate.task import Evaluation, Values
from t5x_like.models.counts import train_flops
from t5x_like.plan.chips import memory_bytes, peak_bytes, peak_flops
from t5x_like.plan.memory import check_memory, in_bytes, step_memory
from t5x_like.report.clock import Clock
from t5x_like.report.console import Console
from t5x_like.report.ledger import Ledger, next_attempt, read_starts
from t5x_like.report.metrics import METRICS, read_metrics
from t5x_like.report.preparing import Preparing
from t5x_like.report.writers import Reporter, check_outputs
from t5x_like.train.config import Run
from t5x_like.train.data import Data
from t5x_like.train.directory import CHECKPOINTS, config_is_lost, locked, open_directory, record_start
from t5x_like.train.feed import Feed, check_batch_size, local_share
from t5x_like.train.hooks import Hook, Measure, Profile, Sample
from t5x_like.train.loop import Costs, Loop
from t5x_like.train.opened import OpenedRun, open_model
from t5x_like.train.resume import Start, first_state, metadata
from t5x_like.train.setup import Setup
from t5x_like.train.step import compile_step
from t5x_like.train.stopping import Stop
from t5x_like.train.words import data_seen, devices, opening

T = TypeVar("T", bool, int)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
      step: number of updates made.
      complete: whether all updates are made.
      exit_code: 0 if complete, else the code of the signal that stopped it.
      directory: the run's folder.
      evaluations: last values of each evaluation, by its name.
      sample: named lines of the text that the model wrote last; empty where none was asked for.
      commands: those of ``eval`` and ``generate`` that this run has text and a model for.
    """

    step: int
    complete: bool
    exit_code: int
    directory: Path
    evaluations: Mapping[str, Values] = dataclasses.field(default_factory=dict)
    sample: Mapping[str, str] = dataclasses.field(default_factory=dict)
    commands: tuple[str, ...] = ()


def train(run: Run, directory: str | Path, accept_changed: Sequence[str] = ()) -> Outcome:
    """Starts or resumes the run in ``directory``; a complete run is left as it is.

    Args:
      run: the resolved config.
      directory: the run's folder; made if it is not there.
      accept_changed: names of the user's own files that may differ from those of the training.

    Raises:
      UserError: a mistake in config, folder, corpus or checkpoint; raised before anything is changed.
    """
    clock, run = Clock(), with_absolute_paths(run)
    placement, setup = open_model(run)
    index = jax.process_index()
    check_batch_size(placement, run.train.batch_size, run.train.micro_batches)
    local_share(placement, run.train.batch_size)  # each row has its process, or it says why not
    setup.abstract_state(placement)  # every parameter has a place on the mesh, or says why not
    mesh, available = dict(placement.mesh.shape), memory_bytes(jax.local_devices()[0])
    least = dataclasses.replace(run.train, batch_size=placement.batch_ways, micro_batches=1)
    row = dataclasses.replace(run, train=least)  # a trace takes memory by the square of its length
    check_memory(step_memory(setup, row, mesh, traced=False), available, row, mesh)
    tight = check_memory(step_memory(setup, run, mesh), available, run, mesh)
    console = Console(run.train.steps, process_index=index)
    if tight:
        console.note(tight)
    with contextlib.ExitStack() as exits:
        directory = exits.enter_context(locked(directory, index == 0, _of_first))
        open_directory(directory, run, accept_changed)
        check_outputs(directory, run.report)
        checkpoints = exits.enter_context(Checkpoints(directory / CHECKPOINTS, run.checkpoint))
        with Preparing(silent=index > 0) as preparing:
            data = Data.open(run, preparing, console.note)
        data.train.check(run.train.steps)
        stop = exits.enter_context(Stop())  # from here on there is something to save
        with clock.doing("setup" if checkpoints.latest() is None else "checkpoint"):
            start = first_state(run, setup, placement, data, checkpoints, directory)
        if start.step:
            console.note(f"resuming from step {start.step:,}")
        # Several processes must leave at the same step: the loop sees to that.
        asked = (lambda: stop.wanted(0)) if jax.process_count() == 1 else (lambda: False)
        ledger = Ledger(directory, _of_first(next_attempt(directory)), index, clock.lap)
        checkpoints.record = ledger.add
        opened = OpenedRun(run, setup, placement, None, start.step, data, asked, ledger=ledger)
        tasks = _tasks(opened, directory)
        if nothing := _nothing_to_do(opened, tasks, directory):
            console.note(nothing)
            return Outcome(start.step, True, 0, directory, commands=_commands(opened))
        return _go_on(opened, start, tasks, checkpoints, directory, stop, console, clock)


def _go_on(
    opened: OpenedRun, start: Start, tasks: dict[Evaluation, bool], checkpoints: Checkpoints, directory: Path,
    stop: Stop, console: Console, clock: Clock,
) -> Outcome:  # fmt: skip
    """Runs the loop from ``start`` on. From here on nothing is refused, and the folder is written."""
    run, setup, placement, data, ledger = opened.run, opened.setup, opened.placement, opened.data, opened.ledger
    first, total, index = start.step, run.train.steps, jax.process_index()
    reporter = Reporter(directory, run.report, first_step=first + 1, process_index=index, run_config=to_plain(run))
    costs = _costs(run, setup, directory)
    hooks = _hooks(opened, tasks, directory, reporter, console, clock, checkpoints.measured)
    share = local_share(placement, run.train.batch_size)
    feed = Feed(placement, data.train.reader(first, *share, stop_step=total), share)
    loop = Loop(
        run, compile_step(setup, placement), hooks, checkpoints, reporter, console, clock, stop,
        functools.partial(metadata, run, data), functools.partial(_data_metrics, data, feed), costs, start.totals,
        ledger,
    )  # fmt: skip
    if first and config_is_lost(directory):
        console.note("WARNING: config.json was lost or torn; it is written again, compared with the checkpoint's")
    record_start(directory, run, ledger, first, devices(), start.changes, costs.peak_flops, checkpoints.restored)
    if start.changes:
        console.note(start.described)
        reporter.mark(first, start.changes)
    trust(own_code(run).values())  # on each machine
    console.facts(run.name, opening(run, setup, placement, first, directory))
    clock.start()
    try:
        with ledger.faults():
            _, done = loop(start.state, first, iter(feed))
    finally:
        console.close()
        for hook in hooks:
            hook.close()
        picture = reporter.close()
    complete = done == total and stop.signal is None
    if stop.signal is not None:
        ledger.add("stop", done, signal=stop.signal)
    ledger.add("end", done, complete=complete, exit_code=0 if complete else stop.exit_code)
    facts = {
        "updates": f"{done:,} of {total:,}",
        "checkpoint": str(directory / CHECKPOINTS / str(done)),
        "data": data_seen(data, done) + (f"; rows {feed.fill:.1%} full" if done > first else ""),
        "peak memory": in_bytes(peak_bytes(jax.local_devices()[0])),
        "curves": str(picture or ""),
    }
    console.summary(f"{run.name}: {'complete' if complete else 'stopped'}", facts, clock.account())
    evaluations = {hook.task.name: hook.values for hook in hooks if isinstance(hook, Measure) and hook.values}
    written = next((hook.last for hook in hooks if isinstance(hook, Sample)), {})
    code = 0 if complete else stop.exit_code
    return Outcome(done, complete, code, directory, evaluations, written, _commands(opened))


def _nothing_to_do(opened: OpenedRun, tasks: dict[Evaluation, bool], directory: Path) -> str:
    """Why no step and no evaluation is left, in words; empty if one is."""
    run, step, total = opened.run, opened.step, opened.run.train.steps
    if step > total:
        return (f"{run.name} has made {step:,} steps, more than train.steps={total:,}: nothing is trained. "
                f"For a run of {total:,} steps take another folder than {directory}")  # fmt: skip
    if step < total or any(not made and run.times(task).due(step, total) for task, made in tasks.items()):
        return ""
    return f"{run.name} is complete: all {total:,} steps are made. {directory}"


def _of_first(found: T) -> T:
    """What the first process of the job has found: a number, or whether something is so."""
    return multihost_utils.broadcast_one_to_all(np.asarray(found)).item() if jax.process_count() > 1 else found


def _commands(opened: OpenedRun) -> tuple[str, ...]:
    tasks, model = opened.run.evaluations, opened.run.model
    measures = bool(tasks) and all(opened.data.held_out or not task.needs_held_out for task in tasks)
    writes = model.has_decoder and all(side.inputs.uses_tokens for _, side in model.sides)
    return ("eval",) * measures + ("generate",) * writes


def _tasks(opened: OpenedRun, directory: Path) -> dict[Evaluation, bool]:
    """Evaluations with data to evaluate, and whether their values of the present step are in the metrics."""
    path, tasks = directory / METRICS, opened.run.evaluations
    rows = [row for row in (read_metrics(path) if path.is_file() else ()) if row["step"] == opened.step]
    made = {name.split("/")[0] for row in rows for name in row if "/" in name}
    return {task: task.label(opened) in made for task in tasks if opened.data.held_out or not task.needs_held_out}


def _hooks(
    opened: OpenedRun, tasks: dict[Evaluation, bool], directory: Path, reporter: Reporter, console: Console,
    clock: Clock, measured: Callable[[int, Mapping[str, float]], None],
) -> list[Hook]:  # fmt: skip
    """Actions between steps, in order."""
    run, report = opened.run, opened.run.report
    hooks: list[Hook] = [
        Measure(task, run.times(task), opened, reporter, console, clock, opened.step if made else None, measured)
        for task, made in tasks.items()
    ]
    if opened.data.held_out_split is not None and jax.process_count() == 1:
        hooks.append(Sample(opened, console, clock))
    return [*hooks, Profile(report.profile, report.profile_steps, directory / "profile")]


def _costs(run: Run, setup: Setup, directory: Path) -> Costs:
    """Costs of a step; the peak of a CPU is the highest measured at any start on the same devices, since what else it
    computes at that moment makes it lower."""
    rows, lengths, device = run.train.batch_size, run.lengths(), jax.devices()[0]
    peak = peak_flops(device)
    peak = peak * jax.device_count() if peak else None
    if device.platform == "cpu":
        before = [start.get("peak_flops") for start in read_starts(directory) if start.get("devices") == devices()]
        peak = max([found for found in (peak, *before) if isinstance(found, float) and found > 0], default=None)
    flops, of = rows * train_flops(run.model, setup.specs, *lengths), "roofline" if device.platform == "cpu" else "MFU"
    return Costs(tokens=rows * sum(lengths), flops=flops, peak_flops=peak, utilization_of=of)


def _data_metrics(data: Data, feed: Feed, done: int) -> dict[str, float]:
    """Tokens and epochs of each corpus in the first ``done`` batches; how full those of this start were; memory."""
    metrics = {"data/fill": feed.fill, "memory/peak_bytes": peak_bytes(jax.local_devices()[0])}
    for name, seen in data.train.seen(done).items():
        metrics |= {f"data/{name}/tokens": float(seen.tokens), f"data/{name}/epochs": seen.epochs}
    return metrics
