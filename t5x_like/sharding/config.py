"""The mesh as configured. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from t5x_like.core.config import Config
from t5x_like.core.errors import UserError, nearest

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
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    replicated_limit_mb: int = 256  # a weight larger than this that no mesh axis splits, on a mesh that could, raises
    reduce: Literal["once", "per_layer"] = "once"
    rules: tuple[Rule, ...] = ()  # for logical axes that are to lie elsewhere than ``rules.RULES`` says

    def __post_init__(self):
        sizes = {name: getattr(self, name) for name in AXES}
        for name, size in sizes.items():
            if size != -1 and size < 1:
                raise UserError(f"mesh.{name}", f"got {size}", "a whole number from 1, or -1 for the rest")
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
            divisors = [d for d in range(1, devices + 1) if devices % d == 0]
            raise UserError(
                "mesh",
                f"{shown} does not divide {devices} device{'s' if devices != 1 else ''}",
                f"sizes that multiply to {devices} (its divisors: {', '.join(map(str, divisors))})",
                "mesh.data=-1 mesh.fsdp=1 mesh.tensor=1",
            )
        return sizes

    def fitted(self, devices: int) -> MeshConfig:
        """This mesh where it divides ``devices``; else one that does: tensor, then fsdp, then data as near to these
        sizes as they divide the devices, and what is left along the axis of -1, or data."""
        try:
            self.sizes(devices)
            return self
        except UserError:
            found, left = {}, devices
            for name in reversed(AXES):
                found[name] = math.gcd(max(getattr(self, name), 1), left)
                left //= found[name]
            found[next((name for name in AXES if getattr(self, name) == -1), "data")] *= left
            return dataclasses.replace(self, **found)
