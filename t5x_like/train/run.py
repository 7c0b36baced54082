"""From a config and a folder to a trained model: everything is checked before the first step, then the loop runs.

Reading path to the train step: ``train`` here, ``loop.Loop``, ``step.train_step``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from t5x_like.checkpoint.checkpoints import Checkpoints
from t5x_like.core.config import to_plain
from t5x_like.core.own_code import own_code, trust
from t5x_like.core.places import with_absolute_paths
from t5x_like.evaluate.task import Evaluation, Values
from t5x_like.input_pipeline.batches.features import Batch as HostBatch
from t5x_like.input_pipeline.batches.show import show_row
from t5x_like.job.join import join_processes, line
from t5x_like.job.watchdog import Watchdog
from t5x_like.models.counts import train_flops
from t5x_like.plan.chips import memory_bytes, peak_bytes, peak_flops
from t5x_like.plan.memory import check_step, in_bytes
from t5x_like.report.clock import Clock
from t5x_like.report.console import Console
from t5x_like.report.ledger import Ledger, next_attempt, read_starts
from t5x_like.report.metrics import METRICS, read_metrics
from t5x_like.report.preparing import Preparing
from t5x_like.report.writers import Reporter, check_outputs
from t5x_like.sharding.mesh import Placement
from t5x_like.train.config import Run, same_in_all
from t5x_like.train.data import Data
from t5x_like.train.directory import config_is_lost, locked, open_directory, record_start, versions
from t5x_like.train.feed import Feed, check_batch_size, local_share
from t5x_like.train.history import History, Rewind
from t5x_like.train.hooks import Hook, Measure, Sample
from t5x_like.train.loop import Costs, Loop
from t5x_like.train.opened import OpenedRun, open_model
from t5x_like.train.profile import Asked, Profile
from t5x_like.train.resume import Start, check, first_state, metadata
from t5x_like.train.setup import Setup
from t5x_like.train.step import compile_step
from t5x_like.train.stopping import Stop
from t5x_like.train.words import data_seen, devices, opening
from t5x_like.train.working import checkpoints_of, shown

AGREED = ("t5x_like", "jax", "jaxlib", "tensorstore")  # whose versions must be equal in all processes
T = TypeVar("T", bool, int)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
      step: number of updates made.
      complete: whether all updates are made.
      exit_code: 0 if complete, else the code of the signal that stopped it.
      directory: the run's folder, or its address.
      evaluations: last values of each evaluation, by its name.
      sample: named lines of the text that the model wrote last; empty where none was asked for.
      commands: those of ``eval`` and ``generate`` that this run has text and a model for.
    """

    step: int
    complete: bool
    exit_code: int
    directory: Path | str
    evaluations: Mapping[str, Values] = dataclasses.field(default_factory=dict)
    sample: Mapping[str, str] = dataclasses.field(default_factory=dict)
    commands: tuple[str, ...] = ()


def train(
    run: Run, directory: str | Path, accept_changed: Sequence[str] = (), rewind: Rewind | None = None,
    ends_process: bool = False,
) -> Outcome:
    """Starts or resumes the run in ``directory``, a folder or an address; a complete run is left as it is.

    Args:
      run: the resolved config.
      directory: the run's folder; made if it is not there.
      accept_changed: names of the user's own files that may differ from those of the training.
      rewind: how far to go back before, and how many batches to pass over from there.
      ends_process: whether a run that is stuck ends this process, as of the command line; of several it always does.

    Raises:
      UserError: a mistake in config, folder, corpus or checkpoint; raised before anything is changed.
      Fault: the processes of the job have not come together.
    """
    with Stop() as stop:
        return _train(with_absolute_paths(run), directory, accept_changed, rewind, stop, ends_process)


@dataclasses.dataclass(frozen=True)
class _Session:
    """What a training has open from its first step on."""

    opened: OpenedRun
    start: Start
    tasks: dict[Evaluation, bool]
    directory: Path
    checkpoints: Checkpoints
    history: History
    profile: Profile
    stop: Stop
    console: Console
    clock: Clock


