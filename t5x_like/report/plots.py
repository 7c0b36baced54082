"""Curves of one run, or of several laid over one another, drawn from metrics.jsonl. Knows
metrics only.

Names say what a value is: ``train/loss``; any other ``.../loss`` is held out; a last part of ``learning_rate`` or
``tokens_per_second`` is that. Statistics of any other name, such as ``accuracy``, get a panel each.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t5x_like.core.errors import UserError, refuse
from t5x_like.report.metrics import changes, curves, gaps, read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PICTURE = "curves.png"
COLOURS = ("#2a6fbb", "#d1495b", "#2e8b57", "#8e5ea2", "#e08e45", "#4c9f9f")
HELD_OUT = "#d1495b"  # of a single run, whose training loss has the first colour
INK = "#333333"
# Last parts of names that have no panel of their own.
DRAWN = ("loss", "learning_rate", "tokens_per_second")
LEFT_OUT = ("nll", "z_loss", "perplexity", "targets", "gradient_norm", "utilization", "peak_bytes")
PANELS = 3  # at most, of further statistics
SMOOTHED_OVER = 0.03  # of the points: how far one smoothed value reaches
Points = tuple[list[int], list[float]]


def plot_curves(run_dir: str | Path) -> Path | None:
    """Draws training and held-out loss, learning rate and tokens per second of a run to curves.png in its folder.

    Returns:
      The picture, or None if no row has anything to draw.

    Raises:
      UserError: the folder has no metrics.jsonl.
    """
    run_dir = Path(run_dir)
    rows = read_metrics(run_dir)
    if not _points(rows, "loss"):
        return None
    return _draw({run_dir.resolve().name: rows}, run_dir / PICTURE)


def plot_runs(run_dirs: Sequence[str | Path], picture: str | Path) -> Path:
    """Draws several runs into one picture, one colour each.

    Raises:
      UserError: a folder has no metrics.jsonl, or no row of any has anything to draw.
    """
    runs: dict[str, list[dict[str, Any]]] = {}
    for run_dir in map(Path, run_dirs):
        name = run_dir.resolve().name
        runs[name if name not in runs else str(run_dir)] = read_metrics(run_dir)
    if not any(_points(rows, "loss") for rows in runs.values()):
        raise UserError("plot", "none of these runs has logged a loss yet", "", "wait for their first steps")
    return _draw(runs, Path(picture))


def smooth(values: Sequence[float], reach: float) -> list[float]:
    """A running mean that forgets over ``reach`` values, unbiased at its beginning; NaN where a value is missing."""
    keep = 1 - 1 / max(1.0, reach)
    total, weight, smoothed = 0.0, 0.0, []
    for value in values:
        if math.isfinite(value):
            total, weight = keep * total + value, keep * weight + 1
        smoothed.append(total / weight if math.isfinite(value) else math.nan)
    return smoothed


def _points(rows: list[dict[str, Any]], last: str) -> dict[str, Points]:
    """Name to (steps, values) of every metric whose last part is ``last``."""
    found = {name: curve for name, curve in curves(rows).items() if name.rsplit("/", 1)[-1] == last}
    for name in found:
        if name.startswith("train/"):
            found[name] |= {first: math.nan for first, _ in gaps(rows)}  # a line is broken there
            found[name] = dict(sorted(found[name].items()))
    return {name: ([*curve], [*curve.values()]) for name, curve in found.items()}


def new_figure(title: str, height: float) -> Figure:
    """An empty picture 10 inches wide under a title."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # draws without a display or global state
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, height), dpi=120, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, color=INK, fontsize=13, x=0.02, ha="left", fontweight="bold")
    return figure


def save_figure(figure: Figure, picture: Path) -> Path:
    """Writes ``figure`` to the file ``picture``, whole or not at all, in the format of its suffix (PNG if it has none).

    Raises:
      UserError: a suffix of no format that can be drawn; a file that cannot be written.
    """
    kinds, suffix = figure.canvas.get_supported_filetypes(), picture.suffix[1:].lower() or "png"
    refuse(suffix not in kinds, str(picture), f"no picture can be drawn as .{suffix}", ", ".join(sorted(kinds)),
           str(picture.with_suffix(".png")))
    temporary = picture.with_name(f".{picture.name}")
    try:
        picture.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(temporary, format=suffix)
        temporary.replace(picture)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UserError(str(picture), f"cannot be written: {error.strerror}", "a file that can be written") from None
    return picture


