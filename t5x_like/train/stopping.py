"""What happens on SIGTERM, SIGHUP and Ctrl-C, with one process and with several; who calls what.

1. ``train.run.train`` opens ``Stop`` before the processes of a job join. ``Stop._catch`` is the handler of the signals;
   a thread hears of them too, since a handler waits while C++ compiles.
2. As long as there is nothing to save (preparing, compiling, restoring, the evaluation at the first step), a signal
   ends all processes of the job at once: with exit code 75 ("run me again"), or 130 after Ctrl-C.
3. After that ``train.loop.Loop`` asks ``Stop.wanted`` before every step, an evaluation ``Stop.asked`` before every
   batch, and a sample, which one process alone writes, after every few tokens. In one process the answer is yes from
   the signal on. Of several, the one that is told sends word to process 0 over the job's line (``job.line``); it asks
   all how often they have asked, and each stops when it asks for the time after the largest of these numbers. So every
   process must ask equally often.
4. An evaluation or sample under way ends early, without values; it is made when the run is resumed. The loop saves a
   checkpoint of the step reached, waits until it is written, and returns.
5. ``train`` returns ``Outcome.exit_code``, with which ``cli.main`` leaves: 75 after SIGTERM and SIGHUP ("saved, run me
   again"), 130 after Ctrl-C. A second Ctrl-C stops without saving.

SIGHUP counts only where it is not ignored (nohup). A process that is killed loses the steps since its last checkpoint;
process 0 knows at once, and ends the others of its job.
"""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from t5x_like.job.join import line
from t5x_like.job.line import leave
from t5x_like.job.watchdog import Watchdog

INTERRUPTED, TERMINATED = 130, 75  # exit codes: Ctrl-C; "saved, run me again"
PATIENCE = 5.0  # seconds for an orderly end where there is nothing to save


class Stop:
    """Catches SIGINT, SIGTERM and SIGHUP while it is open (a context manager); of several processes opened before they
    join.

    Attributes:
      signal: the signal by which the run stops; None: it goes on.
    """

    def __init__(self):
        self.signal: int | None = None
        self._watchdog: Watchdog | None = None
        self._previous: dict[int, Any] = {}  # handlers, as signal gives them
        self._first: int | None = None  # step before the first one of this start
        self._ready = self._told = self._asked_for = False
        self._presses = self._polls = 0
        self._at: tuple[int, int] | None = None  # the poll at which all stop, and by which signal
        self.check: Callable[[], None] = lambda: None  # raises where this process must not go on
        self._polling = threading.Condition()

    def joined(self, watchdog: Watchdog) -> None:
        """The processes have joined: from here on process 0 may ask this one to stop."""
        self._watchdog = watchdog
        if others := line():
            others.voice = self

    def __enter__(self) -> Stop:
        self._wake, ours = socket.socketpair()
        self._wake.setblocking(False)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if threading.current_thread() is threading.main_thread() and signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.getsignal(number)
        if self._previous:
            self._woke = signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        for number in self._previous:
            signal.signal(number, self._catch)
        threading.Thread(target=self._listen, args=(ours,), name="t5x_like signals", daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        if self._previous:
            signal.set_wakeup_fd(self._woke)
        if others := line():
            others.voice = None
        self._wake.close()

    def _listen(self, connection: socket.socket) -> None:
        with connection:
            while numbers := connection.recv(64):
                for number in numbers:
                    if number in self._previous:
                        self._hear(number)

    def _hear(self, number: int) -> None:
        """Called at once by the thread, and by the handler when Python runs in the main thread again."""
        if self._told:
            return
        self._told = True
        if others := line():
            others.stop(number)
        elif self._ready:
            self.signal = number
        elif number != signal.SIGINT:  # the handler raises; it may have to wait for C++
            timer = threading.Timer(PATIENCE, leave, (TERMINATED,))
            timer.daemon = True
            timer.start()

    def _catch(self, number: int, frame: FrameType | None) -> None:
        self._presses += number == signal.SIGINT
        alone = line() is None
        if number == signal.SIGINT and (self._presses > 1 or (alone and not self._ready)):
            raise KeyboardInterrupt  # asked a second time, or with nothing to save: stop at once
        if alone:  # else the thread does it: a handler may have interrupted what sends to the line
            self._hear(number)
        if alone and not self._ready:
            raise SystemExit(TERMINATED)

    # Process 0 asks, by the thread of the line

    def polls(self) -> tuple[int, bool]:
        with self._polling:
            self._asked_for = True
            return self._polls, self._ready

    def stop_at(self, poll: int, number: int) -> None:
        with self._polling:
            self._at = poll, number
            self._polling.notify_all()

    # The main thread asks

    def wanted(self, step: int) -> bool:
        """Whether to stop after ``step`` updates; every process must ask at the same steps."""
        self._first = step if self._first is None else self._first
        self._ready = step > self._first
        return self.asked()

    def asked(self) -> bool:
        """Whether to stop what is under way; every process must ask equally often. Raises what ``check`` does."""
        self.check()
        with self._polling:
            while self._asked_for and self._at is None:
                self._polling.wait(1.0)  # some milliseconds; where process 0 is lost, the line ends this process
            self._polls += 1
            if self._at and self._polls >= self._at[0]:
                self.signal = self._at[1]
        if self._watchdog:
            self._watchdog.polled()
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        return INTERRUPTED if self.signal == signal.SIGINT else TERMINATED