def _train(
    run: Run, directory: str | Path, accept_changed: Sequence[str], rewind: Rewind | None, stop: Stop,
    ends_process: bool,
) -> Outcome:  # fmt: skip
    """``train``, which a signal may end from the beginning."""
    clock = Clock()
    join_processes(run.job, same_in_all(run) | {name: versions()[name] for name in AGREED})
    placement, setup = open_model(run)
    index = jax.process_index()
    console = Console(run.train.steps, process_index=index)
    _check_fit(run, placement, setup, console)
    with contextlib.ExitStack() as exits:
        watchdog = exits.enter_context(Watchdog(run.job, clock, line(), ends_process))
        stop.joined(watchdog)
        held = exits.enter_context(locked(directory, index == 0, _of_first))
        stop.check, directory = held.lock.check, held.path
        open_directory(directory, run, accept_changed)
        check_outputs(directory, run.report)
        checkpoints = exits.enter_context(Checkpoints(checkpoints_of(directory), run.checkpoint))
        checkpoints.before_commit = held.before_commit
        asked_profile = exits.enter_context(Asked())
        history = History(directory, checkpoints, console.note)
        run = history.applied(run) if rewind is None else history.rewind(history.applied(run), rewind)
        with Preparing(silent=index > 0) as preparing:
            data = Data.open(run, watchdog.follow(preparing), console.note)
        _agree("data.corpus", data.facts)
        data.train.check(run.train.steps)
        with clock.doing("setup" if checkpoints.latest() is None else "checkpoint"):
            for record in history.new:  # a rewind: refused before anything is changed
                check(run, data, checkpoints.metadata(record["restored"]))
            history.commit()
            start = first_state(run, setup, placement, data, checkpoints, directory, history)
        _agree("checkpoints", {"step": start.step})
        if start.step:
            console.note(f"resuming from step {start.step:,}")
        ledger = Ledger(directory, _of_first(next_attempt(directory)), index, clock.lap)
        checkpoints.record = ledger.add
        watchdog.record(ledger.add)
        opened = OpenedRun(run, setup, placement, None, start.step, data, stop.asked, ledger=ledger)
        tasks = _tasks(opened, directory)
        if nothing := _nothing_to_do(opened, tasks, directory):
            console.note(nothing)
            return Outcome(start.step, True, 0, _named(directory), commands=_commands(opened))
        profile = Profile(run.report.profile, run.report.profile_steps, directory / "profile", asked_profile, console,
                          ledger)  # fmt: skip
        return _go_on(
            _Session(opened, start, tasks, directory, checkpoints, history, profile, stop, console, clock)
        )


def _check_fit(run: Run, placement: Placement, setup: Setup, console: Console) -> None:
    """Raises UserError where devices cannot share batch or parameters, or the step does not fit into their memory."""
    check_batch_size(placement, run.train.batch_size, run.train.micro_batches)
    local_share(placement, run.train.batch_size)  # each row has its process, or it says why not
    setup.abstract_state(placement)  # every parameter has a place on the mesh, or says why not
    mesh, available = dict(placement.mesh.shape), memory_bytes(jax.local_devices()[0])
    if tight := check_step(setup, run, mesh, placement.batch_ways, available):
        console.note(tight)


