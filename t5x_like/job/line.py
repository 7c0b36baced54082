"""The line between the processes of a job: one TCP connection from each to process 0, open for as long as they live.

jax and gloo notice a lost process late, and end with a dump of C++. Over this line a process that ends, is stopped or
stuck is known at once and by name, and all agree on facts and on the step to stop at. The connections are made on
the coordinator's port before jax listens there (``job.join``), so no other port is needed. Lines of JSON; nothing that
comes is executed. Must not know JAX.

    from a process: hello, alive, agree, facts, stop, polls, fault, bye     ``Line``
    from process 0: go, alive, agreed, refused, facts, polls, at, leave, end, bye    ``job.hub.Hub``
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from t5x_like.core.errors import UserError

GATHER = 0.15  # seconds in which process 0 hears of other faults, before it says which one was the cause
LAST = 0.1  # seconds by which the one at fault waits for the others, so that what it prints comes last
OTHERS = 1.5  # seconds by which process 0 waits for all others: where it goes first, jax's C++ ends them with a dump


class Fault(Exception):
    """A failure of the job that is not the user's mistake; the command line says it without a traceback, and ends with
    exit code 1, after which a launcher tries again."""


class Voice(Protocol):
    """What ``Line`` asks of this process, from its own thread."""

    def polls(self) -> tuple[int, bool]:
        """(number of times that it has asked whether to stop, whether there is something to save); from now on
        whoever asks waits for ``stop_at``."""
        ...

    def stop_at(self, poll: int, number: int) -> None:
        """That all stop when they ask for the ``poll``-th time, by signal ``number``."""
        ...


class Messages:
    """Messages over a socket: each a line of JSON, a list of its name and its values."""

    def __init__(self, connection: socket.socket):
        self.connection, self._rest, self._sending = connection, b"", threading.Lock()

    def fileno(self) -> int:
        return self.connection.fileno()

    def send(self, *message: Any) -> None:
        """Sends one; a connection that is lost says so when it is read."""
        with contextlib.suppress(OSError), self._sending:
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def read(self) -> Iterator[list[Any]]:
        """What has come, waiting for something to come. Raises EOFError at the end of the connection, and for what is
        not a message."""
        try:
            found = self.connection.recv(1 << 16)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            raise EOFError from None
        if not found:
            raise EOFError
        *lines, self._rest = (self._rest + found).split(b"\n")
        for line in lines:
            try:
                message = json.loads(line)
            except ValueError:
                raise EOFError from None
            if not isinstance(message, list) or not message:
                raise EOFError
            yield message


def digest(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def interval(count: int, heartbeat: float) -> float:
    """Seconds between two words that a process is alive; process 0 hears at most 200 a second."""
    return min(max(1.0, count / 200), heartbeat / 4)


def leave(code: int) -> None:
    """Ends this process now. An orderly exit would wait for the others."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # closed, or full: nobody is left to be told
            stream.flush()
    os._exit(code)


