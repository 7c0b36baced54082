"""One clock for a run: how fast it steps, how long is left, and where the time went.

At every moment one activity is on; entering another pauses it. Evaluation, checkpoints and compilation therefore never
count in the speed of steps, and all activities add up to the whole. Must not know what the activities do.
"""

from __future__ import annotations

import collections
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

from t5x_like.core.text import table

Activity = Literal["setup", "compile", "data", "step", "evaluate", "checkpoint", "other"]
RUNNING: tuple[Activity, ...] = ("data", "step", "other")  # what steps per second are measured over
PAUSES: tuple[Activity, ...] = ("evaluate", "checkpoint")
MEANING: dict[Activity, str] = {
    "setup": "start, before the first step", "compile": "compiling", "data": "waiting for data",
    "step": "training steps", "evaluate": "evaluation", "checkpoint": "saving and restoring",
    "other": "everything else",
}  # fmt: skip


class Share(NamedTuple):
    """One row of the account: an activity, its seconds, its share of all seconds."""

    activity: Activity
    seconds: float
    share: float


class Clock:
    """Starts at once, in ``setup``, until `start` is called.

    Args:
      now: seconds from a clock that never goes back; given by tests.
      window: over how many calls of `stepped` the present speed is averaged.

    Attributes:
      changes: grows whenever something begins or ends: a sign of progress.
    """

    changes = 0

    def __init__(self, now: Callable[[], float] = time.perf_counter, window: int = 50):
        self._now = now
        self._stack: list[Activity] = ["setup"]
        self._since = now()
        self._seconds: dict[Activity, float] = dict.fromkeys(MEANING, 0.0)
        self._told: dict[str, float] = dict.fromkeys(MEANING, 0.0)  # as of the last call of `lap`
        self._marks: collections.deque[tuple[float, int]] = collections.deque(maxlen=window + 1)  # seconds, steps
        self._baseline: tuple[float, float] | None = None  # running and paused seconds at the first step told
        self._paused_at = 0.0  # running seconds at the end of the last pause

    @property
    def activity(self) -> Activity:
        """What is on."""
        return self._stack[-1]

    def start(self) -> None:
        """The end of setup; from here on time belongs to ``other`` unless said otherwise."""
        self._settle()
        self._stack[0] = "other"

    @contextlib.contextmanager
    def doing(self, activity: Activity) -> Iterator[None]:
        """``with clock.doing("evaluate"):`` counts the time inside as that, pausing whatever was on."""
        self._settle()
        self._stack.append(activity)
        try:
            yield
        finally:
            self._settle()
            self._stack.pop()
            if activity in PAUSES:
                self._paused_at = self._total(RUNNING)

    def stepped(self, steps: int = 1) -> None:
        """Counts ``steps`` more steps as done (their results read, not only dispatched).

        The first call only marks the start of the measurement: earlier steps include compilation and do not count in
        the speed.
        """
        self._settle()
        running = self._total(RUNNING)
        if self._baseline is None:
            self._baseline = running, self._total(PAUSES)
        self._marks.append((running, steps + (self._marks[-1][1] if self._marks else 0)))

    def seconds_per_step(self) -> float | None:
        """Averaged over the window, pauses excluded; None until it can be known."""
        if len(self._marks) < 2:
            return None
        (before, first), (now, last) = self._marks[0], self._marks[-1]
        return (now - before) / (last - first) if now > before else None

    def seconds_left(self, steps: int) -> float | None:
        """Estimated seconds for ``steps`` more steps, with pauses for evaluation and checkpoints in the proportion seen
        so far. The proportion is taken at the last pause, so that it is steady between two."""
        per_step = self.seconds_per_step()
        if per_step is None or self._baseline is None:
            return None
        self._settle()
        running, paused = self._paused_at - self._baseline[0], self._total(PAUSES) - self._baseline[1]
        return steps * per_step * (1 + paused / running if running > 0 else 1)

    def account(self) -> list[Share]:
        """Where the time went, longest first; the shares add up to 1."""
        self._settle()
        total = sum(self._seconds.values())
        shares = [Share(activity, seconds, seconds / total) for activity, seconds in self._seconds.items() if seconds]
        return sorted(shares, key=lambda share: share.seconds, reverse=True)

    def lap(self) -> dict[str, float]:
        """Seconds of each activity since the last call, or since the beginning, to a tenth of a millisecond."""
        self._settle()
        spent: dict[str, float] = {a: round(seconds - self._told[a], 4) for a, seconds in self._seconds.items()}
        for activity, seconds in spent.items():
            self._told[activity] += seconds  # what is rounded off comes with the next
        return {activity: seconds for activity, seconds in spent.items() if seconds}

    def _total(self, activities: tuple[Activity, ...]) -> float:
        return sum(self._seconds[activity] for activity in activities)

    def _settle(self) -> None:
        now = self._now()
        self.changes += 1
        self._seconds[self._stack[-1]] += now - self._since
        self._since = now


def account_table(account: Sequence[Share], width: int = 80) -> str:
    """The account as lines of at most ``width`` columns: meaning, seconds, share and, where there is room, a bar."""
    rows = [(MEANING[row.activity], f"{row.seconds:.1f} s", f"{row.share:.1%}") for row in account]
    lines = table(rows)
    bar = min(20, width - max(map(len, lines)) - 3)
    bars = ["█" * round(row.share * bar) for row in account]
    return "\n".join(f"{line}  {bar}".rstrip() for line, bar in zip(lines, bars, strict=True))