def _go_on(session: _Session) -> Outcome:
    """Runs the loop from ``start`` on. From here on nothing is refused, and the folder is written."""
    opened, start, directory, checkpoints = session.opened, session.start, session.directory, session.checkpoints
    history, stop, console, clock = session.history, session.stop, session.console, session.clock
    run, setup, placement, data, ledger = opened.run, opened.setup, opened.placement, opened.data, opened.ledger
    first, total, index = start.step, run.train.steps, jax.process_index()
    reporter = Reporter(directory, run.report, first_step=first + 1, process_index=index, run_config=to_plain(run))
    costs = _costs(run, setup, directory)
    hooks = _hooks(session, reporter)
    share = local_share(placement, run.train.batch_size)
    reader = data.train.reader(first, *share, stop_step=total)
    feed = Feed(placement, reader, share, functools.partial(_record_rows, opened))
    loop = Loop(
        run, compile_step(setup, placement), hooks, checkpoints, reporter, console, clock, stop,
        functools.partial(metadata, run, data, history), functools.partial(_data_metrics, data, feed), costs,
        start.totals, ledger,
    )  # fmt: skip
    if first and config_is_lost(directory):
        console.note("WARNING: config.json was lost or torn; it is written again, compared with the checkpoint's")
    record_start(directory, run, ledger, first, devices(), start.changes, costs.peak_flops, checkpoints.restored)
    _say_what_is_lost(directory, first, reporter, ledger, console)
    if start.changes:
        console.note(start.described)
    if marks := start.changes | history.marks():
        reporter.mark(first, marks)
    for record in history.new:
        ledger.add(**record, step=first)
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
        "checkpoint": f"{checkpoints_of(directory)}/{done}",
        "data": data_seen(data, done) + (f"; rows {feed.fill:.1%} full" if done > first else ""),
        "peak memory": in_bytes(peak_bytes(jax.local_devices()[0])),
        "curves": f"{shown(directory)}/{picture.name}" if picture else "",
    }
    console.summary(f"{run.name}: {'complete' if complete else 'stopped'}", facts, clock.account())
    evaluations = {hook.task.name: hook.values for hook in hooks if isinstance(hook, Measure) and hook.values}
    written = next((hook.last for hook in hooks if isinstance(hook, Sample)), {})
    code = 0 if complete else stop.exit_code
    return Outcome(done, complete, code, _named(directory), evaluations, written, _commands(opened))


def _named(directory: Path) -> Path | str:
    """The run's folder as the user has named it."""
    address = shown(directory)
    return directory if address == str(directory) else address


def _say_what_is_lost(directory: Path, step: int, reporter: Reporter, ledger: Ledger, console: Console) -> None:
    """Rows of metrics.jsonl of steps before this start that are not there, since nothing writes them again."""
    if ledger.process or not step:
        return
    for first, last in reporter.mark_lost(read_starts(directory), step):
        of = f"steps {first:,} to {last:,}" if last > first else f"step {first:,}"
        message = f"{METRICS} has lost its rows of {of}; curves have a gap there"
        console.note(f"WARNING: {message}")
        ledger.add("fault", step, kind="rows lost", message=message, first=first, last=last)


def _record_rows(opened: OpenedRun, batch: HostBatch) -> None:
    """Writes the first rows of an attempt's first batch as text into the ledger."""
    if opened.ledger.process:
        return
    with contextlib.suppress(Exception):  # for the eye: whatever rows hold, they end no run
        rows = [show_row(batch, row, opened.data.tokenizer) for row in range(min(3, len(batch["targets"])))]
        shown = ["\n".join(f"{field.name}: {field.text}"[:300] for field in row[:6]) for row in rows]
        opened.ledger.add("data", opened.step, rows=shown)


def _nothing_to_do(opened: OpenedRun, tasks: dict[Evaluation, bool], directory: Path) -> str:
    """Why no step and no evaluation is left, in words; empty if one is."""
    run, step, total = opened.run, opened.step, opened.run.train.steps
    if step > total:
        return (f"{run.name} has made {step:,} steps, more than train.steps={total:,}: nothing is trained. "
                f"For a run of {total:,} steps take another folder than {shown(directory)}")  # fmt: skip
    if step < total or any(not made and run.times(task).due(step, total) for task, made in tasks.items()):
        return ""
    return f"{run.name} is complete: all {total:,} steps are made. {shown(directory)}"


def _agree(topic: str, facts: Mapping[str, Any]) -> None:
    """Raises UserError if the processes of the job say different things."""
    if others := line():
        others.agree(topic, facts)


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


def _hooks(session: _Session, reporter: Reporter) -> list[Hook]:
    """Actions between steps, in order."""
    opened, console, clock = session.opened, session.console, session.clock
    hooks: list[Hook] = [
        Measure(task, opened.run.times(task), opened, reporter, console, clock, opened.step if made else None,
                session.checkpoints.measured)
        for task, made in session.tasks.items()
    ]  # fmt: skip
    if opened.data.held_out_split is not None and jax.process_count() == 1:
        hooks.append(Sample(opened, console, clock))
    return [*hooks, session.profile]


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
