"""Profiles of a run: steps traced by XLA's profiler and the memory of its devices, at set times or on SIGUSR1.

How to read them without a network: docs/report.md.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
from pathlib import Path
from types import FrameType

import jax

from t5x_like.core.every import Every
from t5x_like.report.console import Console
from t5x_like.report.ledger import Ledger
from t5x_like.train.hooks import Hook
from t5x_like.train.setup import State


class Asked(contextlib.AbstractContextManager):
    """Catches SIGUSR1 while it is open: ``kill -USR1 PID`` asks for a profile, also before the first step."""

    def __init__(self):
        self.now = False
        self._previous: object = None

    def __enter__(self) -> Asked:
        with contextlib.suppress(ValueError):  # not in the main thread: nobody can ask
            self._previous = signal.signal(signal.SIGUSR1, self._catch)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGUSR1, self._previous)  # type: ignore[arg-type]  # as it was given

    def _catch(self, number: int, frame: FrameType | None) -> None:
        self.now = True


@dataclasses.dataclass(eq=False)
class Profile(Hook):
    """Traces ``steps`` steps with ``jax.profiler`` into ``folder``, and then writes what lies in the devices' memory.

    Each process traces its own devices, so that one of several can be asked alone.

    Attributes:
      when: times after which steps are traced.
      steps: number of steps of a trace.
      folder: folder of the profiles.
      asked: whether a signal has asked for a profile.
      console, ledger: those of the run.
    """

    when: Every
    steps: int
    folder: Path
    asked: Asked
    console: Console
    ledger: Ledger
    _first: int = 0
    _end: int = 0  # last step of the trace that is on; 0: none is
    _step: int = 0

    def due(self, step: int, total: int) -> bool:
        self._step = step
        return step == self._end if self._end else step < total and (self.asked.now or self.when.due(step, total))

    def __call__(self, step: int, state: State) -> None:
        jax.block_until_ready(state)  # so that the trace has its steps whole, and no other
        if self._end:
            self.close()
        else:
            self.asked.now = False
            jax.profiler.start_trace(str(self.folder))
            self._first, self._end = step + 1, step + self.steps

    def close(self) -> None:
        """Ends a trace that is on."""
        if not self._end:
            return
        jax.profiler.stop_trace()
        last = min(self._step, self._end)
        memory = self.folder / f"memory_{last}_process_{self.ledger.process}.prof"
        jax.profiler.save_device_memory_profile(str(memory))
        self._end = 0
        self.console.note(f"profile of steps {self._first:,} to {last:,}, and of memory, in {self.folder}")
        self.ledger.add("profile", last, first=self._first, folder=str(self.folder))
