"""The arrays of a batch, declared once: names, logical axes, dtypes. Read by what makes batches, feeds devices and
computes. Knows nothing of any of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class BatchArray:
    """One array of a batch.

    Attributes:
      axes: a logical axis for each dimension; ``batch`` is the rows, ``length`` the places of a row.
      dtype: by name.
      sizes: of dimensions that are neither, by logical axis.
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
      encoder, decoder: whether the model has them.
      extras: further arrays of whole numbers, one for each place.
    """
    sides = [side for side, there in zip(SIDES, (encoder, decoder), strict=True) if there]
    names = [f"{side}_{kind}" for side in sides for kind in OF_A_SIDE]
    return dict.fromkeys(names, TOKENS) | {"targets": TOKENS, "weights": WEIGHTS} | dict.fromkeys(extras, TOKENS)
