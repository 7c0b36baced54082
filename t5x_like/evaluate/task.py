"""The base of evaluations. Imports no JAX: evaluations are part of a config."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from t5x_like.core.config import Config
from t5x_like.core.every import Every

if TYPE_CHECKING:
    from t5x_like.train.opened import OpenedRun

Values = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Evaluation(Config, abc.ABC, where="evaluations"):
    """A named measurement of a run's model; the base of frozen dataclasses that a run lists in ``evaluations``.

    Attributes:
      name: first part of the names of its metrics: ``name/value``.
      when: times of the evaluation; none: those of ``train.evaluate_every``.
    """

    name: str = ""
    when: Every | None = None

    needs_held_out: ClassVar[bool] = False  # whether a run without held-out text leaves it out

    def label(self, opened: OpenedRun) -> str:
        """The first part of the names of its metrics: ``name``, unless only a part of what is held out is measured."""
        return self.name

    @abc.abstractmethod
    def run(self, opened: OpenedRun) -> Values | None:
        """Values by name, computed with the opened run: its ``held_out`` batches, ``compute``, ``sums``, ``generate``;
        None if ``opened.stop()`` said to stop on the way, empty if there was nothing to measure."""
