"""Reading metrics.jsonl, one row of values a line."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from t5x_like.core.errors import UserError

METRICS = "metrics.jsonl"
CHANGED = "changed"  # in a row of its own: the config from this step on, {field: [before, now]}


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


def curves(rows: Sequence[dict[str, Any]]) -> dict[str, dict[int, float]]:
    """Metric to step to value of all that is finite."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        for name, value in row.items():
            if name not in ("step", "time") and isinstance(value, int | float) and math.isfinite(value):
                found.setdefault(name, {})[row["step"]] = float(value)
    return found
