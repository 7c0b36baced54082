"""The loop: dispatch a step, then read the metrics of the step before it. Never waits for the step just dispatched.

Knows steps, clocks, checkpoints and reports; must not know how a batch or an update is made.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from t5x_like.checkpoint.checkpoints import Checkpoints
from t5x_like.core.errors import UserError
from t5x_like.models.transformer import Batch
from t5x_like.report.clock import Clock
from t5x_like.report.console import Console, Progress
from t5x_like.report.writers import Reporter
from t5x_like.train.config import Run
from t5x_like.train.step import Metrics, State
from t5x_like.train.stopping import Stop


class NotFinite(UserError):
    """The loss or the gradient of step ``step`` was not finite; that update was not made."""

    def __init__(self, step: int, loss: float, gradient_norm: float):
        self.step = step
        super().__init__(
            f"step {step}",
            f"the loss or gradient is not finite (loss {loss:g}, gradient norm {gradient_norm:g}); the run has stopped "
            "with the state before this step",
            suggestion="a lower optimizer.learning_rate, a longer optimizer.schedule.warmup, optimizer.clip_norm=1.0",
        )


@dataclasses.dataclass
class Loop:
    """One run's loop over steps, with everything it calls.

    Attributes:
      run: the config.
      step: (state, batch) to (state, metrics), compiled.
      evaluate: params to held-out means by name, or None if told to stop on the way.
      checkpoints, reporter, console, clock, stop: as their rooms say.
      metadata: of a checkpoint after so many steps.
      data_metrics: what the first so many batches were made of.
      tokens_per_step, flops_per_step: of the global batch.
      peak_flops: of all devices together, or None.
      utilization_of: what that peak is: ``MFU`` or ``roofline``.
      evaluated_at: the step of the last evaluation, which is not made again.
      held_out: what it found, if it was made here.
    """

    run: Run
    step: Callable[[State, Batch], tuple[State, Metrics]]
    evaluate: Callable[[Any], dict[str, float] | None]
    checkpoints: Checkpoints
    reporter: Reporter
    console: Console
    clock: Clock
    stop: Stop
    metadata: Callable[[int], Mapping[str, Any]]
    data_metrics: Callable[[int], Mapping[str, float]]
    tokens_per_step: int
    flops_per_step: float
    peak_flops: float | None
    utilization_of: str
    evaluated_at: int | None = None
    held_out: dict[str, float] | None = None
    _unread: tuple[int, Metrics] | None = None

    def __call__(self, state: State, first: int, batches: Iterator[Batch]) -> tuple[State, int]:
        """(the state, the updates made): all steps from ``first`` on, or as many as until told to stop.

        Raises:
          NotFinite: naming the step. The last finite state has been saved.
          UserError: a checkpoint could not be written.
        """
        every, total = self.run.train.evaluate_every, self.run.train.steps
        done = first
        if first and (first == total or (every and first % every == 0)):
            self._evaluate(state, first)  # if the run was stopped before it could be done
        try:
            while done < total and not self.stop.wanted(done):
                with self.clock.doing("data"):
                    batch = next(batches)
                with self.clock.doing("compile" if done == first else "step"):
                    state, metrics = self.step(state, batch)
                done += 1
                self._read()
                self._unread = (done, metrics)
                self.checkpoints.check()
                if self.checkpoints.due(done) and done < total:
                    self._save(state, done)
                if every and done % every == 0 and done < total:
                    self._evaluate(state, done)
            self._read()
        except NotFinite as error:
            # The state is that before the bad step; saved ready to go on, should the cause be mended.
            self._save(state | {"halted": jnp.zeros_like(state["halted"])}, error.step - 1)
            self.checkpoints.wait()
            raise
        self._save(state, done)
        if done == total:
            self._evaluate(state, done)
        with self.clock.doing("checkpoint"):
            self.checkpoints.wait()
        return state, done

    def _read(self) -> None:
        """Reads and reports the metrics of the last step not yet read; waits for that step, not for the newest."""
        if self._unread is None:
            return
        (step, metrics), self._unread = self._unread, None
        with self.clock.doing("step"):
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not values["finite"]:
            raise NotFinite(step, values["loss"] / max(values["weight"], 1.0), values["gradient_norm"])
        self.clock.stepped(1, self.tokens_per_step)
        weight = max(values["weight"], 1.0)
        rate = self.clock.tokens_per_second()
        utilization = None
        if rate is not None and self.peak_flops:
            utilization = rate / self.tokens_per_step * self.flops_per_step / self.peak_flops
        self.console.progress(
            Progress(
                step,
                values["nll"] / weight,
                rate,
                utilization,
                self.utilization_of,
                values["learning_rate"],
                self.clock.seconds_left(self.run.train.steps - step),
                self.checkpoints.latest(),
            )
        )
        if self.reporter.due(step) or step == self.run.train.steps:
            row = {f"train/{name}": values[name] / weight for name in ("loss", "nll", "z_loss")}
            row |= {"train/accuracy": values["correct"] / weight, "train/targets": values["weight"]}
            row |= {f"train/{name}": values[name] for name in ("gradient_norm", "learning_rate")}
            row |= self.data_metrics(step)
            if rate is not None:
                row["train/tokens_per_second"] = rate
            if utilization is not None:
                row["train/utilization"] = utilization
            self.reporter.log(step, row)

    def _save(self, state: State, step: int) -> None:
        self._read()  # so that no step that was not finite is saved as if it had been made
        with self.clock.doing("checkpoint"):
            self.checkpoints.save(step, state, self.metadata(step))

    def _evaluate(self, state: State, step: int) -> None:
        if self.evaluated_at == step:
            return
        self._read()
        with self.clock.doing("evaluate"):
            found = self.evaluate(state["params"])
        if not found:  # told to stop on the way, or nothing is held out
            return
        self.evaluated_at, self.held_out = step, found
        self.console.evaluation(step, {f"held-out {name}": found[name] for name in ("loss", "perplexity", "accuracy")})
        self.reporter.log(step, {f"held_out/{name}": value for name, value in found.items()})
