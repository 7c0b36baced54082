"""One line of progress: in place with a bar on a terminal (rich), elsewhere as plain lines at intervals that grow from
one second to one minute. Only shows what it is given."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TextIO

from t5x_like.core.text import duration

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.live import Live

FASTEST, SLOWEST, GROWTH = 1.0, 60.0, 0.1  # seconds between plain lines: 10% of the time so far, within these bounds
PLAIN_WAITS, LIVE_WAITS = (2.0, 8.0, 20.0, 60.0), (1.0,)  # seconds between lines about something that takes long
REFRESH = 0.1  # seconds between updates of the live line, at least

Parts = Sequence[tuple[int, str]]  # (importance, text) in the order shown; the least important has the highest number


class LiveLine:
    """Shows how far something is.

    Args:
      out: stream to write to; standard output by default.
      now: function to seconds of a monotonic clock; given by tests.
      live: whether ``out`` is a terminal; detected by default.
      bar: least columns of the bar, on a terminal of 80 columns or more; 0: the text has precedence.
      silent: whether to show nothing, in every process of a job but one.

    Attributes:
      rich: the terminal; None elsewhere.
    """

    def __init__(
        self, out: TextIO | None = None, now: Callable[[], float] = time.perf_counter, live: bool | None = None,
        bar: int = 0, silent: bool = False,
    ):  # fmt: skip
        self._out, self._now, self._bar, self._silent = out or sys.stdout, now, bar, silent
        self.rich: RichConsole | None = None
        if not silent and (self._out.isatty() and os.environ.get("TERM") != "dumb" if live is None else live):
            from rich.console import Console as RichConsole  # 50 ms: only for those who see it

            self.rich = RichConsole(file=self._out, force_terminal=True, highlight=False)
        self._live: Live | None = None
        self.restart()

    def print(self, text: str, style: str = "") -> None:
        """Shows text that stays, above the live line."""
        if self.rich is not None:
            from rich.text import Text

            # A styled object, not a style for the call, which would also paint the live line drawn after it.
            self.rich.print(Text(text, style))
        elif not self._silent:
            print(text, file=self._out, flush=True)

    @contextlib.contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """Shows, while inside, what is waited for and for how long: on a terminal at once and every second, elsewhere
        after 2, 10 and 30 seconds and then every minute. A thread does it, since the caller is busy."""
        if self._silent:
            yield
            return
        began, done = self._now(), threading.Event()

        def tick() -> None:
            waits = PLAIN_WAITS if self.rich is None else LIVE_WAITS
            for seconds in itertools.chain(waits, itertools.repeat(waits[-1])):
                if done.wait(seconds):
                    return
                self.show([(0, text), (1, duration(self._now() - began))], 0, 0)

        if self.rich is not None:
            self.show([(0, text)], 0, 0)
        thread = threading.Thread(target=tick, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def restart(self) -> None:
        """Counts time from now on, and shows what comes next at once."""
        self._began, self._next = self._now(), -math.inf

    @property
    def seconds(self) -> float:
        """Since the start."""
        return self._now() - self._began

    def is_due(self) -> bool:
        """Whether the last line is old enough for another."""
        return self._now() >= self._next

    def show(self, parts: Parts, done: float, total: float, styles: Mapping[int, str] | None = None) -> None:
        """Shows a line now.

        Args:
          parts: its texts with their importance; a narrow terminal leaves the least important out.
          done, total: amounts for the bar; a ``total`` of 0 is unknown.
          styles: importance to a style of rich.
        """
        if self.rich is None:
            self._next = self._now() + min(SLOWEST, max(FASTEST, GROWTH * self.seconds))
            self.print("  ".join(text for _, text in parts))
            return
        from rich.live import Live
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        self._next = self._now() + REFRESH
        room, kept = self.rich.width - 1, list(parts)
        least = min(self._bar, self._bar * room // 79)
        while len(kept) > 1 and sum(len(text) + 2 for _, text in kept) > room - least:
            kept.remove(max(kept))
        width = min(30, room - sum(len(text) + 2 for _, text in kept) - 2)
        bar = ProgressBar(total=total or None, completed=done, width=width, pulse=not total)
        cells = [Text(text, (styles or {}).get(importance, "")) for importance, text in kept]
        line = Table.grid(padding=(0, 2))
        for _ in range(len(cells) + (width >= 8)):
            line.add_column(no_wrap=True)
        line.add_row(*([bar] if width >= 8 else []), *cells)
        if self._live is None:
            # No thread of its own: it would take time from the work.
            self._live = Live(line, console=self.rich, auto_refresh=False)
            self._live.start()
        self._live.update(line, refresh=True)

    def close(self) -> None:
        """Ends the live line, leaving it as last shown."""
        if self._live is not None:
            self._live.stop()
            self._live = None
