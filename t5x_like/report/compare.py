"""Two runs' metrics side by side, at the last step that both have."""

from __future__ import annotations

from pathlib import Path

from t5x_like.core.text import table
from t5x_like.report.metrics import curves, read_metrics


def compare_metrics(one: Path, other: Path) -> str:
    """A table of every metric that both runs have: value in one, in the other, the other less the one."""
    left, right = curves(read_metrics(one)), curves(read_metrics(other))
    rows = [("metric", "step", str(one), str(other), "difference")]
    for name in left:
        if common := sorted(left[name].keys() & right.get(name, {}).keys()):
            a, b = left[name][common[-1]], right[name][common[-1]]
            rows.append((name, f"{common[-1]:,}", f"{a:.6g}", f"{b:.6g}", f"{b - a:+.3g}"))
    return "\n".join(table(rows, left=2))
