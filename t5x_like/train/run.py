"""From a config and a folder to a trained model: everything is checked before the first step, then the loop runs.

Reading path to the train step: ``train`` here, ``loop.Loop``, ``step.train_step``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from t5x_like.arrays.trees import Tree
from t5x_like.checkpoint.checkpoints import Checkpoints
from t5x_like.core.config import to_plain
from t5x_like.core.errors import UserError
from t5x_like.evaluate.heldout import evaluate
from t5x_like.input_pipeline.order import ORDER_VERSION
from t5x_like.models.counts import parameter_count, train_flops
from t5x_like.ops.attention import Full, choose
from t5x_like.plan.chips import peak_flops
from t5x_like.plan.memory import bytes_per_device
from t5x_like.report.clock import Clock
from t5x_like.report.console import Console, Opening, short
from t5x_like.report.preparing import Preparing
from t5x_like.report.writers import METRICS, Reporter, read_metrics
from t5x_like.sharding.mesh import Placement, make_placement, use
from t5x_like.sharding.processes import join_processes
from t5x_like.sharding.reduction import copying_axes
from t5x_like.train.compiled import compile_steps
from t5x_like.train.config import Run
from t5x_like.train.data import Data, check_skipped
from t5x_like.train.directory import CHECKPOINTS, open_directory, record_start, versions
from t5x_like.train.feed import Feed, check_batch_size, local_share, to_devices
from t5x_like.train.loop import Loop
from t5x_like.train.sample import sample
from t5x_like.train.state import Setup, make_setup
from t5x_like.train.step import State
from t5x_like.train.stopping import Stop


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
      step: the updates made.
      complete: whether that is all of them.
      exit_code: 0 if complete, else as the signal that stopped it asks.
      directory: the run's folder.
      held_out: means over the held-out split, if they were taken.
      sample: what the model makes of a held-out text; empty where that was not asked of it.
    """

    step: int
    complete: bool
    exit_code: int
    directory: Path
    held_out: dict[str, float] | None = None
    sample: dict[str, str] = dataclasses.field(default_factory=dict)


