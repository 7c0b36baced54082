"""Two runs' metrics side by side, at the last step that both have."""

from __future__ import annotations

from pathlib import Path

from t5x_like.core.text import table
from t5x_like.report.metrics import read_metrics


def compare_metrics(one: Path, other: Path) -> str:
    """A table of every metric that both runs have: value in one, in the other, the other less the one."""
    left, right = _by_name(one), _by_name(other)
    rows = [("metric", "step", str(one), str(other), "difference")]
    for name in left:
        if common := sorted(left[name].keys() & right.get(name, {}).keys()):
            a, b = left[name][common[-1]], right[name][common[-1]]
            rows.append((name, f"{common[-1]:,}", f"{a:.6g}", f"{b:.6g}", f"{b - a:+.3g}"))
    return "\n".join(table(rows, left=2))


def _by_name(run: Path) -> dict[str, dict[int, float]]:
    """Metric to step to value."""
    found: dict[str, dict[int, float]] = {}
    for row in read_metrics(run):
        for name, value in row.items():
            if name not in ("step", "time") and isinstance(value, int | float):
                found.setdefault(name, {})[row["step"]] = float(value)
    return found
