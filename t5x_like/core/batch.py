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

TOKENS, WEIGHTS = BatchArray(), BatchArray(dtype="float32")
