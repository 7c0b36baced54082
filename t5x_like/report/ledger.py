"""The ledger of a run: one line for each event, added as it happens and never rewritten.

    DIRECTORY/ledger/ATTEMPT-PROCESS.jsonl      one file for each process of each attempt (a start of the run)
    {"time": 1790000000.123, "event": "save", "step": 400, "spent": {"step": 31.2, "checkpoint": 0.4}, ...}

``time`` is in seconds since 1970, ``step`` the number of updates made, ``spent`` the seconds of each activity of the
clock since the line before, or since the clock was started. The ``spent`` of a file therefore add up to the time of its
process, and those of ``step`` between two lines are the step times of the updates between them. Events:

    restore, start, compile, steps, save, evaluation, sample, skipped, rewind, branch, fault, stop, end

``steps`` says only that time has passed: at most once a second, and in a long run once a minute, so that a month takes
a few megabytes. Must not know jax: the caller says which process it is.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

LEDGER = "ledger"  # folder in that of the run
SHORTEST, LONGEST, SHARE = 1.0, 60.0, 0.01  # seconds between two ``steps``: this share of the attempt, within these
OTHERS = 10  # times as long between those of processes that are not the first
KEPT = 1 << 20  # bytes of lines that are written later, once a full disk has room again


class Ledger:
    """Adds lines to the file of one process of one attempt, which is made with the first line.

    Args:
      directory: the run's folder; None: nothing is written.
      attempt: number of the attempt, from 1, the same in all processes of a job: ``next_attempt`` of the first.
      process: index of the process.
      lap: function to the seconds of each activity since its last call: ``report.clock.Clock.lap``.
      now: function to seconds since 1970; given by tests.
    """

    def __init__(
        self, directory: Path | None = None, attempt: int = 1, process: int = 0,
        lap: Callable[[], Mapping[str, float]] = dict, now: Callable[[], float] = time.time,
    ):  # fmt: skip
        self.attempt, self.process = attempt, process
        self.path = directory / LEDGER / f"{attempt}-{process}.jsonl" if directory else None
        self._lap, self._now, self._left, self._said = lap, now, b"", False
        self._torn = True  # whether the last line in the file may be
        self._opened = self._written = time.monotonic()
        self._step: int | None = None  # the last that was told

    def add(self, event: str, step: int | None = None, **values: Any) -> None:
        """Adds one line; it is with the operating system when this returns, so that a kill of the process loses none.

        Never raises where it cannot be written: a full disk does not end a run. That is said once, and the lines are
        written with a later one.

        Args:
          event: what has happened.
          step: number of updates made.
          values: further values, of JSON; what is not, is written as text.
        """
        if self.path is None:
            return
        line = {"time": round(self._now(), 3), "event": event, "step": step, "spent": self._lap(), **values}
        self._step = step if step is not None else self._step
        self._left += json.dumps(_plain(line), default=str).encode() + b"\n"
        self._written = time.monotonic()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab", buffering=0) as file:
                if self._torn and file.tell():
                    self._left = b"\n" + self._left
                self._torn = file.write(self._left) != len(self._left)
            if self._torn:
                raise OSError("no room is left")
            self._left = b""
        except OSError as error:
            self._torn, self._left = True, self._left.lstrip() if len(self._left) < KEPT else b""
            if not self._said:
                self._said = True
                print(f"WARNING: {self.path} cannot be written: {error.strerror or error}; the run goes on, and the "
                      "lines are written once they can be", file=sys.stderr, flush=True)

    def stepped(self, step: int) -> None:
        """Called after each step: adds ``steps`` if it is time for it."""
        now, self._step = time.monotonic(), step
        wait = min(LONGEST, max(SHORTEST, SHARE * (now - self._opened))) * (OTHERS if self.process else 1)
        if now - self._written >= wait:
            self.add("steps", step)

    @contextlib.contextmanager
    def faults(self) -> Iterator[None]:
        """``with ledger.faults():`` adds what is raised inside as a ``fault`` and lets it pass."""
        try:
            yield
        except BaseException as error:
            self.add("fault", self._step, kind=type(error).__name__, message=str(error)[:2000])
            raise


def next_attempt(directory: Path) -> int:
    """The number of the next attempt: one more than the first process has files of. Lists no folder, which may hold a
    file for each of a thousand processes."""
    number = 1
    while (directory / LEDGER / f"{number}-0.jsonl").exists():
        number += 1
    return number


def read_ledger(directory: Path, event: str = "", process: int | None = None) -> list[dict[str, Any]]:
    """The lines of a run, each with its ``attempt`` and ``process``, in order of time; torn lines are left out.

    Args:
      directory: the run's folder.
      event: read only the lines of this event; empty: all.
      process: read only the files of the process with this index; None: of all.
    """
    found, wanted = [], json.dumps({"event": event})[1:-1].encode() if event else b""
    for path in (directory / LEDGER).glob(f"*-{'*' if process is None else process}.jsonl"):
        attempt, _, of = path.stem.partition("-")
        if not (attempt.isdigit() and of.isdigit()):
            continue
        for line in path.read_bytes().splitlines():
            if wanted in line and (read := _read(line)) is not None:
                found.append(read | {"attempt": int(attempt), "process": int(of)})
    return sorted(found, key=lambda line: line["time"])


def read_starts(directory: Path) -> list[dict[str, Any]]:
    """The ``start`` of each attempt, as its first process wrote it."""
    return read_ledger(directory, "start", process=0)


def _read(line: bytes) -> dict[str, Any] | None:
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(line)
        if isinstance(found, dict) and isinstance(found.get("event"), str):
            if isinstance(found.get("time"), int | float) and isinstance(found.get("step"), int | None):
                return found | {"spent": _seconds(found.get("spent"))}
    return None


def _seconds(spent: Any) -> dict[str, float]:
    pairs = spent.items() if isinstance(spent, dict) else ()
    return {name: float(value) for name, value in pairs if isinstance(value, int | float) and math.isfinite(value)}


def _plain(value: Any) -> Any:
    """Without numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
