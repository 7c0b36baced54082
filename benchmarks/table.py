"""What every benchmark of this folder shares: figures with their goals, printed as a table and written as JSON.

Not a benchmark itself. A JSON file is a list of {"point", "figure", "goal", "met"}; goal and met are null for a figure
that nothing was promised about.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Point:
    """One figure.

    Attributes:
      point: what was measured, with the unit.
      figure: the number.
      goal: ``>= 1.6`` or ``<= 75``; None where there is none.
      met: whether the goal is reached; None where there is none.
    """

    point: str
    figure: float
    goal: str | None = None
    met: bool | None = None


def at_least(point: str, figure: float, goal: float) -> Point:
    return Point(point, figure, f">= {goal:g}", figure >= goal)


def at_most(point: str, figure: float, goal: float) -> Point:
    return Point(point, figure, f"<= {goal:g}", figure <= goal)


def show(heading: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints a table: the first column to the left, the others to the right; floats with three significant digits."""
    cells = [[text(cell) for cell in row] for row in [heading, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(heading))]
    for number, row in enumerate(cells):
        first, *others = row
        line = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        print("  ".join(line).rstrip(), flush=True)
        if number == 0:
            print("  ".join("-" * width for width in widths), flush=True)


def show_points(points: Sequence[Point]) -> None:
    """Prints every figure beside its goal."""
    marks = {True: "met", False: "MISSED", None: ""}
    show(("point", "figure", "goal", ""), [(p.point, p.figure, p.goal or "", marks[p.met]) for p in points])


def write_json(path: str | Path | None, points: Sequence[Point]) -> None:
    """Writes the points to ``path``; nothing where that is None."""
    if path is not None:
        rounded = [dataclasses.asdict(p) | {"figure": float(f"{p.figure:.6g}")} for p in points]
        Path(path).write_text(json.dumps(rounded, indent=1) + "\n")


def text(cell: object) -> str:
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 100 else f"{cell:.3g}"
    return f"{cell:,}" if isinstance(cell, int) else str(cell)
