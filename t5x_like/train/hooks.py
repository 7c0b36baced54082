"""What the loop does between steps: evaluations, samples of text, a profile; each at its own times."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import jax

from t5x_like.core.every import Every
from t5x_like.evaluate.task import Evaluation, Values
from t5x_like.report.clock import Clock
from t5x_like.report.console import Console
from t5x_like.report.writers import Reporter
from t5x_like.train.opened import OpenedRun
from t5x_like.train.setup import State


class Hook:
    """An action between two steps, after the metrics of all earlier steps have been read.

    The loop also asks at its first step, which is 0 or the step of a checkpoint.
    """

    def due(self, step: int, total: int) -> bool:
        """Whether it is time after update ``step`` of ``total``."""
        raise NotImplementedError

    def __call__(self, step: int, state: State) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Called once, when the loop has ended or failed."""


@dataclasses.dataclass(eq=False)
class Measure(Hook):
    """Makes an evaluation, once a step, and reports its values under its name.

    Attributes:
      task: the evaluation.
      when: times of the evaluation.
      opened: the run, evaluated with the parameters of the step.
      reporter, console, clock: those of the run.
      made_at: step whose values are in the metrics already.
      values: values of the last evaluation made here.
    """

    task: Evaluation
    when: Every
    opened: OpenedRun
    reporter: Reporter
    console: Console
    clock: Clock
    made_at: int | None = None
    values: Values | None = None

    def due(self, step: int, total: int) -> bool:
        return step != self.made_at and self.when.due(step, total)

    def __call__(self, step: int, state: State) -> None:
        with self.clock.doing("evaluate"):
            found = self.task.run(self.opened.at(step, state))
        name = self.task.name
        if found is None:  # told to stop on the way
            return
        self.made_at = step
        if not found:
            self.console.note(f"WARNING: {name}: not one target in what is held out, or nothing else to measure")
            return
        self.values = found
        shown = {f"{name.replace('_', '-')} {key}": value for key, value in found.items() if key != "targets"}
        self.console.evaluation(step, shown)
        self.reporter.log(step, {f"{name}/{key}": value for key, value in found.items()})


@dataclasses.dataclass(eq=False)
class Sample(Hook):
    """Has the model write text and shows it; the caller shows the text of the last step.

    Attributes:
      when: times of the samples.
      write: function from the opened run to named lines of text.
      opened, console, clock: as for ``Measure``.
      last: text of the last step.
    """

    when: Every
    write: Callable[[OpenedRun], Mapping[str, str]]
    opened: OpenedRun
    console: Console
    clock: Clock
    last: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def due(self, step: int, total: int) -> bool:
        return self.when.due(step, total)

    def __call__(self, step: int, state: State) -> None:
        if self.opened.stop():
            return
        with self.clock.doing("evaluate"):
            written = self.write(self.opened.at(step, state))
        if step == self.opened.run.train.steps:
            self.last = written
            return
        for name, text in written.items():
            self.console.note(f"  {name:<6} {' '.join(text.split())}")


@dataclasses.dataclass(eq=False)
class Profile(Hook):
    """Traces the steps ``first`` to ``last`` (counted from 1) with ``jax.profiler`` into ``folder``."""

    first: int
    last: int
    folder: Path
    _on: bool = False

    def due(self, step: int, total: int) -> bool:
        return step == self.first - 1 or (self._on and step == self.last)

    def __call__(self, step: int, state: State) -> None:
        jax.block_until_ready(state)  # so that the trace has these steps whole, and no other
        if step == self.last:
            self.close()
        else:
            jax.profiler.start_trace(str(self.folder))
            self._on = True

    def close(self) -> None:
        """Ends a trace that is on."""
        if self._on:
            jax.profiler.stop_trace()
            self._on = False
