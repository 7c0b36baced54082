"""A thread that notices when this process no longer makes progress, says where it is, and ends it. Must not know JAX.

The main thread costs it nothing but a counter: progress is a poll of the loop, an evaluation's next batch, or another
activity on the run's clock. Its limit is learned from the run's own steps. In a job of several processes process 0
decides (``job.hub``), since all that wait for the stuck one look stuck as well.
"""

from __future__ import annotations

import faulthandler
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol

from t5x_like.job.config import JobConfig
from t5x_like.job.line import Line, leave

DEBUGGERS = ("pdb", "bdb", "ipdb", "debugpy", "pydevd")
LEARNED = ("step", "data")  # activities whose limit is that of steps


class Activity(Protocol):
    """What is asked of the run's clock."""

    changes: int

    @property
    def activity(self) -> str: ...

    def seconds_per_step(self) -> float | None: ...


class Watchdog:
    """Watches while it is open (a context manager).

    Args:
      config: the limits.
      clock: the run's clock.
      line: the line to the other processes; None: this is the only one.
      exits: whether to end this process; else it says once that it is stuck. Of several it always ends.
    """

    def __init__(self, config: JobConfig, clock: Activity, line: Line | None, exits: bool):
        self._config, self._clock, self._line, self._exits = config, clock, line, exits
        self._beats, self._polls, self._seconds, self._said = 0, 0, 0.0, False
        self._record: Callable[..., None] = lambda event, **values: None
        self._main = threading.get_ident()
        self._done = threading.Event()
        limits = [each for each in (config.step_limit, config.phase_limit) if each] or [4.0]
        self._tick = min(0.25, min(limits) / 4)
        self._thread = threading.Thread(target=self._watch, name="t5x_like watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        if self._line:
            self._line.status, self._line.stuck = self.status, self.show
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()
        if self._line:
            faulthandler.cancel_dump_traceback_later()
            self._line.status = lambda: (self._polls, "end", 0.0, False)

    def record(self, add: Callable[..., None]) -> None:
        """``add(event, **values)`` is called with faults from here on: ``report.ledger.Ledger.add``."""
        self._record = add
        if self._line:
            self._line.record = add

    def polled(self) -> None:
        """Progress of the loop or of an evaluation, of which all processes make the same number."""
        self._beats += 1
        self._polls += 1

    def follow(self, show: Callable[..., Any]) -> Callable[..., Any]:
        """``show``, whose every call is progress."""

        def both(*values: Any) -> Any:
            self._beats += 1
            return show(*values)

        return both

    def status(self) -> tuple[int, str, float, bool]:
        """(number of polls, activity, seconds without progress, whether these are too many)."""
        limit = self._limit()
        return self._polls, self._clock.activity, self._seconds, 0 < limit < self._seconds and not self._debugged()

    def _limit(self) -> float:
        if self._clock.activity not in LEARNED:
            return self._config.phase_limit
        steps = self._config.step_limit
        return max(steps, self._config.step_factor * (self._clock.seconds_per_step() or 0.0)) if steps else 0.0

    def _watch(self) -> None:
        last, armed = None, 0.0
        while not self._done.wait(self._tick):  # ticks are counted: a process that was itself stopped is not stuck
            now = (self._beats, self._clock.changes)
            self._seconds = self._seconds + self._tick if now == last else 0.0
            last = now
            if self._line is None and self.status()[3]:
                self._end()
            elif self._line and time.monotonic() - armed > 1.0:
                # Where C++ keeps Python from running, no thread of ours runs: then faulthandler's ends the process.
                armed = time.monotonic()
                faulthandler.dump_traceback_later(self._line.heartbeat, exit=True, file=sys.__stderr__ or sys.stderr)

    def _end(self) -> None:
        if self._said:
            return
        self._said = True
        what = f"stuck for {self._seconds:.0f} s: {self._clock.activity}"
        self._record("fault", kind="stuck", message=what)
        print(f"error: {what}", file=sys.stderr, flush=True)
        self.show()
        if self._exits:
            leave(1)

    def _debugged(self) -> bool:
        """Whether somebody looks at the main thread with a debugger."""
        frame = sys._current_frames().get(self._main)
        while frame is not None:
            if str(frame.f_globals.get("__name__", "")).split(".")[0] in DEBUGGERS:
                return True
            frame = frame.f_back
        return False

    def show(self) -> None:
        """Prints where the main thread is."""
        frame = sys._current_frames().get(self._main)
        text = "".join(traceback.format_stack(frame)) if frame else "  not in Python\n"
        print(f"the stack of the process that is stuck:\n{text}", end="", file=sys.stderr, flush=True)
