"""How batches are shown: rows of text on the console, and a picture of document lengths and of how full rows are.

On a terminal text is coloured (rich); into a pipe or a file, or where $NO_COLOR is set, it is plain, and brackets mark
what colours would. Only formats what it is given: must not know where batches come from.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TextIO

import numpy as np

from t5x_like.core.text import short, table
from t5x_like.report.plots import COLOURS, INK, frame, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.console import Console as RichConsole

Colour = Literal["auto", "always", "never"]
# (segment from 1, name, (text, role, whether it is a special id) of each stretch)
Field = tuple[int, str, Sequence[tuple[str, str, bool]]]

_STYLES = {"text": "", "loss": "bold green", "faint": "dim", "prefix": "cyan", "special": "magenta"}
_SPECIAL = {"text": "magenta", "loss": "bold magenta", "faint": "dim magenta", "prefix": "magenta"}
_MEANINGS = {"special": "special id", "prefix": "seen in both directions", "loss": "with loss", "faint": "without loss"}
_SEGMENTS = ("blue", "yellow", "cyan", "green", "red")
_OPEN, _CLOSE = "\u27e6", "\u27e7"  # around what has loss, where colours do not tell
_LABELS = 25  # columns before a field's text: a bar, the segment, the name


class Lengths(NamedTuple):
    """Document lengths of one corpus.

    Attributes:
      name: name of the corpus.
      documents: number of documents.
      tokens: (documents or fewer,) tokens of each document, or of a sample of them.
    """

    name: str
    documents: int
    tokens: np.ndarray


class BatchConsole:
    """Prints batches.

    Args:
      colour: ``auto``: on a terminal, unless $NO_COLOR is set or $TERM is ``dumb``.
      out: stream to write to; standard output by default.
    """

    def __init__(self, colour: Colour = "auto", out: TextIO | None = None):
        self._out = out or sys.stdout
        terminal = self._out.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")
        self._seen: set[str] = set()
        self._rich: RichConsole | None = None
        if colour == "always" or (colour == "auto" and terminal):
            from rich.console import Console as RichConsole  # 50 ms: only for those who see it

            colours = "standard" if colour == "always" else "auto"  # a pipe to a pager has no terminal to ask
            kind: Any = {"force_terminal": True, "color_system": colours, "no_color": False, "highlight": False}
            self._rich = RichConsole(file=self._out, **kind)

    def title(self, text: str) -> None:
        self._print(text, "bold")

    def line(self, text: str = "") -> None:
        self._print(text, "")

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        """A line of column names and lines of cells; the first column to the left, the others to the right."""
        for number, line in enumerate(table(rows)):
            self._print(line, "" if number else "dim")

    def legend(self) -> None:
        """Says what the marks of the rows so far mean."""
        if self._rich is None:
            if "loss" in self._seen:
                self.line(f"\n{_OPEN}with loss{_CLOSE} where not all of a line has it")
            return
        from rich.text import Text

        shown = [Text(text, _STYLES[mark]) for mark, text in _MEANINGS.items() if mark in self._seen]
        self._rich.print(Text("\n  ") + Text("  ").join(shown) if shown else "")

    def row(self, heading: str, detail: str, fields: Sequence[Field]) -> None:
        """One row: a heading, how full it is, and its fields, wrapped to the terminal or one line each."""
        self.line()
        self.title(heading)
        self._print(f"  {detail}", "dim")
        before = 0
        for segment, name, stretches in fields:
            label = f"{f'segment {segment}' if segment != before else '':<11} {name:<8} "
            if self._rich is None:
                self._print(f"  {label}{_bracketed(stretches)}", "")
            else:
                self._wrapped(self._rich, label, _SEGMENTS[(segment - 1) % len(_SEGMENTS)], stretches)
            before = segment
            self._seen |= {role for _, role, _ in stretches} | {"special" for *_, special in stretches if special}

    def _wrapped(self, rich: RichConsole, label: str, colour: str, stretches: Sequence[tuple[str, str, bool]]) -> None:
        from rich.text import Text

        text = Text()
        for content, role, special in stretches:
            text.append(content, (_SPECIAL if special else _STYLES)[role])
        room = max(20, rich.width - _LABELS)
        for number, line in enumerate(text.wrap(rich, room, overflow="fold") or [Text()]):
            line.rstrip()
            start = Text.assemble("  ", ("\u258c", colour), " ", (label if not number else " " * len(label), colour))
            rich.print(start + line, soft_wrap=True)

    def _print(self, text: str, style: str) -> None:
        if self._rich is None:
            print(text, file=self._out)
        else:
            self._rich.print(text, style=style or None, markup=False, emoji=False, soft_wrap=True)


def _bracketed(stretches: Sequence[tuple[str, str, bool]]) -> str:
    text = ""
    for with_loss, run in itertools.groupby(stretches, key=lambda stretch: stretch[1] == "loss"):
        content = "".join(content for content, *_ in run)
        text += f"{_OPEN}{content}{_CLOSE}" if with_loss else content
    return text


def plot_lengths(
    title: str, lengths: Sequence[Lengths], row_tokens: Sequence[int], fills: Mapping[str, np.ndarray], picture: Path
) -> Path:
    """Draws two histograms: of document lengths, one for each corpus, and of how full rows are.

    Args:
      title: title of the picture.
      lengths: document lengths of each corpus.
      row_tokens: tokens of text per row; several where rows differ.
      fills: side of the model to the (rows,) shares of its columns that are not padding.
      picture: PNG file to write.
    """
    figure = new_figure(title, 4.4)
    grid = figure.add_gridspec(len(fills), 2, width_ratios=(1.7, 1))
    _draw_lengths(figure.add_subplot(grid[:, 0]), lengths, sorted(set(row_tokens)))
    for number, (side, shares) in enumerate(fills.items()):
        _draw_fill(figure.add_subplot(grid[number, 1]), side, shares, last=number == len(fills) - 1)
    return save_figure(figure, picture)


def _draw_lengths(axes: Axes, lengths: Sequence[Lengths], row_tokens: list[int]) -> None:
    drawn = [np.maximum(each.tokens, 1) for each in lengths]
    low, high = min(int(tokens.min()) for tokens in drawn), max(int(tokens.max()) for tokens in drawn)
    wide = max(high, *row_tokens) > 20 * min(low, *row_tokens)
    count = int(np.clip(4 * min(map(len, drawn)) ** (1 / 3), 12, 60))
    bins = np.geomspace(low, high + 1, count + 1) if wide else np.linspace(low, high + 1, count + 1)
    bins = np.unique(np.round(bins))  # lengths are whole: no bin lies between two of them
    for number, (corpus, tokens) in enumerate(zip(lengths, drawn, strict=True)):
        share = np.histogram(tokens, bins)[0] / len(tokens)
        label = f"{corpus.name}: {corpus.documents:,} documents, median {short(float(np.median(tokens)))} tokens"
        _draw_steps(axes, bins, share, COLOURS[number % len(COLOURS)], label)
    if wide:
        axes.set_xscale("log")
    frame(axes, "document lengths", "tokens in a document", "share of the documents")
    axes.yaxis.set_major_formatter(_percent)
    axes.xaxis.set_major_formatter(lambda value, _: short(value))
    low, high = axes.get_xlim()
    left, right = min(low, row_tokens[0] / 1.3), max(high, row_tokens[-1] * 1.3)
    axes.set_xlim(left, right)
    highest = axes.get_ylim()[1]
    axes.set_ylim(0, highest * (1.04 + 0.07 * len(lengths)))  # room for the legend
    for number, tokens in enumerate(row_tokens[:: max(1, len(row_tokens) - 1)]):
        axes.plot((tokens, tokens), (0, highest), color=INK, linewidth=1.2, linestyle="--")
        text = f"a row takes {tokens:,}" if not number else f"or up to {tokens:,}"
        axes.annotate(text, (tokens, highest), xytext=(3, 0), textcoords="offset points", color=INK, fontsize=8.5,
                      rotation=90, ha="left", va="top")  # fmt: skip
    axes.legend(frameon=False, labelcolor=INK, fontsize=8.5, loc="upper left")


def _draw_fill(axes: Axes, side: str, shares: np.ndarray, last: bool) -> None:
    bins = np.linspace(0, 1, 41)
    _draw_steps(axes, bins, np.histogram(shares, bins)[0] / len(shares), COLOURS[2], "")
    title = f"{side}: {len(shares):,} rows, {float(np.mean(shares)):.1%} full"
    frame(axes, title, "share of a row's slots" if last else "", "share of the rows")
    axes.xaxis.set_major_formatter(_percent)
    axes.yaxis.set_major_formatter(_percent)
    axes.set_ylim(0, min(1.04, axes.get_ylim()[1]))


def _draw_steps(axes: Axes, bins: np.ndarray, share: np.ndarray, colour: str, label: str) -> None:
    axes.stairs(share, bins, color=colour, alpha=0.25, fill=True)
    axes.stairs(share, bins, color=colour, linewidth=1.4, label=label)


def _percent(share: float, _: float) -> str:
    return f"{100 * share:.3g}%"
