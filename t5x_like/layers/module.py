"""A choice together with its parameters: returned by ``declare`` of a choice, filled with arrays by ``nnx.merge``.

A kind of layer is a frozen dataclass in a file of its own: its fields are what a user chooses, ``declare`` names its
parameters, ``apply`` computes with them. Such files import JAX inside functions only, because run files load them.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from flax import nnx

if TYPE_CHECKING:
    from t5x_like.layers.init import Init
    from t5x_like.layers.positions import Positions


class Module(nnx.Module):
    """Named parameters and modules (None where a choice has none of them); calling it calls ``choice.apply``."""

    def __init__(self, choice: Any, **parts: Any):
        self.choice = choice
        for name, part in parts.items():
            setattr(self, name, part)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self.choice.apply(self, *arguments, **named)


@dataclasses.dataclass(frozen=True)
class Site:
    """Where a layer is declared: all that its parameters depend on besides its own choice.

    Attributes:
      width: width of the residual stream, D.
      depth: number of layers of the stack.
      init: initial values of parameters.
      positions: positions of the stack.
    """

    width: int
    depth: int
    init: Init
    positions: Positions | None = None
