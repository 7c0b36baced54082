"""Tables of a family's Hugging Face names: their name (``{}`` for the layer) to ours."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from t5x_like.models.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Entry:
    """Where one of their tensors lies here.

    Attributes:
      paths: paths of our parameters, joined along the last dimension where they keep several in one.
      turned: whether the array is transposed: our kernels are [in, out], tables and output head [rows, D].
    """

    paths: tuple[str, ...]
    turned: bool = False


Names = dict[str, Entry]


@dataclasses.dataclass(frozen=True)
class Family:
    """What Hugging Face calls the parameters of models of one kind.

    Attributes:
      name: name of the family.
      fits: function from a model's config to whether it is of the family.
      names: function from a model's config to its table of names.
    """

    name: str
    fits: Callable[[ModelConfig], bool]
    names: Callable[[ModelConfig], Names]


def linears(theirs: dict[str, str], turned: bool = True, bias: bool = True) -> Names:
    """Entries of linear maps, their prefix to ours: weight and kernel, bias and bias."""
    table = {f"{name}.weight": Entry((f"{path}/kernel",), turned) for name, path in theirs.items()}
    return table | {f"{name}.bias": Entry((f"{path}/bias",)) for name, path in theirs.items() if bias}


def norms(theirs: dict[str, str], bias: bool = True) -> Names:
    """Entries of norms, their prefix to ours: weight and scale, bias and bias."""
    table = {f"{name}.weight": Entry((f"{path}/scale",)) for name, path in theirs.items()}
    return table | {f"{name}.bias": Entry((f"{path}/bias",)) for name, path in theirs.items() if bias}