class Line(threading.Thread):
    """This process's end of the line: a thread that hears what process 0 says, and tells it that this one is alive.

    Args:
      connection: to process 0.
      index, count: number of this process, and of all.
      heartbeat: longest time without a word from process 0, in seconds.

    Attributes:
      voice: who answers for this process; None: nothing is there to save.
      status: function of (number of polls, activity, seconds without progress, whether that is too long).
      record: function of an event and its values, for the run's ledger.
      stuck: function that prints where this process is.
      patience: longest time that process 0 waits for the others at the end, in seconds.
      others_gone: in process 0, set once all others have ended.
    """

    def __init__(self, connection: socket.socket, index: int, count: int, heartbeat: float):
        super().__init__(name="t5x_like line", daemon=True)
        self.messages, self.index, self.count, self.heartbeat = Messages(connection), index, count, heartbeat
        self.voice: Voice | None = None
        self.status: Callable[[], tuple[int, str, float, bool]] = lambda: (0, "start", 0.0, False)
        self.record: Callable[..., None] = lambda event, **values: None
        self.stuck: Callable[[], None] = lambda: None
        self.patience, self.others_gone = 60.0, threading.Event()
        self.waits = False  # for the others, which is no reason to be called stuck
        self.over = False  # the job has ended well
        self._facts: dict[str, Mapping[str, Any]] = {}
        self._answers: dict[str, list[Any]] = {}
        self._answered = threading.Condition()
        self._failing: threading.Event | None = None
        self._follows = False
        self.interval = interval(count, heartbeat)

    # From the main thread

    def agree(self, topic: str, facts: Mapping[str, Any]) -> None:
        """Returns when every process has said the same facts about ``topic``.

        Raises:
          UserError: naming the process that differs from process 0, and the facts in which it does.
        """
        self._facts[topic], self.waits = dict(facts), True
        self.messages.send("agree", topic, digest(facts))
        with self._answered:
            while topic not in self._answers:
                self._answered.wait(1.0)
            answer = self._answers.pop(topic)
        del self._facts[topic]
        self.waits = False
        if answer:
            raise UserError(*answer)

    def stop(self, number: int) -> None:
        """Has all processes stop at one point, by signal ``number``."""
        self.messages.send("stop", int(number))

    def fail(self, code: int, what: str, follows: bool = False) -> None:
        """Has all processes end with ``code``; returns once they have, if this process is the one to say why. Another
        process's fault ends this one here.

        Args:
          code: the exit code.
          what: what has happened, in a few words.
          follows: whether it may be nothing but what the fault of another process leads to.
        """
        if self.over:
            return
        self._failing, self._follows = threading.Event(), follows
        self.messages.send("fault", code, what, follows)
        self._failing.wait(GATHER + 2.0)
        self.others_gone.wait(LAST if self.index else OTHERS)

    def close(self, code: int) -> None:
        """Tells the others that this process ends well; process 0 waits until they do too, for ``patience``."""
        self.over = True
        self.messages.send("bye", code)
        if self.index == 0:
            self.join(self.patience)

    # The thread

    def run(self) -> None:
        heard = said = time.monotonic()
        while True:
            with contextlib.suppress(OSError, ValueError):
                select.select([self.messages], [], [], self.interval)
            now = time.monotonic()
            if now - said > 3 * self.interval + 2.0:  # this process itself was stopped
                heard = now
            try:
                if select.select([self.messages], [], [], 0)[0]:
                    for message in self.messages.read():
                        heard = now
                        if self._hear(*message):
                            return
            except (EOFError, OSError, ValueError):
                return self._lost("has ended without a word: killed, or its machine is gone")
            if now - heard > self.heartbeat and not self.over:
                return self._lost(f"has not been heard of for {self.heartbeat:.0f} s: stopped, or its machine is gone")
            if now - said >= self.interval:
                said = now
                polls, activity, seconds, over = self.status()
                self.messages.send("alive", polls, activity, seconds, over and not self.waits)

    def _lost(self, how: str) -> None:
        if self._failing and not self._follows:
            self._failing.set()
        elif not self.over:
            if self.index == 1:  # of the others, one says it
                self.record("fault", kind="lost", message=f"process 0 {how}")
                print(f"error: process 0 {how}", file=sys.stderr, flush=True)
            leave(1)

    def _hear(self, kind: str, *values: Any) -> bool:
        """Whether that was the last message."""
        if kind in ("go", "agreed", "refused"):
            topic, *answer = values
            with self._answered:
                self._answers[topic] = answer
                self._answered.notify_all()
        elif kind == "facts":
            self.messages.send("facts", values[0], self._facts.get(values[0], {}))
        elif kind == "polls":
            self.messages.send("polls", *(self.voice.polls() if self.voice else (0, False)))
        elif kind == "at" and self.voice:
            self.voice.stop_at(*values)
        elif kind == "leave":
            if self.index == 0:
                self.record("stop", message="before the first step")
                print("stopped before the first step: nothing to save", file=sys.stderr, flush=True)
                self.others_gone.wait(OTHERS)
            leave(values[0])
        elif kind == "end":
            return self._end(*values)
        return kind == "bye"

    def _end(self, code: int, culprits: list[int], why: str, stuck: bool) -> bool:
        mine = self.index in culprits
        if mine and self._failing:  # the main thread says it
            self._failing.set()
            return True
        if mine and stuck:
            time.sleep(LAST)
            self.stuck()
        if self.index == 0:
            kind = "stuck" if stuck else "lost" if why else "failed"
            self.record("fault", kind=kind, message=why or f"process {culprits[0]} has failed", processes=culprits)
            if why:
                print(f"error: {why}", file=sys.stderr, flush=True)
            self.others_gone.wait(OTHERS)
        leave(code)
        return True

    def wait_for_go(self, seconds: float) -> str:
        """Where jax is to find process 0, once all have come. Raises Fault after that time."""
        with self._answered:
            self._answered.wait_for(lambda: "go" in self._answers, seconds)
            if "go" not in self._answers:
                raise Fault(f"process 0 has not said within {seconds:.0f} s that all {self.count} processes are there")
            return self._answers.pop("go")[0]