def _draw(runs: dict[str, list[dict[str, Any]]], picture: Path) -> Path:
    single = len(runs) == 1
    further = _further(runs)
    figure = new_figure(next(iter(runs)) if single else "  ·  ".join(runs), 8.2 if further else 6.4)
    grid = figure.add_gridspec(3 if further else 2, 6, height_ratios=(2.2, 1, 1)[: 3 if further else 2])
    loss, width = figure.add_subplot(grid[0, :]), 6 // max(1, len(further))
    panels = {"learning_rate": grid[1, :3], "tokens_per_second": grid[1, 3:]}
    panels |= {last: grid[2, i * width : (i + 1) * width] for i, last in enumerate(further)}
    axes_of = {last: figure.add_subplot(place) for last, place in panels.items()}
    for index, (run, rows) in enumerate(runs.items()):
        colour = COLOURS[index % len(COLOURS)]
        held_out_colour = HELD_OUT if single else colour
        _draw_loss(loss, "" if single else f"{run}  ", rows, colour, held_out_colour)
        _draw_changes(loss, list(axes_of.values()), rows, INK if single else colour)
        for last, axes in axes_of.items():
            for name, (steps, values) in _points(rows, last).items():
                if name.startswith("train/"):
                    drawn = values if last in DRAWN else smooth(values, SMOOTHED_OVER * len(values))
                    axes.plot(steps, drawn, color=colour, linewidth=1.6)
                else:
                    axes.plot(steps, values, color=held_out_colour, marker="o", linestyle="--")
    for last, axes in axes_of.items():
        frame(axes, last.replace("_", " "), "step")
        if last in DRAWN:
            axes.set_ylim(0, axes.get_ylim()[1] * 1.1)
            axes.yaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if value >= 1000 else f"{value:g}")
    frame(loss, "loss")
    loss.margins(x=0.05)  # room for the last held-out value
    if loss.get_legend_handles_labels()[0]:
        loss.legend(frameon=False, labelcolor=INK)
    return save_figure(figure, picture)


def _further(runs: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Last parts of the names of statistics that are drawn beside those that every run has, at most ``PANELS``."""
    names = {name for rows in runs.values() for row in rows for name in row if "/" in name and name[:5] != "data/"}
    return sorted({name.rsplit("/", 1)[1] for name in names} - {*DRAWN, *LEFT_OUT})[:PANELS]


def _draw_loss(axes: Axes, prefix: str, rows: list[dict[str, Any]], colour: str, held_out_colour: str) -> None:
    shown: list[float] = []
    for name, (steps, values) in sorted(_points(rows, "loss").items(), key=lambda item: item[0] != "train/loss"):
        if name == "train/loss":
            smoothed = smooth(values, SMOOTHED_OVER * len(values))
            axes.plot(steps, values, color=colour, alpha=0.3, linewidth=1)
            axes.plot(steps, smoothed, color=colour, linewidth=2, label=f"{prefix}training")
            shown += [value for value in smoothed if math.isfinite(value)]
        else:
            label = prefix + name.rsplit("/", 1)[0].replace("_", "-")
            axes.plot(steps, values, color=held_out_colour, marker="o", markersize=5, linewidth=1.2, linestyle="--",
                      markeredgecolor="white", label=label, zorder=3)
            axes.annotate(f"{values[-1]:.3f}", (steps[-1], values[-1]), xytext=(7, 0), textcoords="offset points",
                          va="center", color=held_out_colour, fontsize=9, fontweight="bold")
            shown += values
    if shown:
        # Limits from what matters, so that a spike of the raw loss does not flatten the rest; more runs widen them.
        margin = 0.06 * (max(shown) - min(shown) or 1)
        low, high = min(shown) - margin, max(shown) + margin
        if prefix and axes.get_autoscaley_on() is False:
            low, high = min(low, axes.get_ylim()[0]), max(high, axes.get_ylim()[1])
        axes.set_ylim(low, high)


def _draw_changes(loss: Axes, others: list[Axes], rows: list[dict[str, Any]], colour: str) -> None:
    """A line where the config changed, with the names of the fields beside that in ``loss``; lost rows in grey."""
    for first, last in gaps(rows):
        for axes in (loss, *others):
            axes.axvspan(first, last, color="#eeeeee", zorder=0)
        loss.annotate("rows lost", ((first + last) / 2, 0), xycoords=("data", "axes fraction"), xytext=(0, 4),
                      fontsize=8, textcoords="offset points", ha="center", color=INK)  # fmt: skip
    for step, fields in changes(rows).items():
        for axes in (loss, *others):
            axes.axvline(step, color=colour, linewidth=1, linestyle=":")
        names = ", ".join(fields[:2]) + (f" and {len(fields) - 2} more" if len(fields) > 2 else "")
        loss.annotate(names, (step, 1), xycoords=("data", "axes fraction"), xytext=(-3, -4), fontsize=8,
                      textcoords="offset points", rotation=90, ha="right", va="top", color=colour)  # fmt: skip


def frame(axes: Axes, title: str, x: str = "", y: str = "") -> None:
    """Title, names of the axes, grid and colours that all pictures share."""
    axes.set_title(title, loc="left", color=INK, fontsize=10)
    axes.set_xlabel(x, color=INK, fontsize=9)
    axes.set_ylabel(y, color=INK, fontsize=9)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=8.5)
    axes.margins(x=0.01)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#bbbbbb")
