"""From a config and a folder to a trained model: everything is checked before the first step, then the loop runs.

Reading path to the train step: ``train`` here, ``loop.Loop``, ``step.train_step``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from t5x_like.checkpoint.checkpoints import Checkpoints
from t5x_like.core.config import to_plain
from t5x_like.core.own_code import own_code, trust
from t5x_like.core.text import short
from t5x_like.evaluate.task import Evaluation, Values
from t5x_like.layers.attention import Attention
from t5x_like.layers.context import Context
from t5x_like.layers.module import Module
from t5x_like.layers.param import declare
from t5x_like.models.config import ModelConfig, Side
from t5x_like.models.counts import parameter_count, train_flops
from t5x_like.ops.attention import Choice, choose
from t5x_like.plan.chips import peak_flops
from t5x_like.plan.memory import bytes_per_device
from t5x_like.report.clock import Clock
from t5x_like.report.console import Console
from t5x_like.report.metrics import METRICS, read_metrics
from t5x_like.report.preparing import Preparing
from t5x_like.report.writers import Reporter, check_outputs
from t5x_like.sharding.mesh import Placement
from t5x_like.sharding.reduction import copying_axes
from t5x_like.train.config import Run
from t5x_like.train.data import Data
from t5x_like.train.directory import CHECKPOINTS, locked, open_directory, read_starts, record_start
from t5x_like.train.feed import Feed, check_batch_size, local_share
from t5x_like.train.hooks import Hook, Measure, Profile, Sample
from t5x_like.train.loop import Costs, Loop
from t5x_like.train.opened import OpenedRun, open_model
from t5x_like.train.resume import first_state, metadata
from t5x_like.train.setup import Setup
from t5x_like.train.step import compile_step
from t5x_like.train.stopping import Stop


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
    clock = Clock()
    placement, setup = open_model(run)
    index = jax.process_index()
    check_batch_size(placement, run.train.batch_size, run.train.micro_batches)
    setup.abstract_state(placement)  # every parameter has a place on the mesh, or says why not
    console = Console(run.train.steps, process_index=index)
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
            start = first_state(run, setup, placement, data, checkpoints)
        first, state, total = start.step, start.state, run.train.steps
        if first:
            console.note(f"resuming from step {first:,}")
        # Several processes must leave at the same step: the loop sees to that.
        asked = (lambda: stop.wanted(0)) if jax.process_count() == 1 else (lambda: False)
        opened = OpenedRun(run, setup, placement, None, first, data, asked)
        tasks = _tasks(opened, directory)
        if first > total:
            console.note(f"{run.name} has made {first:,} steps, more than train.steps={total:,}: nothing is trained. "
                         f"For a run of {total:,} steps take another folder than {directory}")
            return Outcome(first, True, 0, directory, commands=_commands(opened))
        if first == total and not any(not made and run.times(task).due(first, total) for task, made in tasks.items()):
            console.note(f"{run.name} is complete: all {total:,} steps are made. {directory}")
            return Outcome(first, True, 0, directory, commands=_commands(opened))
        plain = to_plain(run)
        reporter = Reporter(directory, run.report, first_step=first + 1, process_index=index, run_config=plain)
        costs = _costs(run, setup, directory)
        hooks = _hooks(opened, tasks, directory, reporter, console, clock)
        share = local_share(placement, run.train.batch_size)
        feed = Feed(placement, data.train.reader(first, *share, stop_step=total), share)
        loop = Loop(
            run, compile_step(setup, placement), hooks, checkpoints, reporter, console, clock, stop,
            functools.partial(metadata, run, data), functools.partial(_data_metrics, data, feed), costs, start.totals,
        )  # fmt: skip
        if index == 0:
            record_start(directory, run, first, _devices(), start.changes, costs.peak_flops)
        if start.changes:
            console.note(start.described)
            reporter.mark(first, start.changes)
        trust(own_code(run).values())  # on each machine
        console.facts(run.name, _opening(run, setup, placement, first, directory))
        clock.start()
        try:
            state, done = loop(state, first, iter(feed))
        finally:
            console.close()
            for hook in hooks:
                hook.close()
            picture = reporter.close()
        complete = done == total and stop.signal is None
        facts = {"updates": f"{done:,} of {total:,}", "checkpoint": str(directory / CHECKPOINTS / str(done))}
        facts["data"] = f"{_data_seen(data, done)}; rows {feed.fill:.1%} full"
        if picture:
            facts["curves"] = str(picture)
        console.summary(f"{run.name}: {'complete' if complete else 'stopped'}", facts, clock.account())
        evaluations = {hook.task.name: hook.values for hook in hooks if isinstance(hook, Measure) and hook.values}
        written = next((hook.last for hook in hooks if isinstance(hook, Sample)), {})
        code = 0 if complete else stop.exit_code
        return Outcome(done, complete, code, directory, evaluations, written, _commands(opened))


def _of_first(free: bool) -> bool:
    """What the first process of the job says."""
    return bool(multihost_utils.broadcast_one_to_all(np.bool_(free))) if jax.process_count() > 1 else free


def _commands(opened: OpenedRun) -> tuple[str, ...]:
    tasks, model = opened.run.evaluations, opened.run.model
    measures = bool(tasks) and all(opened.data.held_out or not task.needs_held_out for task in tasks)
    writes = model.has_decoder and all(side.inputs.uses_tokens for _, side in model.sides)
    return ("eval",) * measures + ("generate",) * writes


def _tasks(opened: OpenedRun, directory: Path) -> dict[Evaluation, bool]:
    """Evaluations with data to evaluate, and whether their values of the present step are in the metrics."""
    path, tasks = directory / METRICS, opened.run.evaluations
    rows = [row for row in (read_metrics(path) if path.is_file() else ()) if row["step"] == opened.step]
    made = {name.split("/")[0] for row in rows for name in row}
    return {task: task.label(opened) in made for task in tasks if opened.data.held_out or not task.needs_held_out}


def _hooks(
    opened: OpenedRun, tasks: dict[Evaluation, bool], directory: Path, reporter: Reporter, console: Console,
    clock: Clock,
) -> list[Hook]:  # fmt: skip
    """Actions between steps, in order."""
    run, report = opened.run, opened.run.report
    hooks: list[Hook] = [
        Measure(task, run.times(task), opened, reporter, console, clock, opened.step if made else None)
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
        before = [start.get("peak_flops") for start in read_starts(directory) if start.get("devices") == _devices()]
        peak = max([found for found in (peak, *before) if found], default=None)
    flops, of = rows * train_flops(run.model, setup.specs, *lengths), "roofline" if device.platform == "cpu" else "MFU"
    return Costs(tokens=rows * sum(lengths), flops=flops, peak_flops=peak, utilization_of=of)


def _data_metrics(data: Data, feed: Feed, done: int) -> dict[str, float]:
    """Tokens and epochs of each corpus in the first ``done`` batches; how full those of this start were."""
    metrics = {"data/fill": feed.fill}
    for name, seen in data.train.seen(done).items():
        metrics |= {f"data/{name}/tokens": float(seen.tokens), f"data/{name}/epochs": seen.epochs}
    return metrics


def _opening(run: Run, setup: Setup, placement: Placement, first: int, directory: Path) -> dict[str, str]:
    """What the console says of a run at its start."""
    layers = "+".join(str(side.depth) for _, side in run.model.sides)
    objective, parameters = type(run.objective).__name__, parameter_count(setup.specs)
    steps, tokens = run.train.steps, run.train.batch_size * sum(run.lengths())
    return {
        "model": f"{run.model.shape}, {layers} layers of width {run.model.d_model}, {objective}, "
                 f"{short(parameters)} parameters ({parameters:,})",
        "devices": _devices(),
        "attention": _attention(run),
        "steps": f"{steps:,} of {short(tokens)} tokens, {short(steps * tokens)} tokens in all"
                 + (f"; resuming from step {first:,}" if first else ""),
        "gradients": _gradients(setup, placement),
        "metrics": f"means over {run.report.every:,} steps, in {METRICS}; the loss shown here is smoothed",
        "directory": str(directory),
    }  # fmt: skip


def _gradients(setup: Setup, placement: Placement) -> str:
    """How they are summed over devices with copies of the parameters, and what the sum takes; empty without copies."""
    if not (axes := copying_axes(placement)):
        return ""
    if placement.reduce != "once":
        return f"summed over {', '.join(axes)} in every layer and micro-batch"
    megabytes = bytes_per_device(setup.specs, dict(placement.mesh.shape), placement.rules) / 2**20
    return f"summed over {', '.join(axes)} once a step; until then {megabytes:,.1f} MB on each device"


def _data_seen(data: Data, done: int) -> str:
    """Tokens and epochs of each corpus, in words."""
    seen = data.train.seen(done).items()
    words = ", ".join(f"{short(s.tokens)} tokens of {name} ({s.epochs:.2f} epochs)" for name, s in seen)
    left_out = data.train.tokens_left_out
    return words + (f", {left_out:,} too short for an example" if left_out else "")


def _attention(run: Run) -> str:
    """Backend that computes attention, and why."""
    model = run.model
    if model.attention_backend != "auto":
        return f"{model.attention_backend}, as model.attention_backend says"
    found: dict[str, None] = {}
    for name, side in model.sides:
        for mixer in (layer.mixer for _, layer in side.layers() if isinstance(layer.mixer, Attention)):
            choice = _choice(mixer, side, name == "decoder", run.train.batch_size, max(run.lengths()), model)
            found[f"{choice.backend}: {choice.reason}"] = None
    return "; ".join(found) or "there is none"


def _choice(mixer: Attention, side: Side, causal: bool, rows: int, length: int, model: ModelConfig) -> Choice:
    """What computes self-attention of one kind of layer on packed rows."""
    positions = mixer.positions or side.positions
    table = positions.declare_bias(mixer.heads, model.d_model, model.init)
    shape = None if table is None else declare(Module(None, table=table))[1]["table"].shape
    q, k = (jax.ShapeDtypeStruct((rows, length, heads, mixer.head_dim), model.dtype)
            for heads in (mixer.heads, mixer.key_heads))  # fmt: skip
    segments = jnp.ones((rows, length), jnp.int32)
    mask = Context(causal, segments, (segments, segments)).mask(mixer.window)
    table, columns = None if shape is None else jnp.zeros(shape), jnp.arange(length)
    bias = positions.bias(table, mixer.heads, not causal, (columns, columns))
    return choose(q, k, k, mask=mask, bias=bias, soft_cap=mixer.soft_cap or None)


def _devices() -> str:
    device, count = jax.devices()[0], jax.device_count()
    processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"{count} x {device.device_kind}{processes}"
