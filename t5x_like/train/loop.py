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


class NotFinite(UserError):
    """The loss, the gradient or the update of step ``step`` was not finite; that update was not made."""

    def __init__(self, step: int, loss: float, gradient_norm: float):
        self.step = step
        wrong = "the update or the optimizer's state" if math.isfinite(loss + gradient_norm) else "the loss or gradient"
        got = f"{wrong} is not finite (loss {loss:g}, gradient norm {gradient_norm:g})"
        suggestion = "a lower optimizer.learning_rate, a longer optimizer.schedule.warmup, optimizer.clip_norm=1.0"
        super().__init__(
            f"step {step}", f"{got}; the run has stopped with the state before this step", suggestion=suggestion
        )


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

    def __call__(self, state: State, first: int, batches: Iterator[Batch]) -> tuple[State, int]:
        """(state, number of updates made) after all steps from ``first`` on, or after those before a stop.

        Raises:
          NotFinite: naming the step. The last finite state has been saved.
          UserError: a checkpoint could not be written.
        """
        total, done = self.run.train.steps, first
        self._call_hooks(state, first)  # including those that a stop had prevented
        try:
            while done < total and not self.stop.wanted(done):
                with self.clock.doing("data"):
                    batch = next(batches)
                state, metrics = self._dispatch(state, batch, compiles=done == first)
                if done == first:
                    self.ledger.add("compile", first)
                done += 1
                self._read()
                self._unread = (done, metrics)
                self.checkpoints.check()
                if done < total:
                    if self.run.checkpoint.every.due(done, total):
                        self._save(state, done)
                    self._call_hooks(state, done)
            self._read()
        except NotFinite as error:
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

    def _dispatch(self, state: State, batch: Batch, compiles: bool) -> tuple[State, Pairs]:
        if not compiles:
            with self.clock.doing("step"):
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
        if not means.pop("finite"):
            raise NotFinite(step, means["loss"], means["gradient_norm"])
        self.clock.stepped()
        self.ledger.stepped(step)
        seconds, costs = self.clock.seconds_per_step(), self.costs
        rate = costs.tokens / seconds if seconds else None
        utilization = costs.flops / seconds / costs.peak_flops if seconds and costs.peak_flops else None
        left, saved = self.clock.seconds_left(self.run.train.steps - step), self.checkpoints.latest()
        others = {name: value for name, value in means.items() if name not in USUAL}
        loss, learning_rate, of = means.get("nll", means["loss"]), means["learning_rate"], costs.utilization_of
        self.console.progress(step, loss, rate, utilization, of, learning_rate, left, saved, others)
        for name, pair in sums.items():
            self.totals[name] = [sum(both) for both in zip(self.totals.get(name, (0.0, 0.0)), pair, strict=True)]
        if self.reporter.due(step) or step == self.run.train.steps:
            steps = self.totals.pop("finite")[1]
            row = {f"train/{name}": value / weight if weight else 0.0 for name, (value, weight) in self.totals.items()}
            row |= {"train/learning_rate": means["learning_rate"], "train/targets": self.totals["loss"][1] / steps}
            self.totals.clear()
            speed = {"train/tokens_per_second": rate, "train/utilization": utilization}
            row |= {**self.data_metrics(step)} | {name: value for name, value in speed.items() if value is not None}
            self.reporter.log(step, row)

    def _save(self, state: State, step: int) -> None:
        self._read()  # so that a step that was not finite is not saved as made
        with self.clock.doing("checkpoint"):
            kept = {"totals": dict(self.totals)} if self.totals else {}  # a copy: it is written in the background
            saved = self.checkpoints.save(step, state, {**self.metadata(step), **kept})
        if saved:
            self.ledger.add("save", step)

    def _call_hooks(self, state: State, step: int) -> None:
        for hook in self.hooks:
            if hook.due(step, self.run.train.steps):
                self._read()
                hook(step, state)
