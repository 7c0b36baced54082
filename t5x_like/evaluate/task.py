"""The base of evaluations, and the opened run they are given. Imports no JAX: evaluations are part of a config."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from t5x_like.core.config import Config
from t5x_like.core.every import Every

if TYPE_CHECKING:
    import jax

    from t5x_like.decode.sample import Sampling

Values = dict[str, float]


class Opened(Protocol):
    """A trained model with its text, on this machine's devices: ``train.opened.OpenedRun``.

    Attributes:
      run: the config.
      step: number of updates made.
      stop: function that says whether to stop before the end.
      tokenizer: the tokenizer of the run's text.
    """

    @property
    def run(self) -> Any: ...
    @property
    def step(self) -> int: ...
    @property
    def stop(self) -> Callable[[], bool]: ...
    @property
    def tokenizer(self) -> Any: ...

    def compute(self, function: Callable[..., Any], *arrays: Any) -> Any:
        """``function(model, *arrays)``, compiled on the run's mesh at the first call with this function."""

    def sums(self, batch: Any) -> dict[str, jax.Array]:
        """name: [2], (sum, weight) of what the run's loss measures on one batch."""
        ...

    def held_out(self, limit: int = 0) -> Iterator[dict[str, jax.Array]]:
        """Batches of the held-out split on the devices, at most ``limit`` of them, or all for 0."""
        ...

    def generate(self, prompts: Sequence[str], sampling: Sampling, seed: int = 0) -> list[str]:
        """What the model writes after each prompt."""
        ...


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

    @abc.abstractmethod
    def run(self, opened: Opened) -> Values | None:
        """Values by name; None if ``opened.stop()`` said to stop on the way, empty if there was nothing to measure."""
