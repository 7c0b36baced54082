"""Where the wall time of a run went, over all its attempts, from its ledger.

Goodput is the share of the wall time since the first start that went into training steps which were kept. Steps after
the checkpoint that a later attempt went on from were made again, and are lost work.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

KEPT, LOST, BETWEEN = "training steps", "steps made again", "between attempts"
MEANING: dict[str, str] = {
    KEPT: "updates that the run has kept: the share of this is the goodput",
    LOST: "updates after the last checkpoint before a fault; a later attempt made them again",
    "waiting for data": "the devices had nothing to do, since the next batch was not there yet",
    "compiling": "translating the train step for the devices, at the first step of each attempt",
    "restoring": "reading a checkpoint, at the start of each attempt but the first",
    "saving": "the training held up by checkpoints; most of the writing goes on beside it",
    "evaluation": "held-out losses, other evaluations, and samples of text",
    "setup": "reading the config, opening or preparing the text, making the model",
    "everything else": "reports, profiles, and what is not named above",
    BETWEEN: "no attempt at work, or none that wrote into the ledger: a queue, a restart, loading programs, and the "
             "time from the last line of an attempt that was killed to its end",
}  # fmt: skip
_NAMES = {"step": KEPT, "data": "waiting for data", "compile": "compiling", "checkpoint": "saving",
          "evaluate": "evaluation", "setup": "setup", "other": "everything else"}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Lap:
    """A stretch of an attempt between two lines of its ledger.

    Attributes:
      began, ended: seconds since 1970.
      first, last: number of updates made at its two ends.
      seconds: name of ``MEANING`` to seconds.
    """

    began: float
    ended: float
    first: int
    last: int
    seconds: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One start of the run, as its first process saw it.

    Attributes:
      number: from 1.
      laps: its stretches, one after another.
      start: the line ``start``; empty if it was lost.
      ending: how it ended, in words; empty: without a word, as of a process that is killed.
    """

    number: int
    laps: tuple[Lap, ...]
    start: dict[str, Any]
    ending: str

    @property
    def began(self) -> float:
        return self.laps[0].began

    @property
    def ended(self) -> float:
        return self.laps[-1].ended

    @property
    def first(self) -> int:
        return self.laps[0].first

    @property
    def last(self) -> int:
        return self.laps[-1].last


@dataclasses.dataclass(frozen=True)
class Account:
    """All attempts of a run.

    Attributes:
      attempts: in order.
      seconds: name of ``MEANING`` to seconds; they add up to ``total``.
    """

    attempts: tuple[Attempt, ...]
    seconds: dict[str, float]

    @property
    def total(self) -> float:
        """Seconds from the first start to the last line."""
        return sum(self.seconds.values())

    @property
    def goodput(self) -> float:
        return self.seconds[KEPT] / self.total if self.total else 0.0

    @property
    def lost_steps(self) -> int:
        """Number of updates that were made again."""
        return sum(max(0, before.last - after.first) for before, after in itertools.pairwise(self.attempts))


def account_of(events: Sequence[dict[str, Any]]) -> Account:
    """The account of the lines of a ledger, as ``report.ledger.read_ledger`` gives them."""
    lines: dict[int, list[dict[str, Any]]] = {}
    for event in events:
        if event["process"] == 0:
            lines.setdefault(event["attempt"], []).append(event)
    starts = {number: _first_step(of) for number, of in lines.items()}
    attempts, newest = [], max(lines, default=0)
    for number in sorted(lines):
        kept = min((step for later, step in starts.items() if later > number), default=None)
        attempts.append(Attempt(number, _laps(lines[number], starts[number], kept), _start(lines[number]),
                                _ending(lines[number], number == newest)))  # fmt: skip
    seconds = dict.fromkeys(MEANING, 0.0)
    for attempt in attempts:
        for lap in attempt.laps:
            for name, value in lap.seconds.items():
                seconds[name] += value
    for before, after in itertools.pairwise(attempts):
        seconds[BETWEEN] += max(0.0, after.began - before.ended)
    return Account(tuple(attempts), seconds)


def _start(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return next((line for line in lines if line["event"] == "start"), {})


def _first_step(lines: Sequence[dict[str, Any]]) -> int:
    steps = (line["step"] for line in lines if line["event"] in ("start", "restore"))
    return next((step for step in steps if step is not None), 0)


def _laps(lines: Sequence[dict[str, Any]], first: int, kept: int | None) -> tuple[Lap, ...]:
    """Args: ``lines`` of one attempt, its ``first`` step, the last step that later attempts have kept (None: all)."""
    laps, step, time = [], first, lines[0]["time"] - sum(lines[0]["spent"].values())
    for line in lines:
        reached = step if line["step"] is None else max(step, line["step"])
        seconds = dict[str, float]()
        for activity, value in line["spent"].items():
            name = "restoring" if activity == "checkpoint" and not laps else _NAMES.get(activity, "everything else")
            seconds[name] = seconds.get(name, 0.0) + value
        if kept is not None and reached > kept and KEPT in seconds:
            share = max(0, kept - step) / (reached - step) if reached > step else 0.0
            seconds[LOST], seconds[KEPT] = seconds[KEPT] * (1 - share), seconds[KEPT] * share
        laps.append(Lap(time, max(time, line["time"]), step, reached, seconds))
        # By the clock of the machine, which may be set meanwhile, lines can lie closer than what was spent.
        step, time = reached, max(time, line["time"])
    return tuple(laps)


def _ending(lines: Sequence[dict[str, Any]], newest: bool) -> str:
    last = lines[-1]
    faults = [line for line in lines if line["event"] == "fault" and line.get("kind") != "rows lost"]
    if last["event"] == "end":
        return "complete" if last.get("complete") else "stopped and saved"
    if faults:
        return f"failed: {faults[-1].get('kind')}"
    return "no end: still running, or killed" if newest else ""
