"""The base of adapters: parameters beside a model's own, and what they change in those that it computes with (LoRA).

Imports no JAX: adapters are part of a run's config. ``train.setup`` puts their conversions into ``Setup.bind``.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from t5x_like.core.config import Config
from t5x_like.core.errors import UserError

if TYPE_CHECKING:
    from t5x_like.arrays.trees import Tree


@dataclasses.dataclass(frozen=True)
class Adapter(Config, abc.ABC, where="adapters"):
    """A change of a model's parameters between where they are stored and where they are used; the base of frozen
    dataclasses that a run lists in ``adapters``."""

    @property
    def frozen(self) -> tuple[str, ...]:
        """Patterns of parameters that are not trained, beside the optimizer's own ``frozen``."""
        return ()

    @abc.abstractmethod
    def declare(self, specs: Tree) -> Tree:
        """The declarations (``ParamSpec``) of its own parameters, a nested dict beside the model's ``specs``."""

    @abc.abstractmethod
    def convert(self, params: Tree, own: Tree) -> Tree:
        """The parameters that are used, from those beside it and its ``own``; in the structure of ``params``. Traced
        inside the train step, and differentiated."""


def with_adapters(adapters: Sequence[Adapter], specs: Tree) -> tuple[Tree, tuple[Callable[[Tree], Tree], ...]]:
    """(the declarations of all parameters, the functions that make them into the model's, in order).

    Args:
      adapters: adapters in order; each sees the parameters of the model and of the adapters before it.
      specs: declarations of the model's parameters.

    Raises:
      UserError: an adapter gives a parameter a path that another one has.
    """
    from t5x_like.arrays.trees import flatten, join, split

    conversions: list[Callable[[Tree], Tree]] = []
    for place, adapter in enumerate(adapters):
        own = flatten(adapter.declare(specs))
        if taken := sorted(own.keys() & flatten(specs).keys()):
            raise UserError(f"adapters.{place}", f"parameter {taken[0]} is there already", "paths of its own")
        specs = join(specs, adapter.declare(specs))

        def convert(params: Tree, adapter: Adapter = adapter, paths: frozenset[str] = frozenset(own)) -> Tree:
            own, others = split(params, paths)
            return adapter.convert(others, own)

        conversions.insert(0, convert)
    return specs, tuple(conversions)
