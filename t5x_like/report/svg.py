"""Line charts as SVG inside a page: no script, no file beside it. Knows numbers only, not what they mean."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Callable, Sequence

from t5x_like.core.text import short

WIDTH, HEIGHT = 480, 270
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 34  # margins of the drawing
POINTS = 400  # of one line, at most: of more, the lowest and the highest of each stretch
Points = Sequence[tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
      name: what the legend calls it; empty: it has no entry.
      points: (x, y), by x; the line is broken where y is not finite.
      colour: of CSS.
      faint: whether it stands behind the others, and does not decide how high the chart reaches.
      dots: whether each point is marked, and the line dashed.
    """

    name: str
    points: Points
    colour: str
    faint: bool = False
    dots: bool = False


def chart(
    lines: Sequence[Line], x_name: str, label: str, span: tuple[float, float],
    marks: Sequence[tuple[float, str]] = (), gaps: Sequence[tuple[float, float]] = (), from_zero: bool = False,
) -> str:  # fmt: skip
    """A chart as an ``svg`` element; empty if no line has a point.

    Args:
      lines: its lines, the first at the back.
      x_name: name of the horizontal axis, with its unit.
      label: what the chart shows, for those who do not see it.
      span: least and greatest x that it shows at least.
      marks: (x, text) of vertical lines; the text shows under the pointer.
      gaps: (from, to) of grey stretches.
      from_zero: whether the vertical axis begins at 0.
    """
    lines = [line for line in lines if any(math.isfinite(y) for _, y in line.points)]
    if not lines:
        return ""
    deciding = [line for line in lines if not line.faint] or lines
    xs = [*span, *(x for line in lines for x, _ in line.points)]
    ys = [y for line in deciding for _, y in line.points if math.isfinite(y)]
    (left, right), (low, high) = _range(xs, 0.0), _range([*ys, 0.0] if from_zero else ys, 0.05)
    low = 0.0 if from_zero else low

    def across(x: float) -> float:
        return LEFT + (x - left) / (right - left) * (WIDTH - LEFT - RIGHT)

    def up(y: float) -> float:
        return HEIGHT - BOTTOM - (min(max(y, low), high) - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    bottom, middle = HEIGHT - BOTTOM, (LEFT + WIDTH - RIGHT) / 2
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(label)}">']
    for x, width in ((across(first), across(last) - across(first)) for first, last in gaps):
        parts.append(f'<rect class="gap" x="{x:.1f}" y="{TOP}" width="{width + 2:.1f}" height="{bottom - TOP}">'
                     "<title>rows lost</title></rect>")  # fmt: skip
    for y, text in ((up(tick), _number(tick)) for tick in _ticks(low, high, 5)):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
                     f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')  # fmt: skip
    for x, text in ((across(tick), _number(tick)) for tick in _ticks(left, right, 5)):
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{text}</text>')
    parts.append(f'<text x="{middle}" y="{HEIGHT - 3}" text-anchor="middle">{html.escape(x_name)}</text>')
    for x, text in ((across(x), html.escape(text)) for x, text in marks if left <= x <= right):
        parts.append(f'<g><title>{text}</title><line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>'
                     "</g>")  # fmt: skip
    parts += [_drawn(line, across, up) for line in lines]
    return "".join([*parts, "</svg>"])


def _drawn(line: Line, across: Callable[[float], float], up: Callable[[float], float]) -> str:
    stretches: list[list[tuple[float, float]]] = [[]]
    for x, y in thinned(line.points):
        if math.isfinite(y):
            stretches[-1].append((across(x), up(y)))
        else:
            stretches.append([])
    kind = "faint" if line.faint else "dashed" if line.dots else "line"
    joined = (" ".join(f"{x:.1f},{y:.1f}" for x, y in each) for each in stretches if len(each) > 1)
    drawn = "".join(f'<polyline class="{kind}" style="stroke:{line.colour}" points="{each}"/>' for each in joined)
    alone = [point for each in stretches if line.dots or len(each) == 1 for point in each]
    return drawn + "".join(f'<circle style="fill:{line.colour}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in alone)


def thinned(points: Points) -> list[tuple[float, float]]:
    """At most about ``POINTS`` points: the lowest and the highest of each stretch of equally many; gaps stay."""
    each = -(-2 * len(points) // POINTS)
    if each <= 2:
        return list(points)
    kept = []
    for first in range(0, len(points), each):
        stretch = points[first : first + each]
        finite = [point for point in stretch if math.isfinite(point[1])]
        chosen = {min(finite, key=lambda p: p[1]), max(finite, key=lambda p: p[1])} if finite else set()
        kept += sorted({*chosen, *(point for point in stretch if not math.isfinite(point[1]))})
    return kept


def _range(values: Sequence[float], margin: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    if high - low < 1e-3 * abs(high):  # less than the numbers beside the axis tell
        low = high = (low + high) / 2
    width = (high - low) or abs(high) or 1.0
    return (low - margin * width, high + margin * width) if high > low else (low - width / 2, high + width / 2)


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers from ``low`` to ``high``."""
    rough = (high - low) / about
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(scale * factor for factor in (1, 2, 2.5, 5, 10) if scale * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _number(value: float) -> str:
    if value and abs(value) < 1e-3:
        return f"{value:.1e}".replace("e-0", "e-")
    return short(value) if abs(value) >= 1000 else f"{value:.4g}" if abs(value) >= 0.01 else f"{value:.3g}"
