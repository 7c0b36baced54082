"""What happens on SIGTERM and Ctrl-C, with one process and with several; who calls what.

1. ``train.run.train`` opens ``Stop`` as soon as there is something to save. Before that, a signal ends the process; in
   a job of several, where jax's handler is there already, SIGTERM waits until then.
2. One process: ``Stop._catch``, the handler of SIGTERM and SIGINT, sets ``Stop.signal``. A second Ctrl-C stops at once.
   Several processes: SIGTERM is left to the handler that ``jax.distributed.initialize`` has installed
   (``sharding.processes.join_processes``); it tells jax's coordination service, which tells all processes. Ctrl-C in
   one of them is turned into SIGTERM to itself, so that the others learn of it.
3. ``train.loop.Loop`` asks ``Stop.wanted`` before every step. Of several processes each asks
   ``multihost_utils.reached_preemption_sync_point``, which says yes to all at the same step. An evaluation under way
   (``evaluate.heldout.means``) ends early in a job of one process, and is finished in one of several.
4. The loop saves a checkpoint of the step reached, waits until it is written, and returns. Evaluations that are due at
   that step are made when the run is resumed.
5. ``train`` returns ``Outcome.exit_code``, with which ``cli.main`` leaves: 75 after SIGTERM ("saved, run me again"),
   130 after Ctrl-C. ``launch/local.py`` turns Ctrl-C into SIGTERM for all its processes, gives them ``--grace`` seconds
   to save in, and leaves with the same code.

A process that is killed loses the steps since its last checkpoint; the others of its job notice within 30 seconds
(``heartbeat_timeout_seconds`` in ``sharding.processes``) and end.
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
