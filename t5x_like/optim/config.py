"""What a user chooses about optimization: which optimizer, its numbers, its learning-rate schedule, its masks.

Plain frozen dataclasses that load without jax, because ``--help`` reads them. Must not hold any mathematics: the
meaning of each number is in the file named after the optimizer, and in `schedules`.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from t5x_like.core.config import Config

NO_DECAY = (
    r"(^|/)(scale|bias)$",  # scales of norms, biases of projections
    r"(^|/)[^/]*(position|relative)[^/]*(/|$)",  # tables of position biases and learned positions
)
"""Patterns left out of weight decay unless told otherwise. Unlike a pattern of the user's own, each of these may match
nothing: a model without biases is no mistake."""


@dataclasses.dataclass(frozen=True)
class Schedule(Config, where="optimizer.schedule"):
    """How the learning rate moves from update to update; `schedules` has the formulas. Steps count from 0.

    Every kind can begin with ``warmup`` steps that rise linearly to the peak, ``learning_rate``.

    Args:
      kind: ``constant``; ``linear`` or ``cosine`` decay until the last step of the run; ``rsqrt``, inverse square root
        of the step; ``wsd``, warm up, stay, decay linearly at the end of the run.
      warmup: steps of linear warm-up; 0 is none.
      hold: only for ``rsqrt``: the step up to which the rate stays at its peak, after which it falls as
        sqrt(hold / step). 0 means ``warmup``. T5's own schedule is ``warmup=0, hold=10_000`` at a learning rate of
        0.01.
      decay: only for ``wsd``: the share of all steps, at the end of the run, over which the rate decays.
      end: for ``linear``, ``cosine`` and ``wsd``: the fraction of the peak reached at the end of the run.
    """

    kind: Literal["constant", "linear", "cosine", "rsqrt", "wsd"] = "constant"
    warmup: int = 0
    hold: int = 0
    decay: float = 0.1
    end: float = 0.0


@dataclasses.dataclass(frozen=True)
class AdamW(Config, where="optimizer"):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101).

    Args:
      learning_rate: the peak of the schedule.
      b1: decay of the mean of gradients.
      b2: decay of the mean of squared gradients.
      eps: added to the root of the mean square.
      weight_decay: each step takes ``learning_rate * weight_decay`` times the parameter away.
      clip_norm: gradients are scaled down so that their norm over all trained parameters is at most this; 0 is off.
      no_decay: regular expressions, searched in "/"-joined parameter paths, of parameters without weight decay.
      frozen: likewise, of parameters that are not trained: no state is kept for them and their gradient is dropped.
      schedule: how the learning rate moves.
    """

    learning_rate: float = 1e-3
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 0.0
    no_decay: tuple[str, ...] = NO_DECAY
    frozen: tuple[str, ...] = ()
    schedule: Schedule = Schedule()


@dataclasses.dataclass(frozen=True)
class Adafactor(Config, where="optimizer"):
    """Adafactor (Shazeer and Stern 2018, arXiv:1804.04235) as T5 used it, which the defaults are: no momentum.

    Args:
      learning_rate: the peak of the schedule; relative to each parameter's size if ``multiply_by_parameter_scale``.
      decay_exponent: the second moment decays by 1 - (step + 1) ** -decay_exponent.
      clip_threshold: the root mean square of each parameter's update, before the learning rate, is clipped to this.
      eps1: added to squared gradients.
      eps2: the least size a parameter counts with.
      min_dim_factored: the second moment is kept as a row and a column where two dimensions are at least this.
      multiply_by_parameter_scale: whether updates are proportional to max(root mean square of the parameter, eps2).
      weight_decay: each step takes ``learning_rate * weight_decay`` times the parameter away.
      clip_norm: gradients are scaled down so that their norm over all trained parameters is at most this; 0 is off.
      no_decay: regular expressions, searched in "/"-joined parameter paths, of parameters without weight decay.
      frozen: likewise, of parameters that are not trained: no state is kept for them and their gradient is dropped.
      schedule: how the learning rate moves.
    """

    learning_rate: float = 0.01
    decay_exponent: float = 0.8
    clip_threshold: float = 1.0
    eps1: float = 1e-30
    eps2: float = 1e-3
    min_dim_factored: int = 128
    multiply_by_parameter_scale: bool = True
    weight_decay: float = 0.0
    clip_norm: float = 0.0
    no_decay: tuple[str, ...] = NO_DECAY
    frozen: tuple[str, ...] = ()
    schedule: Schedule = Schedule("rsqrt", hold=10_000)


@dataclasses.dataclass(frozen=True)
class Lion(Config, where="optimizer"):
    """Lion: the sign of an interpolated momentum (Chen et al. 2023, arXiv:2302.06675).

    Args:
      learning_rate: the peak of the schedule; 3 to 10 times smaller than AdamW's.
      b1: share of the momentum, against the gradient, in the direction taken.
      b2: decay of the momentum.
      weight_decay: each step takes ``learning_rate * weight_decay`` times the parameter away; 3 to 10 times AdamW's.
      clip_norm: gradients are scaled down so that their norm over all trained parameters is at most this; 0 is off.
      no_decay: regular expressions, searched in "/"-joined parameter paths, of parameters without weight decay.
      frozen: likewise, of parameters that are not trained: no state is kept for them and their gradient is dropped.
      schedule: how the learning rate moves.
    """

    learning_rate: float = 1e-4
    b1: float = 0.9
    b2: float = 0.99
    weight_decay: float = 1.0
    clip_norm: float = 0.0
    no_decay: tuple[str, ...] = NO_DECAY
    frozen: tuple[str, ...] = ()
    schedule: Schedule = Schedule()


OptimizerConfig = AdamW | Adafactor | Lion
