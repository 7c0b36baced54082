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

from t5x_like.checkpoint.checkpoints import Checkpoints
from t5x_like.core.config import to_plain
from t5x_like.core.every import Every
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
from t5x_like.plan.chips import memory_bytes, peak_bytes, peak_flops
from t5x_like.plan.memory import bytes_per_device, check_memory, step_memory
from t5x_like.report.clock import Clock
from t5x_like.report.console import Console, Opening
from t5x_like.report.metrics import METRICS, read_metrics
from t5x_like.report.preparing import Preparing
from t5x_like.report.writers import Reporter
from t5x_like.sharding.mesh import Placement
from t5x_like.sharding.reduction import copying_axes
from t5x_like.train.config import Run
from t5x_like.train.data import Data
from t5x_like.train.directory import CHECKPOINTS, open_directory, record_start
from t5x_like.train.feed import Feed, check_batch_size, local_share
from t5x_like.train.hooks import Hook, Measure, Profile, Sample
from t5x_like.train.loop import Costs, Loop
from t5x_like.train.opened import OpenedRun, open_model
from t5x_like.train.resume import first_state, metadata
from t5x_like.train.sample import write_sample
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
    """

    step: int
    complete: bool
    exit_code: int
    directory: Path
    evaluations: Mapping[str, Values] = dataclasses.field(default_factory=dict)
    sample: Mapping[str, str] = dataclasses.field(default_factory=dict)


def train(run: Run, directory: str | Path, accept_changed: Sequence[str] = ()) -> Outcome:
    """Starts or resumes the run in ``directory``; a complete run is left as it is.

    Args:
      run: the resolved config.
      directory: the run's folder; made if it is not there.
      accept_changed: names of the user's own files that may differ from those of the training.

    Raises:
      UserError: a mistake in config, folder, corpus or checkpoint; raised before anything is changed.
    """
    clock, directory = Clock(), Path(directory)
    placement, setup = open_model(run)
    index = jax.process_index()
    check_batch_size(placement, run.train.batch_size, run.train.micro_batches)
    setup.abstract_state(placement)  # every parameter has a place on the mesh, or says why not
    mesh, available = dict(placement.mesh.shape), memory_bytes(jax.local_devices()[0])
    tight = check_memory(step_memory(setup, run, mesh), available, run, mesh)
    open_directory(directory, run, accept_changed)
    console = Console(run.train.steps, process_index=index)
    if tight:
        console.note(tight)
    with Checkpoints(directory / CHECKPOINTS, run.checkpoint) as checkpoints, contextlib.ExitStack() as exits:
        with Preparing(silent=index > 0) as preparing:
            data = Data.open(run, preparing, console.note)
        data.train.check(run.train.steps)
        stop = exits.enter_context(Stop())  # from here on there is something to save
        with clock.doing("setup" if checkpoints.latest() is None else "checkpoint"):
            state, first = first_state(run, setup, placement, data, checkpoints)
        if first:
            console.note(f"resuming from step {first:,}")
        tasks = _tasks(run, data, directory, first)
        if first > run.train.steps or (first == run.train.steps and not any(due for _, _, due in tasks)):
            console.note(f"{run.name} is complete: all {run.train.steps:,} steps are made. {directory}")
            return Outcome(first, True, 0, directory)
        # Several processes must leave at the same step: the loop sees to that.
        asked = (lambda: stop.wanted(0)) if jax.process_count() == 1 else (lambda: False)
        opened = OpenedRun(run, setup, placement, None, first, data, asked)
        plain = to_plain(run)
        reporter = Reporter(directory, run.report, first_step=first + 1, process_index=index, run_config=plain)
        hooks = _hooks(opened, tasks, directory, reporter, console, clock)
        share = local_share(placement, run.train.batch_size)
        feed = Feed(placement, data.train.reader(first, *share, stop_step=run.train.steps), share)
        loop = Loop(
            run, compile_step(setup, placement), hooks, checkpoints, reporter, console, clock, stop,
            functools.partial(metadata, run, data), functools.partial(_data_metrics, data, feed), _costs(run, setup),
        )  # fmt: skip
        if index == 0:
            record_start(directory, run, first, _devices())
        trust(own_code(run).values())  # on each machine
        console.opening(_opening(run, setup, placement, first, directory))
        clock.start()
        try:
            state, done = loop(state, first, feed)
        finally:
            console.close()
            for hook in hooks:
                hook.close()
            picture = reporter.close()
        complete = done == run.train.steps and stop.signal is None
        facts = {"updates": f"{done:,} of {run.train.steps:,}", "checkpoint": str(directory / CHECKPOINTS / str(done))}
        facts["data"] = f"{_data_seen(data, done)}; rows {feed.fill:.1%} full"
        if picture:
            facts["curves"] = str(picture)
        console.summary(f"{run.name}: {'complete' if complete else 'stopped'}", facts, clock.account())
        evaluations = {hook.task.name: hook.values for hook in hooks if isinstance(hook, Measure) and hook.values}
        written = next((hook.last for hook in hooks if isinstance(hook, Sample)), {})
        return Outcome(done, complete, 0 if complete else stop.exit_code, directory, evaluations, written)


def _tasks(run: Run, data: Data, directory: Path, step: int) -> list[tuple[Evaluation, Every, bool]]:
    """(evaluation, its times, whether it is due at ``step``) of all with data to evaluate; those with values in the
    metrics are not due."""
    path, found = directory / METRICS, []
    logged = {name for row in (read_metrics(path) if path.is_file() else ()) if row["step"] == step for name in row}
    for task in run.evaluations:
        if task.needs_held_out and data.held_out is None:
            continue
        when, made = task.when or Every(run.train.evaluate_every), any(n.startswith(f"{task.name}/") for n in logged)
        found.append((task, when, when.due(step, run.train.steps) and not made))
    return found


def _hooks(
    opened: OpenedRun, tasks: list[tuple[Evaluation, Every, bool]], directory: Path, reporter: Reporter,
    console: Console, clock: Clock,
) -> list[Hook]:
    """Actions between steps, in order."""
    run, hooks = opened.run, list[Hook]()
    for task, when, due in tasks:
        hooks.append(Measure(task, when, opened, reporter, console, clock, None if due else opened.step))
    if opened.data.held_out_split is not None and jax.process_count() == 1:
        hooks.append(Sample(run.report.sample, write_sample, opened, console, clock))
    if run.report.profile:
        first, last = run.report.profile
        hooks.append(Profile(first, last, directory / "profile"))
    return hooks


def _costs(run: Run, setup: Setup) -> Costs:
    rows, lengths, device = run.train.batch_size, run.lengths(), jax.devices()[0]
    peak = peak_flops(device)
    peak = peak * jax.device_count() if peak else None
    flops, of = rows * train_flops(run.model, setup.specs, *lengths), "roofline" if device.platform == "cpu" else "MFU"
    return Costs(tokens=rows * sum(lengths), flops=flops, peak_flops=peak, utilization_of=of)


def _data_metrics(data: Data, feed: Feed, done: int) -> dict[str, float]:
    """Tokens and epochs of each corpus in the first ``done`` batches; how full those of this start were; memory."""
    metrics = {"data/fill": feed.fill, "memory/peak_bytes": peak_bytes(jax.local_devices()[0])}
    for name, seen in data.train.seen(done).items():
        metrics |= {f"data/{name}/tokens": float(seen.tokens), f"data/{name}/epochs": seen.epochs}
    return metrics


def _opening(run: Run, setup: Setup, placement: Placement, first: int, directory: Path) -> Opening:
    layers = "+".join(str(side.depth) for _, side in run.model.sides)
    model = f"{run.model.shape}, {layers} layers of width {run.model.d_model}, {type(run.objective).__name__}"
    tokens = run.train.batch_size * sum(run.lengths())
    return Opening(
        run.name, model, _devices(), _attention(run), parameter_count(setup.specs), tokens, run.train.steps,
        str(directory), first, _gradients(setup, placement),
    )  # fmt: skip


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
