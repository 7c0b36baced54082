"""Choices that all optimizers share: learning rate, schedule, decay, clipping, patterns.

Plain frozen dataclasses that load without jax, because ``--help`` reads them. Must not know any one optimizer.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import TYPE_CHECKING, Annotated, Any, Literal

from t5x_like.core.config import Config
from t5x_like.core.errors import refuse
from t5x_like.core.ranges import BelowOne, NonNegativeFloat, NonNegativeInt, PositiveFloat, Probability, Range

if TYPE_CHECKING:
    import optax

    from t5x_like.arrays.trees import Tree
    from t5x_like.optim.context import Context

Duration = NonNegativeInt | BelowOne
"""The hint of a number of steps, or of a share of the run."""
Decay = Annotated[float, Range(0, 0.999999, "from 0 to 0.999999")]
"""The hint of the decay of a mean that is divided by 1 - decay ** count, in float32."""

NO_DECAY = (
    r"(^|/)(scale|bias)$",  # scales of norms, biases of projections
    r"(^|/)[^/]*(position|relative)[^/]*(/|$)",  # tables of position biases and learned positions
)
"""Patterns left out of weight decay unless told otherwise. Unlike a pattern of the user's own, each of these may match
nothing: a model without biases is no mistake."""


def in_steps(duration: int | float, total_steps: int) -> int:
    """Steps of a duration: a whole number of steps, or a share of the run."""
    return duration if isinstance(duration, int) else round(duration * total_steps)


@dataclasses.dataclass(frozen=True)
class Schedule(Config, where="optimizer.schedule"):
    """The learning rate as a function of the step, counted from 0; `schedules` has the formulas.

    Every kind can begin with ``warmup`` steps that rise linearly to the peak.

    Args:
      kind: ``constant``; ``linear`` or ``cosine`` decay until the last step of the run; ``rsqrt``, inverse square root
        of the step; ``wsd``, warm up, stay, decay linearly at the end of the run.
      warmup: length of the linear warm-up: a whole number of steps, or a share of the run (0.01); 0 is none.
      hold: only for ``rsqrt``: the step up to which the rate stays at its peak, after which it falls as
        sqrt(hold / step). 0 means ``warmup``. T5's own schedule is ``warmup=0, hold=10_000`` at a learning rate of
        0.01.
      decay: only for ``wsd``: the share of all steps, at the end of the run, over which the rate decays.
      end: for ``linear``, ``cosine`` and ``wsd``: the fraction of the peak reached at the end of the run.
      peak: the peak as a fraction of the optimizer's ``learning_rate``; for the later pieces of ``Joined``.
    """

    kind: Literal["constant", "linear", "cosine", "rsqrt", "wsd"] = "constant"
    warmup: Duration = 0
    hold: NonNegativeInt = 0
    decay: Annotated[float, Range(1e-6, 1, "from 1e-6 to 1")] = 0.1
    end: Probability = 0.0
    peak: PositiveFloat = 1.0

    def __post_init__(self):
        where = "optimizer.schedule"
        refuse(bool(self.hold) and self.kind != "rsqrt", f"{where}.hold",
               f"{self.hold} with kind {self.kind!r}, which does not hold", "0",
               f"{where}.kind=rsqrt, or leave hold out")

    def decay_steps(self, total_steps: int) -> int:
        """Length of the decay of ``wsd``."""
        return max(1, round(self.decay * total_steps))

    def check(self, total_steps: int, where: str = "optimizer.schedule") -> None:
        """Raises UserError, naming the field, where the warm-up leaves no room in ``total_steps`` updates."""
        warmup, wsd = in_steps(self.warmup, total_steps), self.kind == "wsd"
        stable = total_steps - (self.decay_steps(total_steps) if wsd else 0)
        refuse(self.kind in ("linear", "cosine", "wsd") and warmup > max(0, stable - (not wsd)), f"{where}.warmup",
               f"{warmup} steps of warm-up leave no room in {total_steps} steps",
               f"{'at most' if wsd else 'fewer than'} the {stable} steps before the decay "
               f"{'begins' if wsd else 'ends'}",
               f"{where}.warmup={max(0, stable // 10)}, or more train.steps")


@dataclasses.dataclass(frozen=True)
class Joined(Config, where="optimizer.schedule"):
    """Schedules one after the other; each counts its steps from its own start, and its length is its share of the run.

    Args:
      schedules: two or more schedules, in order.
      until: end of each but the last: a whole number of steps from the start of the run, or a share of the run.
    """

    schedules: tuple[Schedule, ...]
    until: tuple[Duration, ...]

    def __post_init__(self):
        refuse(len(self.schedules) < 2 or len(self.until) != len(self.schedules) - 1, "optimizer.schedule.until",
               f"{len(self.until)} ends of {len(self.schedules)} schedules",
               "two schedules or more, and an end of each but the last")

    def bounds(self, total_steps: int) -> tuple[int, ...]:
        """The step at which each schedule starts, and ``total_steps``."""
        return (0, *(in_steps(end, total_steps) for end in self.until), total_steps)

    def check(self, total_steps: int) -> None:
        """Raises UserError where the ends do not rise within ``total_steps``, or as ``Schedule.check``."""
        bounds = self.bounds(total_steps)
        refuse(list(bounds) != sorted(set(bounds)), "optimizer.schedule.until",
               f"steps {', '.join(map(str, bounds[1:-1]))} of {total_steps}",
               f"rising steps between 0 and {total_steps}")
        for number, schedule in enumerate(self.schedules):
            schedule.check(bounds[number + 1] - bounds[number], f"optimizer.schedule.schedules.{number}")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Config, abc.ABC, where="optimizer"):
    """The fields that every optimizer has. An optimizer is a subclass with one method, `transformation`.

    Args:
      learning_rate: peak of the schedule.
      weight_decay: share of a parameter that each step subtracts, times the learning rate.
      clip_norm: largest norm of the gradients over all trained parameters, which are scaled down to it; 0 is off.
      no_decay: regular expressions, searched in "/"-joined parameter paths, of parameters without weight decay.
      frozen: likewise, of parameters that are not trained: no state is kept for them and their gradient is dropped.
      rates: pairs of such an expression and a factor by which the learning rate of its parameters is multiplied; the
        factors of all expressions found in a path multiply.
      schedule: schedule of the learning rate.
      ema: decay of a moving average of the parameters, which evaluation, sampling and export then use; 0 is off. The
        decay at step t is at most (1 + t) / (10 + t), so that short runs are not averages of their initial values.
    """

    learning_rate: NonNegativeFloat = 1e-3
    weight_decay: NonNegativeFloat = 0.0
    clip_norm: NonNegativeFloat = 0.0
    no_decay: tuple[str, ...] = NO_DECAY
    frozen: tuple[str, ...] = ()
    rates: tuple[tuple[str, PositiveFloat], ...] = ()
    schedule: Schedule | Joined = Schedule()
    ema: BelowOne = 0.0

    def check(self, total_steps: int) -> None:
        """Raises UserError for what makes no sense in a run of ``total_steps`` updates."""
        self.schedule.check(total_steps)

    @abc.abstractmethod
    def transformation(self, context: Context) -> optax.GradientTransformation:
        """From gradients, clipped and in float32, to what is added to the trained parameters, learning rate included.

        Usually ``context.descend(direction)``, which adds weight decay, learning rate and ``rates`` to a direction
        such as ``optax.scale_by_adam()``.
        """

    def to_check(self, state: Any) -> Tree | None:
        """Arrays that are finite exactly where a step by finite gradients gives finite parameters and a finite state;
        None: all of both, the default. Fewer save a pass over memory. ``state``: optax's, new.

        Not asked at learning rates so high that finite directions may overflow.
        """
        del state
        return None

    def eval_params(self, params: Tree, state: Any) -> Tree:
        """Parameters for evaluation in place of ``params``; ``state`` is the transformation's, as optax has it."""
        del state
        return params
