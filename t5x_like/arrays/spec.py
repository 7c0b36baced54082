"""The declaration of a parameter, from which counts, sharding, initialization and checkpoints are all read.

Knows shapes, logical axes and initial values; must not know meshes, layers or optimizers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

LAYERS = "layers"  # the logical axis of parameters stacked over the layers of one stack


@dataclasses.dataclass(frozen=True)
class Initializer:
    """Initial values of a parameter: ``normal`` with standard deviation ``scale``, or ``constant`` with that value."""

    kind: Literal["normal", "constant"]
    scale: float


@dataclasses.dataclass(frozen=True)
class ParamSpec:
    """One parameter: shape, one logical axis name (or None) per dimension, initializer, dtype.

    ``fan`` is the number of multiply-adds one token spends on one element (1 for a kernel, 0 for a lookup table), so
    that FLOPs are counted from the same declaration. With ``update`` it is state without a gradient, such as the
    bias of a router: once a step it becomes ``update(old, statistic)``, both of this shape (of one layer), where
    the statistic is what its layer gave under the parameter's name, summed over the whole batch.

    Raises:
      ValueError: axes and shape differ in rank.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: Initializer
    dtype: str = "float32"
    fan: int = 0
    update: Callable[[Any, Any], Any] | None = None

    def __post_init__(self):
        if len(self.shape) != len(self.axes):
            raise ValueError(f"a parameter of shape {self.shape} needs {len(self.shape)} axis names, got {self.axes}")

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def stacked(self) -> bool:
        """Whether the first dimension counts layers, each a parameter of its own to the optimizer."""
        return bool(self.axes) and self.axes[0] == LAYERS

    def stack(self, layers: int) -> ParamSpec:
        """The same parameter for ``layers`` layers, with a leading dimension."""
        return dataclasses.replace(self, shape=(layers, *self.shape), axes=(LAYERS, *self.axes))
