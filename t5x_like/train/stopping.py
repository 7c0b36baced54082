"""Requests to stop: Ctrl-C and SIGTERM set a flag that the loop reads between steps.

In a job of several processes, all of them stop at the same step.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

import jax
from jax.experimental import multihost_utils

INTERRUPTED, TERMINATED = 130, 75  # exit codes: Ctrl-C; "saved, run me again"


class Stop:
    """Catches SIGINT and SIGTERM while it is open (a context manager)."""

    def __init__(self):
        self.signal: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Stop:
        for number in (signal.SIGINT, signal.SIGTERM):
            if number == signal.SIGTERM and jax.process_count() > 1:
                continue  # jax's own handler tells the other processes
            self._previous[number] = signal.signal(number, self._catch)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # asked a second time: stop at once
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)  # jax's handler of SIGTERM tells all processes
        self.signal = number

    def wanted(self, step: int) -> bool:
        """Whether to stop after ``step`` updates; every process must ask at the same steps."""
        if jax.process_count() == 1:
            return self.signal is not None
        reached = multihost_utils.reached_preemption_sync_point(step)
        if reached and self.signal is None:
            self.signal = signal.SIGTERM
        return reached

    @property
    def exit_code(self) -> int:
        return INTERRUPTED if self.signal == signal.SIGINT else TERMINATED
