"""Initial values of a model's parameters: the choice, and the standard deviation of a kernel."""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import TYPE_CHECKING

from t5x_like.core.config import Config
from t5x_like.core.ranges import NonNegativeFloat

if TYPE_CHECKING:
    from t5x_like.arrays.spec import Initializer


@dataclasses.dataclass(frozen=True)
class Init(Config, abc.ABC, where="model.init"):
    """Base of the choices below.

    Attributes:
      depth_scaled: whether the last kernel of each sublayer is divided by sqrt(2 layers), as in GPT-2.
    """

    depth_scaled: bool = False

    def std(self, fan: int) -> float:
        """Standard deviation of a kernel whose outputs each sum ``fan`` inputs."""
        raise TypeError(f"{type(self).__name__} does not say how kernels start")

    def kernel(self, fan: int, depth: int = 0) -> Initializer:
        """The initializer of a kernel with this many inputs; of a sublayer's last one in ``depth`` layers."""
        from t5x_like.arrays.spec import Initializer

        return Initializer("normal", self.std(fan) * ((2 * depth) ** -0.5 if depth and self.depth_scaled else 1.0))


@dataclasses.dataclass(frozen=True)
class FanIn(Init):
    """Normal with variance 1 / inputs (LeCun)."""

    def std(self, fan: int) -> float:
        return 1.0 / math.sqrt(fan)


@dataclasses.dataclass(frozen=True)
class Normal(Init):
    """Normal with one standard deviation for all kernels.

    Attributes:
      stddev: the standard deviation.
    """

    stddev: NonNegativeFloat = 0.02

    def std(self, fan: int) -> float:
        return self.stddev
