"""Hugging Face's names of a family's parameters, from our modules to theirs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from t5x_like.core.errors import UserError
from t5x_like.models.config import ModelConfig

# What parameters are called below their module, ours to theirs; a name may also be of a parameter itself.
LEAVES = {"": "", "/kernel": ".weight", "/scale": ".weight", "/table": ".weight", "/bias": ".bias"}


class Entry(NamedTuple):
    """Where one of their tensors lies here.

    Attributes:
      paths: paths of our parameters, joined along the last dimension where they keep several in one.
      turned: whether the array is transposed: our kernels are [in, out], tables and output head [rows, D].
      layers: number of tensors, of one layer each; 1 for a parameter that is no layer's.
    """

    paths: list[str]
    turned: bool
    layers: int


@dataclasses.dataclass(frozen=True)
class Family:
    """What Hugging Face calls the parameters of models of one kind.

    Attributes:
      name: name of the family.
      fits: function from a model's config to whether it is of the family.
      modules: function from a model's config to their names by paths of our modules (``{}`` for the layer), also of
        modules that this model lacks; modules of one name lie side by side in it.
      turned: whether their kernels are [out, in].
    """

    name: str
    fits: Callable[[ModelConfig], bool]
    modules: Callable[[ModelConfig], dict[str, str]]
    turned: bool = True

    def names(self, config: ModelConfig) -> dict[str, Entry]:
        """The parameters of a model by their names. Raises UserError where some have none."""
        from t5x_like.arrays.trees import flatten
        from t5x_like.models.transformer import make_model

        found: dict[str, Entry] = {}
        left = flatten(make_model(config)[1])
        for module, theirs in self.modules(config).items():
            for leaf in (leaf for leaf in LEAVES if module + leaf in left):
                spec = left.pop(module + leaf)
                turned = self.turned and leaf == "/kernel" and module != "output_head"
                entry = Entry([], turned, spec.shape[0] if spec.stacked else 1)
                found.setdefault(theirs + LEAVES[leaf], entry).paths.append(module + leaf)
        if left:
            got = f"parameters without a Hugging Face name: {', '.join(left)}"
            raise UserError("model", got, f"a model of the family {self.name}")
        return found
