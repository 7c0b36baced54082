"""What the loop does between steps: evaluations and samples of text, each at its own times (profiles: ``profile``)."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping

from t5x_like.core.every import Every
from t5x_like.evaluate.task import Evaluation, Values
from t5x_like.report.clock import Clock
from t5x_like.report.console import Console
from t5x_like.report.writers import Reporter
from t5x_like.train.opened import OpenedRun
from t5x_like.train.sample import write_sample
from t5x_like.train.setup import State


class Hook(abc.ABC):
    """An action between two steps, after the metrics of all earlier steps have been read.

    The loop also asks at its first step, which is 0 or the step of a checkpoint.
    """

    @abc.abstractmethod
    def due(self, step: int, total: int) -> bool:
        """Whether it is time after update ``step`` of ``total``."""

    @abc.abstractmethod
    def __call__(self, step: int, state: State) -> None: ...

    def close(self) -> None:
        """Called once, when the loop has ended or failed."""
        return


@dataclasses.dataclass(eq=False)
class Measure(Hook):
    """Makes an evaluation, once a step, and reports its values under its label.

    Attributes:
      task: the evaluation.
      when: times of the evaluation.
      opened: the run, evaluated with the parameters of the step.
      reporter, console, clock: those of the run.
      made_at: step whose values are in the metrics already.
      measured: function of (step, values), by which the best checkpoints are kept.
      values: values of the last evaluation made here.
    """

    task: Evaluation
    when: Every
    opened: OpenedRun
    reporter: Reporter
    console: Console
    clock: Clock
    made_at: int | None = None
    measured: Callable[[int, Mapping[str, float]], None] = lambda step, values: None
    values: Values | None = None

    def due(self, step: int, total: int) -> bool:
        return step != self.made_at and self.when.due(step, total)

    def __call__(self, step: int, state: State) -> None:
        name = self.task.label(self.opened)
        with self.clock.doing("evaluate"), self.console.doing(f"evaluating {name.replace('_', '-')}"):
            found = self.task.run(self.opened.at(step, state))
        if found is None:  # told to stop on the way
            return
        self.made_at = step
        self.opened.ledger.add("evaluation", step, name=name, values=found)
        if not found:
            self.console.note(f"WARNING: {name}: not one target in what is held out, or nothing else to measure")
            return
        self.values = found
        shown = {f"{name.replace('_', '-')} {key}": value for key, value in found.items() if key != "targets"}
        self.console.evaluation(step, shown)
        self.reporter.log(step, {f"{name}/{key}": value for key, value in found.items()})
        self.measured(step, {f"{self.task.name}/{key}": value for key, value in found.items()})


@dataclasses.dataclass(eq=False)
class Sample(Hook):
    """Has the model write text and shows it; the caller shows the text of the last step.

    Attributes:
      opened, console, clock: as for ``Measure``.
      last: named lines of the text of the last step.
    """

    opened: OpenedRun
    console: Console
    clock: Clock
    last: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def due(self, step: int, total: int) -> bool:
        return self.opened.run.report.sample.due(step, total)

    def __call__(self, step: int, state: State) -> None:
        if self.opened.stop():
            return
        with self.clock.doing("evaluate"), self.console.doing("writing a sample"):
            written = write_sample(self.opened.at(step, state))
        if self.opened.stop():  # perhaps on the way: it is written when the run is resumed
            return
        self.opened.ledger.add("sample", step, text=written)
        if step == self.opened.run.train.steps:
            self.last = written
            return
        for name, text in written.items():
            self.console.note(f"  {name:<6} {' '.join(text.split())}")
