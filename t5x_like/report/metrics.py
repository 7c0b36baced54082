"""Reading metrics.jsonl, one row of values a line."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from t5x_like.core.errors import UserError

METRICS = "metrics.jsonl"
CHANGED = "changed"  # in a row of its own: the config from this step on, {field: [before, now]}
LOST = "lost"  # in a row of its own: [first, last] step of rows that were written and are not there


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, in order; a line cut off by a kill is left out, and a number not finite is None.

    Args:
      path: the file, or the run's folder.

    Raises:
      UserError: there is no such file.
    """
    path = Path(path)
    path = path / METRICS if path.is_dir() else path
    if not path.is_file():
        raise UserError(str(path), "there is no such file", "the folder of a run that has begun")
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line, parse_float=_finite, parse_constant=_finite)
        except (ValueError, RecursionError):  # cut off, or with a number of 5,000 digits
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def _finite(text: str) -> float | None:
    """A number of JSON; None for NaN and infinity, which other programs write."""
    return number if math.isfinite(number := float(text)) else None


def changes(rows: Sequence[dict[str, Any]]) -> dict[int, list[str]]:
    """Step to the fields of the config that have other values from there on."""
    return {row["step"]: list(row[CHANGED]) for row in rows if isinstance(row.get(CHANGED), dict)}


def gaps(rows: Sequence[dict[str, Any]]) -> list[tuple[int, int]]:
    """(first, last) step of each stretch of rows that are marked as lost."""
    pairs = (row.get(LOST) for row in rows)
    return [(pair[0], pair[1]) for pair in pairs if isinstance(pair, list) and [*map(type, pair)] == [int, int]]


def lost_rows(rows: Sequence[dict[str, Any]], starts: Sequence[Mapping[str, Any]], until: int) -> list[tuple[int, int]]:
    """(first, last) step of each stretch of rows that a run has written and that are neither there nor marked.

    A row is in its file before the checkpoint of its step is saved, so that none up to a checkpoint is missing unless
    the file was damaged.

    Args:
      rows: those of metrics.jsonl.
      starts: each start of the run, in order, as its ledger has them: ``step`` and ``config``.
      until: number of updates made.
    """
    wanted: dict[int, None] = {}
    starts = [start for start in starts if isinstance(start["step"], int)]
    ends = [*(start["step"] for start in starts[1:]), until]
    for start, end in zip(starts, ends, strict=False):
        try:
            first, every = int(start["step"]), int(start["config"]["report"]["every"])
            total, end = int(start["config"]["train"]["steps"]), int(end)
            written = [*range(first - first % every + every, end + 1, every)]
        except (KeyError, TypeError, ValueError):  # of a line that is not whole
            continue
        wanted = {step: None for step in wanted if step <= first} | dict.fromkeys(written)
        if first < total <= end:
            wanted[total] = None
    there = {row["step"] for row in rows if "train/loss" in row}
    for first, last in gaps(rows):
        there |= set(range(first, last + 1))
    found: list[tuple[int, int]] = []
    follows = False
    for step in sorted(wanted):
        if step <= until and step not in there:
            found = [*found[:-1], (found[-1][0], step)] if follows else [*found, (step, step)]
        follows = step not in there
    return found


def curves(rows: Sequence[dict[str, Any]]) -> dict[str, dict[int, float]]:
    """Metric to step to value of all that is finite."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        for name, value in row.items():
            if name not in ("step", "time") and isinstance(value, int | float) and math.isfinite(value):
                found.setdefault(name, {})[row["step"]] = float(value)
    return found
