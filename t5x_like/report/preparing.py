"""How the preparation of a corpus is shown: a bar with the time that is left, or plain lines.

On a terminal one line updates in place (rich); into a pipe or a file go plain lines at intervals that grow from one
second to one minute. Only formats what it is given: must not know how a corpus is prepared.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from t5x_like.report.console import duration, short

if TYPE_CHECKING:
    from rich.live import Live

    from t5x_like.input_pipeline.prepare.progress import Progress

FASTEST, SLOWEST, GROWTH = 1.0, 60.0, 0.1  # seconds between plain lines: 10% of the time so far, within these bounds
_BAR = 20  # columns


class Preparing:
    """Shows the progress that ``prepare`` calls it with, of one corpus after the other. A context: closed at its end.

    Args:
      out: where to write; standard output by default.
      silent: show nothing: for every process of a job but one.
      now: seconds from a clock that never goes back; given by tests.
      live: whether ``out`` is a terminal; found out by default.

    Attributes:
      last: what it was last called with; None at first.
    """

    def __init__(
        self, out: TextIO | None = None, *, silent: bool = False, now: Callable[[], float] = time.perf_counter,
        live: bool | None = None,
    ):  # fmt: skip
        self._out = out or sys.stdout
        self._silent, self._now = silent, now
        self._terminal = self._out.isatty() and os.environ.get("TERM") != "dumb" if live is None else live
        self.last: Progress | None = None
        self._live: Live | None = None
        self._name = self._doing = ""
        self._began = 0.0
        self._next = -math.inf  # when the next line may be shown

    def __enter__(self) -> Preparing:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, progress: Progress) -> None:
        self.last = progress
        if self._silent:
            return
        now = self._now()
        if progress.name != self._name:
            self.close()
            self._name, self._doing = progress.name, ""
            self._began, self._next = now, -math.inf
            if progress.note:
                print(f"preparing {progress.name}: {progress.note}", file=self._out, flush=True)
        if now < self._next and progress.doing == self._doing:
            return
        if self._doing == "waiting" != progress.doing:  # what the other process did is no measure of our speed
            self._began = now
        self._doing = progress.doing
        parts = self._parts(progress, now)
        if self._terminal:
            self._show(progress, parts)
        else:
            self._next = now + min(SLOWEST, max(FASTEST, GROWTH * (now - self._began)))
            print("  ".join(text for _, text in parts), file=self._out, flush=True)

    def close(self) -> None:
        """Ends the live line, leaving it as last shown."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _parts(self, progress: Progress, now: float) -> list[tuple[int, str]]:
        """(importance, text) in the order shown; a narrow terminal leaves the least important (highest) out."""
        parts = [(0, f"preparing {progress.name}:")]
        if progress.doing == "waiting":
            return [(0, f"preparing {progress.name}: waiting for another process that does it")]
        if progress.total:
            parts.append((1, f"{math.floor(100 * progress.done / progress.total):>3}%"))
        parts += [(5, f"{progress.documents:,} documents"), (3, f"{short(progress.tokens)} tokens")]
        seconds, done = now - self._began, progress.done - progress.resumed
        if progress.doing == "merging":
            parts.append((2, "merging"))
        elif done > 0 and seconds > 0 and progress.total:
            left = seconds * (progress.total - progress.done) / done
            parts += [(4, f"{done / seconds / 1e6:.1f} MB/s"), (2, f"{duration(left)} left")]
        if progress.resumed and progress.total:
            parts.append((6, f"(going on from {progress.resumed / progress.total:.0%})"))
        return parts

    def _show(self, progress: Progress, parts: list[tuple[int, str]]) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        if self._live is None:
            # No thread of its own: it would take time from what it shows.
            self._live = Live(console=Console(file=self._out, force_terminal=True), auto_refresh=False)
            self._live.start()
        room = self._live.console.width - _BAR - 2
        while len(parts) > 1 and sum(len(text) + 2 for _, text in parts) > room:
            parts.remove(max(parts))
        line = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=progress.total or None, completed=progress.done, width=_BAR, pulse=not progress.total)
        line.add_row(bar, *(Text(text, no_wrap=True) for _, text in parts))
        self._live.update(line, refresh=True)
