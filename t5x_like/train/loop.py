"""The loop: dispatch a step, then read the metrics of the step before it. Never waits for the step just dispatched.

Knows steps, clocks, checkpoints, reports and hooks; must not know how a batch or an update is made.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from t5x_like.arrays.sums import Pairs
from t5x_like.checkpoint.checkpoints import Checkpoints
from t5x_like.core.errors import UserError
from t5x_like.models.transformer import Batch
from t5x_like.report.clock import Clock
from t5x_like.report.console import Console
from t5x_like.report.ledger import Ledger
from t5x_like.report.writers import Reporter
from t5x_like.train.config import Run
from t5x_like.train.hooks import Hook
from t5x_like.train.setup import State
from t5x_like.train.stopping import Stop

# Metrics that the line of progress shows in any case, or leaves to metrics.jsonl; it shows all others.
USUAL = ("loss", "nll", "z_loss", "accuracy", "gradient_norm", "learning_rate")


class TooManySkipped(UserError):
    """The update of step ``step`` was the last that may be left out in a row; the run stops before it."""

    def __init__(self, step: int, wrong: str, in_a_row: int):
        self.step = step
        those = f", and so were the {in_a_row - 1:,} before it" if in_a_row > 1 else ""
        got = f"{wrong}{those}; the run has stopped with the state before this step"
        suggestion = "a lower optimizer.learning_rate, a longer optimizer.schedule.warmup, optimizer.clip_norm=1.0"
        super().__init__(f"step {step}", got, suggestion=suggestion)


@dataclasses.dataclass(frozen=True)
class Costs:
    """Costs of one step over the global batch.

    Attributes:
      tokens: tokens that the model reads and predicts.
      flops: floating-point operations.
      peak_flops: peak operations per second of all devices together; None if unknown.
      utilization_of: name of the utilization by that peak: ``MFU`` or ``roofline``.
    """

    tokens: int
    flops: float
    peak_flops: float | None = None
    utilization_of: str = "MFU"


@dataclasses.dataclass
class Loop:
    """A run's loop over steps, with all that it calls.

    Attributes:
      run: the config.
      step: function from (state, batch) to (state, metrics), compiled.
      hooks: actions between steps, in this order.
      checkpoints, reporter, console, clock, stop: the run's own.
      metadata: function from step to checkpoint metadata.
      data_metrics: function from step to metrics of the first ``step`` batches.
      costs: costs of one step.
      totals: name to [sum, weight] of the metrics of all steps since the last row of them; checkpoints keep it, so
        that a resumed run writes the same rows as an uninterrupted one.
      ledger: that of the run.
    """

    run: Run
    step: Callable[[State, Batch], tuple[State, Pairs]]
    hooks: Sequence[Hook]
    checkpoints: Checkpoints
    reporter: Reporter
    console: Console
    clock: Clock
    stop: Stop
    metadata: Callable[[int], Mapping[str, Any]]
    data_metrics: Callable[[int], Mapping[str, float]]
    costs: Costs
    totals: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    ledger: Ledger = dataclasses.field(default_factory=Ledger)
    _unread: tuple[int, Pairs] | None = None
    _losses: tuple[float, int] = (0.0, 0)  # sum of the losses since the last save, and their number

    def __call__(self, state: State, first: int, batches: Iterator[Batch]) -> tuple[State, int]:
        """(state, number of updates made) after all steps from ``first`` on, or after those before a stop.

        Raises:
          TooManySkipped: naming the step. The state before it has been saved.
          UserError: a checkpoint could not be written.
        """
        total, done = self.run.train.steps, first
        self._call_hooks(state, first)  # including those that a stop had prevented
        try:
            while done < total and not self.stop.wanted(done):
                with self.clock.doing("data"):
                    batch = next(batches)
                state, metrics = self._dispatch(state, batch, done + 1, compiles=done == first)
                if done == first:
                    self.ledger.add("compile", first)
                done += 1
                self._read()
                self._unread = (done, metrics)
                self.checkpoints.check()
                if done < total:
                    if self.run.checkpoint.local.due(done, total):  # also where both are due: it is there sooner
                        self._save(state, done, locally=True)
                    if self.run.checkpoint.every.due(done, total):
                        self._save(state, done)
                    self._call_hooks(state, done)
            self._read()
        except TooManySkipped as error:
            # The state before the bad step, saved so that the run can resume once the cause is mended.
            self._save(state | {"halted": jnp.zeros_like(state["halted"])}, error.step - 1)
            self.checkpoints.wait()
            raise
        self._save(state, done)
        if first < done == total:
            self._call_hooks(state, done)
        with self.clock.doing("checkpoint"):
            self.checkpoints.wait()
        return state, done

    def _dispatch(self, state: State, batch: Batch, step: int, compiles: bool) -> tuple[State, Pairs]:
        if not compiles:
            with self.clock.doing("step"), jax.profiler.StepTraceAnnotation("train", step_num=step):
                return self.step(state, batch)
        with self.clock.doing("compile"), self.console.doing("compiling the train step"):
            return self.step(state, batch)

    def _read(self) -> None:
        """Reads and reports the metrics of the last step not yet read; waits for that step, not for the newest."""
        if self._unread is None:
            return
        (step, metrics), self._unread = self._unread, None
        with self.clock.doing("step"):
            sums = {name: (float(value), float(weight)) for name, (value, weight) in jax.device_get(metrics).items()}
        means = {name: value / weight if weight else 0.0 for name, (value, weight) in sums.items()}
        made, skipped = means.pop("made"), means.pop("skipped")
        if not made:
            self._skipped(step, means)
        self.clock.stepped()
        if math.isfinite(means["loss"]):
            self._losses = self._losses[0] + means["loss"], self._losses[1] + 1
        self.ledger.stepped(step)
        seconds, costs = self.clock.seconds_per_step(), self.costs
        rate = costs.tokens / seconds if seconds else None
        utilization = costs.flops / seconds / costs.peak_flops if seconds and costs.peak_flops else None
        left, saved = self.clock.seconds_left(self.run.train.steps - step), self.checkpoints.latest()
        loss, learning_rate, of = means.get("nll", means["loss"]), means["learning_rate"], costs.utilization_of
        if made:  # a row is of the updates that were made
            others = {name: value for name, value in means.items() if name not in (*USUAL, "finite", "halted")}
            self.console.progress(step, loss, rate, utilization, of, learning_rate, left, saved, others)
            for name in [name for name in sums if name not in ("made", "halted", "skipped")]:
                before = self.totals.get(name, (0.0, 0.0))
                self.totals[name] = [sum(both) for both in zip(before, sums[name], strict=True)]
        if self.reporter.due(step) or step == self.run.train.steps:
            steps, targets = self.totals.pop("finite", (0.0, 0.0))[1], self.totals.get("loss", (0.0, 0.0))[1]
            row = {f"train/{name}": value / weight if weight else 0.0 for name, (value, weight) in self.totals.items()}
            row |= {"train/learning_rate": learning_rate, "train/targets": targets / max(steps, 1)}
            row |= {"train/skipped": skipped} if skipped else {}
            self.totals.clear()
            speed = {"train/tokens_per_second": rate, "train/utilization": utilization}
            row |= {**self.data_metrics(step)} | {name: value for name, value in speed.items() if value is not None}
            self.reporter.log(step, row)

    def _skipped(self, step: int, means: Mapping[str, float]) -> None:
        """Says that an update was left out, and why. Raises TooManySkipped if it was the last that may be."""
        loss, norm = means["loss"], means["gradient_norm"]
        wrong = "the update or the optimizer's state" if math.isfinite(loss + norm) else "the loss or gradient"
        wrong = "a spike of the loss or gradient norm" if means["finite"] else f"{wrong} is not finite"
        wrong = f"{wrong} (loss {loss:g}, gradient norm {norm:g})"
        self.ledger.add("skipped", step, why=wrong, loss=loss, gradient_norm=norm, halted=bool(means["halted"]))
        if means["halted"]:
            raise TooManySkipped(step, wrong, self.run.train.skipped_in_a_row)
        self.console.note(f"WARNING: step {step:,}: {wrong}; its update is left out")

    def _save(self, state: State, step: int, locally: bool = False) -> None:
        self.stop.check()  # where another has taken over, nothing is written into its checkpoints
        self._read()  # so that a step that was not finite is not saved as made
        with self.clock.doing("checkpoint"):
            kept = {"totals": dict(self.totals)} if self.totals else {}  # a copy: it is written in the background
            body = {**self.metadata(step), **kept}
            if locally:
                self.checkpoints.save_locally(step, state, body)
            elif self.checkpoints.save(step, state, body, self._losses[0] / max(1, self._losses[1])):
                self._losses = (0.0, 0)

    def _call_hooks(self, state: State, step: int) -> None:
        for hook in self.hooks:
            if hook.due(step, self.run.train.steps):
                self._read()
                hook(step, state)
