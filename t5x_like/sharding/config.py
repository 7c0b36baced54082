"""The mesh as configured. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Literal

from t5x_like.core.config import Config
from t5x_like.core.errors import UserError, nearest
from t5x_like.core.ranges import NonNegativeInt, PositiveInt

AxisSize = PositiveInt | Literal[-1]
AXES = ("data", "fsdp", "tensor")


@dataclasses.dataclass(frozen=True)
class Rule(Config, where="mesh.rules"):
    """Which mesh axes split a logical axis; the table of all is ``rules.RULES``.

    Attributes:
      axis: logical axis, such as ``embed`` or ``length``, of this package or of a layer of your own.
      mesh: mesh axes that split it; none: replicated.
    """

    axis: str
    mesh: tuple[str, ...] = ()

    def __post_init__(self):
        if unknown := [name for name in self.mesh if name not in AXES]:
            raise UserError("mesh.rules", f"no mesh axis {unknown[0]!r} (of logical axis {self.axis!r})",
                            ", ".join(AXES), nearest(unknown[0], AXES))  # fmt: skip


@dataclasses.dataclass(frozen=True)
class MeshConfig(Config, where="mesh"):
    """Sizes of the named mesh axes; -1 (at most one) means all the devices that remain.

    data: batches are split, parameters are replicated. fsdp: batches and parameters are split. tensor: heads, the MLP's
    hidden width and the vocabulary are split.

    reduce: when gradients are summed over ``data``: once a step, after all layers and micro-batches; or per_layer, in
    every layer of every micro-batch, as the partitioner does it where it is left to decide.

    replicated_limit_mb: a weight larger than this that no mesh axis splits, on a mesh that could, raises.

    rules: for logical axes that are to lie elsewhere than ``rules.RULES`` says.
    """

    data: AxisSize = -1
    fsdp: AxisSize = 1
    tensor: AxisSize = 1
    replicated_limit_mb: NonNegativeInt = 256
    reduce: Literal["once", "per_layer"] = "once"
    rules: tuple[Rule, ...] = ()

    def __post_init__(self):
        sizes = {name: getattr(self, name) for name in AXES}
        if list(sizes.values()).count(-1) > 1:
            raise UserError("mesh", f"got -1 more than once: {sizes}", "-1 for one axis at most")

    def sizes(self, devices: int) -> dict[str, int]:
        """Axis name to size, for ``devices`` devices.

        Raises:
          UserError: the sizes do not multiply to the number of devices.
        """
        sizes = {name: getattr(self, name) for name in AXES}
        fixed = math.prod(size for size in sizes.values() if size != -1)
        if -1 in sizes.values():
            sizes = {name: devices // fixed if size == -1 else size for name, size in sizes.items()}
        if math.prod(sizes.values()) != devices:
            shown = ", ".join(f"{name} {getattr(self, name)}" for name in AXES)
            raise UserError(
                "mesh",
                f"{shown} does not divide {devices} device{'s' if devices != 1 else ''}",
                f"sizes that multiply to {devices} (its divisors: {', '.join(map(str, _divisors(devices)))})",
                self.nearest(devices).assignments(),
            )
        return sizes

    def nearest(self, devices: int, slices: int = 1) -> MeshConfig:
        """The mesh of ``devices`` devices in ``slices`` slices with the sizes nearest to these, by their ratios."""
        asked = [getattr(self, name) for name in AXES]
        divisors = _divisors(devices)[::-1]  # of equally near ones that with the most data
        outer = itertools.product(divisors, repeat=len(AXES) - 1)
        works = [(*sizes, devices // math.prod(sizes)) for sizes in outer
                 if devices % math.prod(sizes) == 0 and sizes[0] * sizes[1] % slices == 0]  # fmt: skip

        def distance(sizes: tuple[int, ...]) -> tuple[bool, float, int]:
            ratios = [n / wanted for n, wanted in zip(sizes, asked, strict=True) if wanted != -1]
            # heads that the asked number divides, another one need not
            split = max(self.tensor, 1) % sizes[AXES.index("tensor")] > 0
            return split, round(math.prod(max(r, 1 / r) for r in ratios), 6), sum(r != 1 for r in ratios)

        return dataclasses.replace(self, **dict(zip(AXES, min(works, key=distance), strict=True)))

    def fitted(self, devices: int) -> MeshConfig:
        """This mesh where it divides ``devices``; else the nearest that does."""
        try:
            self.sizes(devices)
        except UserError:
            return self.nearest(devices)
        return self

    def assignments(self) -> str:
        """The sizes as they are given on the command line."""
        return " ".join(f"mesh.{name}={getattr(self, name)}" for name in AXES)


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]