def train(run: Run, directory: str | Path) -> Outcome:
    """Runs, or goes on with, the run in ``directory``; a complete one is left as it is.

    Args:
      run: the resolved config.
      directory: the run's folder; made if it is not there.

    Raises:
      UserError: whatever in config, folder, corpus or checkpoint is wrong, before anything is changed.
    """
    clock = Clock()
    join_processes()
    directory = Path(directory)
    placement = make_placement(run.mesh)
    run.model.check_tensor(placement.mesh.shape["tensor"])
    run.model.check_attention(jax.default_backend())
    check_batch_size(placement, run.train.batch_size, run.train.micro_batches)
    setup = make_setup(run)
    setup.abstract_state(placement)  # every parameter has a place on the mesh, or says why not
    open_directory(directory, run)
    console = Console(run.train.steps, process_index=jax.process_index())
    with Checkpoints(directory / CHECKPOINTS, run.checkpoint) as checkpoints, contextlib.ExitStack() as opened:
        with Preparing(silent=jax.process_index() > 0) as preparing:
            data = Data.open(run, preparing, console.note)
        data.train.check(run.train.steps)
        if run.data.streaming:
            console.note(
                "streaming: batches are the same again only with as many processes, and going on reads all that came "
                "before once more"
            )
        stop = opened.enter_context(Stop())  # from here on there is something to save
        job = Job(run, directory, placement, setup, data, checkpoints, console, clock, stop)
        state, first = job.start()
        if first > run.train.steps or (first == run.train.steps and job.evaluated(first)):
            console.note(f"{run.name} is complete: all {run.train.steps:,} steps are made. {directory}")
            return Outcome(first, True, 0, directory)
        share = local_share(placement, run.train.batch_size)
        feed = Feed(placement, data.train.reader(first, *share, stop_step=run.train.steps), share)
        loop = job.loop(first, feed)
        if jax.process_index() == 0:
            record_start(directory, run, first, _devices())
        console.opening(_opening(run, setup, placement, first, directory))
        clock.start()
        try:
            state, done = loop(state, first, feed)
        finally:
            console.close()
            picture = loop.reporter.close()
        complete = done == run.train.steps and stop.signal is None
        facts = {"updates": f"{done:,} of {run.train.steps:,}", "checkpoint": str(directory / CHECKPOINTS / str(done))}
        facts["data"] = f"{_data_seen(data, done)}; rows {feed.fill:.1%} full"
        if picture:
            facts["curves"] = str(picture)
        console.summary(f"{run.name}: {'complete' if complete else 'stopped'}", facts, clock.account())
        written = {}
        if complete and data.held_out_split is not None and jax.process_count() == 1:
            with use(placement):
                written = sample(run, setup.structure, state["params"], data.tokenizer, data.held_out_split)
        return Outcome(done, complete, 0 if complete else stop.exit_code, directory, loop.held_out, written)


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """A run, checked and opened: what its loop is made of."""

    run: Run
    directory: Path
    placement: Placement
    setup: Setup
    data: Data
    checkpoints: Checkpoints
    console: Console
    clock: Clock
    stop: Stop

    def start(self) -> tuple[State, int]:
        """(state, updates made): from the latest good checkpoint if there is one, else from initial values."""
        if self.checkpoints.latest() is None:
            return self.setup.initial_state(self.placement, self.run.train.seed), 0
        with self.clock.doing("checkpoint"):
            state, metadata = self.checkpoints.restore(self.setup.abstract_state(self.placement))
        if metadata["data"]["fingerprint"] != self.data.fingerprint:
            raise UserError(
                "data.corpus",
                f"{self.run.data.corpus.name!r} is not what the run was trained on: its text, tokenizer or split has "
                "changed",
                "the same files as before",
                "another directory, or the old corpus",
            )
        if metadata["data"]["order"] != ORDER_VERSION:
            raise UserError(
                str(self.directory),
                f"its batches were ordered by rules {metadata['data']['order']}, those of this version are "
                f"{ORDER_VERSION}",
                "the version of t5x-like that it was begun with",
            )
        if self.run.data.streaming and metadata["data"]["processes"] != jax.process_count():
            raise UserError(
                "data.streaming",
                f"{jax.process_count()} processes go on with a run of {metadata['data']['processes']}, whose batches "
                "would not be the same",
                "as many processes",
            )
        before = dataclasses.replace(self.run.data, skip=tuple(metadata["config"]["data"]["skip"]))
        check_skipped(before, self.run.data, int(metadata["step"]))
        self.console.note(f"going on from step {metadata['step']:,}")
        return state, int(metadata["step"])

    def loop(self, first: int, feed: Feed) -> Loop:
        """The loop, about to make update ``first`` from the next batch of ``feed``."""
        run, lengths = self.run, self.run.lengths()
        step, evaluation_step = compile_steps(self.setup, self.placement)
        device = jax.devices()[0]
        peak = peak_flops(device)
        return Loop(
            run=run,
            step=step,
            evaluate=functools.partial(self.held_out_means, evaluation_step),
            checkpoints=self.checkpoints,
            reporter=Reporter(
                self.directory,
                run.report,
                first_step=first + 1,
                process_index=jax.process_index(),
                run_config=to_plain(run),
            ),
            console=self.console,
            clock=self.clock,
            stop=self.stop,
            metadata=self.metadata,
            data_metrics=functools.partial(self.data_metrics, feed),
            tokens_per_step=run.train.batch_size * sum(lengths),
            flops_per_step=run.train.batch_size * train_flops(run.model, self.setup.specs, *lengths),
            peak_flops=peak * jax.device_count() if peak else None,
            utilization_of="roofline" if device.platform == "cpu" else "MFU",
            evaluated_at=first if self.evaluated(first) else None,
        )

    def evaluated(self, step: int) -> bool:
        """Whether the metrics have held-out means of this step, or there are none to be had."""
        if self.data.held_out is None:
            return True
        path = self.directory / METRICS
        return path.is_file() and any(r["step"] == step and "held_out/loss" in r for r in read_metrics(path))

    def held_out_means(self, evaluation_step: Callable, params: Tree) -> dict[str, float] | None:
        """As ``evaluate``; empty for a corpus that keeps nothing back."""
        if self.data.held_out is None:
            return {}
        share = local_share(self.placement, self.run.train.batch_size)
        host = self.data.held_out.heldout_batches(self.run.train.evaluate_batches or None, *share)
        alone = jax.process_count() == 1  # several processes must leave at the same step: the loop sees to that
        asked = (lambda: self.stop.wanted(0)) if alone else (lambda: False)
        found = evaluate(evaluation_step, params, (to_devices(self.placement, b, share) for b in host), asked)
        if found == {}:
            self.console.note("WARNING: not one target in what is held out: nothing is measured")
        return found

    def data_metrics(self, feed: Feed, done: int) -> dict[str, float]:
        """Tokens and epochs of each corpus in the first ``done`` batches; how full those of this start were."""
        metrics = {"data/fill": feed.fill}
        for name, seen in self.data.train.seen(done).items():
            metrics |= {f"data/{name}/tokens": float(seen.tokens), f"data/{name}/epochs": seen.epochs}
        return metrics

    def metadata(self, done: int) -> dict[str, Any]:
        """What a checkpoint after ``done`` updates says of itself."""
        return {
            "config": to_plain(self.run),
            "versions": versions(),
            "seed": self.run.train.seed,
            "data": {
                "step": done,
                "order": ORDER_VERSION,
                "processes": jax.process_count(),
                "epoch": self.data.train.epoch_of(done),
                "seen": {name: seen._asdict() for name, seen in self.data.train.seen(done).items()},
                "fingerprint": self.data.fingerprint,
                "tokenizer": self.data.tokenizer.fingerprint,
            },
        }


def _opening(run: Run, setup: Setup, placement: Placement, first: int, directory: Path) -> Opening:
    model = run.model
    layers = "+".join(str(n) for n in (model.encoder_layers, model.decoder_layers) if n)
    return Opening(
        name=run.name,
        model=f"{model.shape}, {layers} layers of width {model.d_model}, {type(run.objective).__name__}",
        devices=_devices(),
        attention=_attention(run),
        parameters=parameter_count(setup.specs),
        tokens_per_step=run.train.batch_size * sum(run.lengths()),
        steps=run.train.steps,
        directory=str(directory),
        first_step=first,
        gradients=_gradients(setup, placement),
    )


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
    """What computes it, and why."""
    model = run.model
    if model.attention_backend != "auto":
        return f"{model.attention_backend}, as model.attention_backend says"
    rows, length = run.train.batch_size, max(run.lengths())
    q, k = (
        jax.ShapeDtypeStruct((rows, length, heads, model.head_dim), model.dtype)
        for heads in (model.heads, model.key_heads)
    )
    choice = choose(q, k, k, mask=Full())
    return f"{choice.backend}: {choice.reason}"


def _devices() -> str:
    device, count = jax.devices()[0], jax.device_count()
    processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"{count} x {device.device_kind}{processes}"
