"""Any optimizer of optax or optax.contrib, by its name."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import math
from collections.abc import Callable
from typing import Any

from t5x_like.core.errors import UserError, nearest, require
from t5x_like.core.spelling import Text
from t5x_like.core.structure import structure
from t5x_like.optim.config import OptimizerConfig

_VALUE = None | bool | int | float | str
GIVEN = ("learning_rate", "weight_decay")  # by fields of the config


@dataclasses.dataclass(frozen=True)
class Optax(OptimizerConfig):
    """An optimizer of optax by name: ``Optax(name="contrib.prodigy", arguments=("d_coef=0.5",), learning_rate=1.0)``.

    The learning rate, with its schedule, becomes its argument ``learning_rate``; what has none, such as
    ``scale_by_adam``, gives a direction that the learning rate multiplies. Weight decay is applied as for every other
    optimizer, and its own is set to 0.

    Args:
      name: a public function of optax or, after ``contrib.``, of optax.contrib.
      arguments: its other arguments as ``name=value``, values as JSON has them, or
        as they are written in other fields (``no``, ``.5``).
    """

    name: str = "adam"
    arguments: tuple[str, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        accepted = inspect.signature(self._function()).parameters
        for name in self._arguments():
            if name in GIVEN or name not in accepted:
                allowed = [n for n in accepted if n not in GIVEN]
                raise UserError("optimizer.arguments", f"{self.name} takes no {name!r} here", ", ".join(allowed),
                                f"optimizer.{name}" if name in GIVEN else nearest(name, allowed))

    def transformation(self, context):
        import optax

        function, arguments = self._function(), self._arguments()
        accepted = inspect.signature(function).parameters
        whole = "learning_rate" in accepted
        given: dict[str, Any] = {"learning_rate": context.learning_rate} if whole else {}
        if "weight_decay" in accepted:
            given["weight_decay"] = 0.0
        try:
            found = function(**given, **arguments)
            if not isinstance(found, optax.GradientTransformation):
                raise TypeError("it returns no GradientTransformation")
            context.try_out(found)
        except Exception as error:  # whatever optax raises for arguments that it cannot use
            shown = f"{self.name!r}" + f" with {', '.join(self.arguments)}" * bool(self.arguments)
            raise UserError("optimizer.name", f"{shown} cannot be used so: {error}",
                            "an optimizer of gradients and parameters alone, with arguments that fit") from error
        return context.finish(found) if whole else context.descend(found)

    def _function(self) -> Callable:
        """What ``name`` names. Raises UserError."""
        import optax
        import optax.contrib

        known = {name: getattr(optax, name) for name in dir(optax)}
        known |= {f"contrib.{name}": getattr(optax.contrib, name) for name in dir(optax.contrib)}
        known = {name: found for name, found in known.items() if not name.split(".")[-1].startswith("_")
                 and (inspect.isfunction(found) or isinstance(found, functools.partial))}  # fmt: skip
        require(self.name in known, "optimizer.name", repr(self.name), "a function of optax, or contrib.NAME",
                nearest(self.name, known) or nearest(f"contrib.{self.name}", known))
        require("schedule_free" not in self.name, "optimizer.name", repr(self.name),
                "an optimizer whose parameters are evaluated", "optimizer=ScheduleFree")
        return known[self.name]

    def _arguments(self) -> dict[str, Any]:
        found = {}
        for argument in self.arguments:
            name, equals, text = argument.partition("=")
            name = name.strip()
            require(bool(equals), "optimizer.arguments", repr(argument), "name=value")
            require(name not in found, "optimizer.arguments", self.arguments, f"one value of {name}")
            try:
                found[name] = json.loads(text)
            except (ValueError, RecursionError):  # False, no, .5: as in other fields, and not texts that are true
                found[name] = structure(_VALUE, Text(text.strip()), "optimizer.arguments")
        for name, value in found.items():
            require(not isinstance(value, float) or math.isfinite(value), "optimizer.arguments", f"{name}={value}",
                    "a finite number")
        return found
