"""Exact means over a held-out split: sums and weights are added over all batches and divided once at the end."""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from t5x_like.core.ranges import NonNegativeInt
from t5x_like.evaluate.task import Evaluation, Values

if TYPE_CHECKING:
    import jax

    from t5x_like.models.transformer import Batch
    from t5x_like.train.opened import OpenedRun

AHEAD = 8  # batches that the device is given ahead; no more, so that a stop need not wait for them


@dataclass(frozen=True, kw_only=True)
class HeldOut(Evaluation):
    """Held-out loss, perplexity, accuracy, and all other values that the run's loss names.

    Over the whole split they are called ``held_out/...``; over its first 40 batches ``held_out_first_40/...``.

    Attributes:
      batches: largest number of batches; 0 is the whole split, none is ``train.evaluate_batches``.
    """

    name: str = "held_out"
    batches: NonNegativeInt | None = None

    needs_held_out: ClassVar[bool] = True

    def label(self, opened: OpenedRun) -> str:
        limit = self._limit(opened)
        return f"{self.name}_first_{limit}" if 0 < limit < opened.held_out_batches else self.name

    def run(self, opened: OpenedRun) -> Values | None:
        """As ``means``."""
        return means(opened.sums, opened.held_out(self._limit(opened)), opened.stop)

    def _limit(self, opened: OpenedRun) -> int:
        return opened.run.train.evaluate_batches if self.batches is None else self.batches


def means(
    sums: Callable[[Batch], Mapping[str, jax.Array]], batches: Iterable[Batch], stop: Callable[[], bool] = lambda: False
) -> Values | None:
    """Means over all targets of all batches; None if ``stop`` said so before the end.

    Args:
      sums: function from a batch to {name: [2], (sum, weight)}; see ``train.setup.Setup.measure``.
      batches: batches on the devices. What one gives is read many batches later, so the device never waits.
      stop: function that says whether to stop, called before each batch.

    Returns:
      loss (nats per target), perplexity, targets (the sum of their weights), and each other sum over its own weight;
      empty if not one target has a weight.
    """
    import jax

    from t5x_like.arrays.sums import Totals

    totals, ahead = Totals(), collections.deque()
    for batch in batches:
        if stop():
            return None
        ahead.append(sums(batch))
        totals.add(ahead[-1])
        if len(ahead) > AHEAD:
            jax.block_until_ready(ahead.popleft())
    total = totals.result()
    if not total or not total["loss"][1]:
        return {}
    values = {name: float(value / weight) if weight else 0.0 for name, (value, weight) in total.items()}
    loss, targets = values.pop("loss"), float(total["loss"][1])
    return {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), **values, "targets": targets}
