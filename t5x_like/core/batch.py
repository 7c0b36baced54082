"""The arrays of a batch, declared once: names, logical axes, dtypes. Read by input,
feed and model; knows none of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class BatchArray:
    """One array of a batch.

    Attributes:
      axes: logical axis of each dimension; ``batch`` is the rows, ``length`` the columns.
      dtype: name of the dtype.
      sizes: sizes of all other dimensions, by logical axis.
    """

    axes: tuple[str, ...] = ("batch", "length")
    dtype: str = "int32"
    sizes: tuple[tuple[str, int], ...] = ()


BatchSpec = Mapping[str, BatchArray]

SIDES = ("encoder", "decoder")
TOKENS, WEIGHTS = BatchArray(), BatchArray(dtype="float32")
OF_A_SIDE = ("tokens", "segments", "positions")  # every batch of text has these of each side that the model has


def text_arrays(encoder: bool, decoder: bool, extras: tuple[str, ...] = ()) -> dict[str, BatchArray]:
    """The arrays of a batch of text for a model with these sides.

    Args:
      encoder, decoder: whether the model has this side.
      extras: names of further arrays of whole numbers, one number per column.
    """
    sides = [side for side, there in zip(SIDES, (encoder, decoder), strict=True) if there]
    names = [f"{side}_{kind}" for side in sides for kind in OF_A_SIDE]
    return dict.fromkeys(names, TOKENS) | {"targets": TOKENS, "weights": WEIGHTS} | dict.fromkeys(extras, TOKENS)
