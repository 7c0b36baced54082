"""How the preparation of a corpus is shown: a bar with the time that is left, or plain lines.

On a terminal one line updates in place (rich); into a pipe or a file go plain lines at intervals that grow from one
second to one minute. Only formats what it is given: must not know how a corpus is prepared.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from t5x_like.core.text import duration, short
from t5x_like.report.live import LiveLine

if TYPE_CHECKING:
    from t5x_like.input_pipeline.prepare.progress import Progress


class Preparing(contextlib.AbstractContextManager):
    """Shows the progress that ``prepare`` calls it with, of one corpus after the other. A context: closed at its end.

    Args:
      out: stream to write to; standard output by default.
      silent: whether to show nothing, in every process of a job but one.
      now: function to seconds of a monotonic clock; given by tests.
      live: whether ``out`` is a terminal; detected by default.

    Attributes:
      last: progress of the last call; None at first.
    """

    def __init__(
        self, out: TextIO | None = None, *, silent: bool = False, now: Callable[[], float] = time.perf_counter,
        live: bool | None = None,
    ):  # fmt: skip
        self._line = LiveLine(out, now, live, bar=20, silent=silent)
        self._name = self._doing = ""
        self.last: Progress | None = None

    def __exit__(self, *_: object) -> None:
        self._line.close()  # leaving it as last shown

    def __call__(self, progress: Progress) -> None:
        self.last = progress
        if progress.name != self._name:
            self._line.close()
            self._line.restart()
            self._name, self._doing = progress.name, ""
            if progress.note:
                self._line.print(f"preparing {progress.name}: {progress.note}")
        if progress.doing == self._doing and not self._line.is_due():
            return
        if self._doing == "waiting" != progress.doing:  # another process's work does not count in our speed
            self._line.restart()
        self._doing = progress.doing
        self._line.show(self._parts(progress), progress.done, progress.total)

    def _parts(self, progress: Progress) -> list[tuple[int, str]]:
        """(importance, text) in the order shown; a narrow terminal leaves the least important (highest) out."""
        parts = [(0, f"preparing {progress.name}:")]
        if progress.doing == "waiting":
            return [(0, f"preparing {progress.name}: waiting for another process that does it")]
        if progress.total:
            parts.append((1, f"{math.floor(100 * progress.done / progress.total):>3}%"))
        parts += [(5, f"{progress.documents:,} documents"), (3, f"{short(progress.tokens)} tokens")]
        seconds, done = self._line.seconds, progress.done - progress.resumed
        if progress.doing == "merging":
            parts.append((2, "merging"))
        elif done > 0 and seconds > 0 and progress.total:
            left = seconds * (progress.total - progress.done) / done
            parts += [(4, f"{done / seconds / 1e6:.1f} MB/s"), (2, f"{duration(left)} left")]
        if progress.resumed and progress.total:
            parts.append((6, f"(resuming from {progress.resumed / progress.total:.0%})"))
        return parts
