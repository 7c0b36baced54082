"""Two runs' metrics side by side, at the last step that both have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from t5x_like.core.text import table
from t5x_like.report.metrics import curves, read_metrics


def common_values(
    one: Mapping[str, Mapping[int, float]], other: Mapping[str, Mapping[int, float]]
) -> Iterator[tuple[str, int, float, float]]:
    """(metric, step, value in one, value in the other) at the last step that both have."""
    for name, values in one.items():
        if common := values.keys() & other.get(name, {}).keys():
            yield name, max(common), values[max(common)], other[name][max(common)]


def compare_metrics(one: Path, other: Path, names: Sequence[str]) -> str:
    """A table of every metric that both runs, of these names, have: value in one, in the other, the other less the
    one."""
    left, right = curves(read_metrics(one)), curves(read_metrics(other))
    rows = [("metric", "step", *names, "difference")]
    rows += [(name, f"{step:,}", f"{a:.6g}", f"{b:.6g}", f"{b - a:+.3g}")
             for name, step, a, b in common_values(left, right)]  # fmt: skip
    return "\n".join(table(rows, left=2))
