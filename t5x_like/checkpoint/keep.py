"""Which checkpoints stay: rules by number, step, age and measured value. Must not know files. Loads without jax."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from t5x_like.checkpoint.config import CheckpointConfig

FALLBACK = "train/loss"  # what checkpoints are ranked by where none has the metric that the config names


@dataclasses.dataclass(frozen=True)
class Saved:
    """A checkpoint on disk: its step, when it was written (seconds since 1970), and values measured at its step."""

    step: int
    time: float = 0.0
    values: Mapping[str, float] = dataclasses.field(default_factory=dict)


def reasons(saved: Sequence[Saved], config: CheckpointConfig, now: float) -> dict[int, list[str]]:
    """Step to the rules that keep it, in words, ascending; a checkpoint without one may be deleted. The newest always
    has one."""
    found: dict[int, list[str]] = {one.step: [] for one in sorted(saved, key=lambda one: one.step)}
    steps = list(found)
    for step in steps[-config.keep_last :]:  # 0: all
        found[step].append(f"last {config.keep_last}" if config.keep_last else "all are kept")
    for step in steps if config.keep_every else ():
        if step % config.keep_every == 0:
            found[step].append(f"every {config.keep_every}")
    for one in saved:
        if now - one.time < 3600 * config.keep_hours:
            found[one.step].append(f"younger than {config.keep_hours:g} h")
    for step in best(saved, config):
        found[step].append("best")
    return found


def best(saved: Sequence[Saved], config: CheckpointConfig) -> list[int]:
    """Steps of the best checkpoints by the config's metric, the best first; of equal ones the earlier."""
    for metric, highest in ((config.keep_metric, config.keep_highest), (FALLBACK, False)):
        values = {one.step: one.values[metric] for one in saved if math.isfinite(one.values.get(metric, math.nan))}
        if values:
            sign = -1 if highest else 1
            return sorted(values, key=lambda step: (sign * values[step], step))[: config.keep_best]
    return []
