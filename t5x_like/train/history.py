"""What a run's batches and parameters depend on beside its config: rewinds with the batches passed over, and the run
that it began from. Kept in history.json and in every checkpoint: batch(step) stays a function of (seed, step, this).

The batches passed over are added to ``data.skip``, whatever config a later start gives: a launcher starts a run again
with the command that it was first started with. Checkpoints that a rewind has left behind are set aside, not deleted;
so is metrics.jsonl. Must not know parameters.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from t5x_like.checkpoint.checkpoints import Checkpoints
from t5x_like.core.errors import UserError, refuse
from t5x_like.core.lock import job_name
from t5x_like.core.paths import write_atomically
from t5x_like.core.ranges import NonNegativeInt
from t5x_like.core.structure import structure
from t5x_like.report.metrics import METRICS
from t5x_like.train.config import Run
from t5x_like.train.data import data_step
from t5x_like.train.working import shown

HISTORY = "history.json"


@dataclasses.dataclass(frozen=True)
class Rewind:
    """A wish to go back.

    Attributes:
      steps: number of steps to go back from the latest checkpoint.
      skip: number of batches to pass over, from the step gone back to.
    """

    steps: int = 0
    skip: int = 0

    def __post_init__(self):
        for name, value in (("--rewind", self.steps), ("--skip", self.skip)):
            structure(NonNegativeInt, value, name, text=False)


class History:
    """The records of one run, in order.

    Args:
      directory: the run's folder.
      checkpoints: its checkpoints.
      say: function of a note.

    Attributes:
      records: dicts with ``event``: ``rewind`` (``latest``: the checkpoint gone back from; ``to``: the step gone back
        to; ``restored``: the checkpoint at or before it; ``skip``: the range of batches, empty for none; ``job``) or
        ``branch`` (``parent``, ``parent_step``, ``what``, ``digest``; of a mean of checkpoints ``averaged``: steps).
      new: those of this start.
    """

    def __init__(self, directory: Path, checkpoints: Checkpoints, say: Callable[[str], None]):
        self._directory, self._checkpoints, self._say = directory, checkpoints, say
        self.records, self.new = _read(directory / HISTORY), []
        if (latest := checkpoints.latest()) is not None:
            with contextlib.suppress(UserError):  # damaged: told when it is restored
                self.records = max(self.records, checkpoints.metadata(latest).get("history", []), key=len)

    def applied(self, run: Run) -> Run:
        """The run with the batches passed over in ``data.skip``."""
        given = run.data.skip
        passed = [record.get("skip", "") for record in self.records]
        more = [text for text in passed if text and text not in given]
        skip = tuple(sorted((*given, *more), key=lambda text: int(text.split(":")[0])))
        return dataclasses.replace(run, data=dataclasses.replace(run.data, skip=skip)) if more else run

    def rewind(self, run: Run, wish: Rewind) -> Run:
        """Adds a record of going back, and returns the run from there on. Changes no file: ``commit`` does.

        Raises:
          UserError: there is no checkpoint at or before that step; batches of a corpus that cannot be passed over.
        """
        job = job_name()
        asked = {"steps": wish.steps, "batches": wish.skip, "job": job}
        if job and any(asked.items() <= record.items() for record in self.records):
            self._say(f"--rewind {wish.steps} --skip {wish.skip} was made by an earlier start of this job; going on")
            return run
        latest, steps = self._checkpoints.latest(), self._checkpoints.steps()
        got = f"{shown(self._directory)} has no checkpoint to go back from"
        refuse(latest is None, "--rewind", got, "a run with one")
        to = int(latest or 0) - wish.steps
        restored = max((step for step in steps if step <= to), default=None)
        kept = ", ".join(f"{step:,}" for step in steps)
        refuse(restored is None, "--rewind", f"{wish.steps:,} steps back from step {latest:,} is step {to:,}, and no "
               "checkpoint is as old", f"at most {int(latest or 0) - min(steps, default=0):,} (checkpoints {kept})")
        skip = ""
        if wish.skip:
            skip = f"{data_step(run.data, to)}:{data_step(run.data, to + wish.skip - 1) + 1}"
        self.add({"event": "rewind", "latest": latest, "to": to, "restored": restored, "skip": skip, **asked})
        self._say(f"going back from step {latest:,} to the checkpoint of step {restored:,}"
                  + (f"; from step {to:,} on batches {skip} are passed over" if skip else ""))
        return self.applied(run)

    def add(self, record: dict[str, Any]) -> None:
        self.records, self.new = [*self.records, record], [*self.new, record]

    def commit(self) -> None:
        """Writes new records, and sets aside the checkpoints and metrics that a rewind has left behind: also those of
        a start that was killed before it had. All processes of a job call it."""
        if self.new and jax.process_count() > 1:
            multihost_utils.sync_global_devices("t5x_like history read")  # by all, before it is written
        path, metrics = self._directory / HISTORY, self._directory / METRICS
        if (self.new or (self.records and not path.is_file())) and jax.process_index() == 0:
            if any(record["event"] == "rewind" for record in self.new) and metrics.is_file():
                names = (metrics.with_name(f"metrics.aside-{n}.jsonl") for n in range(1, sys.maxsize))
                shutil.copyfile(metrics, next(name for name in names if not name.exists()))
            write_atomically(path, json.dumps(self.records, indent=1) + "\n")
        left = [step for step in self._checkpoints.steps() if self._is_left_behind(step)]
        if any("restored" in record for record in self.records) and jax.process_count() > 1:
            multihost_utils.sync_global_devices("t5x_like history compared")  # by all, before any is renamed
        self._checkpoints.set_aside(left, "was left behind by --rewind")

    def _is_left_behind(self, step: int) -> bool:
        """Whether a checkpoint is later than what a rewind has gone back to, and from before that rewind."""
        after = [n for n, record in enumerate(self.records) if step > record.get("restored", step)]
        if not after:
            return False
        try:
            return len(self._checkpoints.metadata(step).get("history", [])) <= after[-1]
        except UserError:  # damaged: told when it is restored
            return False

    def marks(self) -> dict[str, tuple[Any, Any]]:
        """Marks of this start's rewind in the metrics: (step gone back from, step gone on from)."""
        made = [record for record in self.new if record["event"] == "rewind"]
        return {"rewind": (made[-1]["latest"], made[-1]["restored"])} if made else {}

    @property
    def begun_from(self) -> dict[str, Any] | None:
        """The record of the run that this one began from; None where it began anew."""
        return next((record for record in self.records if record["event"] == "branch"), None)


def _read(path: Path) -> list[dict[str, Any]]:
    with contextlib.suppress(OSError, ValueError):  # lost: the checkpoints have it too
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, list) and all(isinstance(each, dict) and "event" in each for each in found):
            return found
    return []
