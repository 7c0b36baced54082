"""Metrics as pairs (sum, weight): the only form in which batches, steps and hosts of unequal size merge by adding.

A mean is formed once, at the end. Must not know what is measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import SupportsFloat

Pair = tuple[SupportsFloat, SupportsFloat]  # a sum of weight x value, and the sum of the weights


class Sums:
    """Totals of metrics by name; starts empty.

    Args:
      totals: name to (sum, weight), such as another ``Sums``' ``totals``.
    """

    def __init__(self, totals: Mapping[str, Pair] | None = None):
        self.totals: dict[str, tuple[float, float]] = {}
        self.add(totals or {})

    def add(self, metrics: Mapping[str, Pair]) -> None:
        """Adds (sum, weight) pairs, as Python floats (64 bits, so that long sums keep their digits).

        The values may be jax.Arrays; reading one waits for the device, so give those of a step long since dispatched.
        """
        for name, (total, weight) in metrics.items():
            old_total, old_weight = self.totals.get(name, (0.0, 0.0))
            self.totals[name] = (old_total + float(total), old_weight + float(weight))

    def __add__(self, other: Sums) -> Sums:
        merged = Sums(self.totals)
        merged.add(other.totals)
        return merged

    def means(self) -> dict[str, float]:
        """Sum / weight of each name; NaN where nothing was weighed."""
        return {name: total / weight if weight else math.nan for name, (total, weight) in self.totals.items()}

    def __bool__(self) -> bool:
        return bool(self.totals)
