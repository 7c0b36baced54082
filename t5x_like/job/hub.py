"""Process 0's end of the line between the processes of a job: it hears all, its own process too, and decides.

Which processes never came, which one ended or is not heard of, which of those that wait for one another is the stuck
one, at which poll all stop, and whether all say the same. Must not know JAX.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from t5x_like.job.line import GATHER, Messages, interval

LOST, OWN, STUCK, FOLLOWS = range(4)  # of several faults at once, the first kind is the cause
COLLECTIVE = "step"  # activity in which a process waits for the others
TICK = 0.05


class Peer(Messages):
    """A process as process 0 sees it."""

    def __init__(self, connection: socket.socket):
        connection.setblocking(True)
        connection.settimeout(5.0)  # to send; what is read is there
        super().__init__(connection)
        self.index, self.name, self.done, self.closed = -1, "", False, False
        self.heard = time.monotonic()
        self.status: tuple[int, str, float, bool] = (0, "start", 0.0, False)
        self.polls: tuple[int, bool] | None = None


class Hub(threading.Thread):
    """Listens, and decides. Daemon: ends with the process.

    Attributes:
      others_gone: set once the connections of all other processes have ended.

    Args:
      listeners: sockets that listen, closed once all have come.
      own: a connection to the ``Line`` of this very process.
      count: number of processes.
      address: where jax is to find process 0.
      arrival, heartbeat: longest time for all to come, and without a word from one, in seconds.
    """

    def __init__(
        self, listeners: list[socket.socket], own: socket.socket, count: int, address: str, arrival: float,
        heartbeat: float,
    ):  # fmt: skip
        super().__init__(name="t5x_like hub", daemon=True)
        self.listeners, self.count, self.address = listeners, count, address
        self.arrival, self.heartbeat = arrival, heartbeat
        self.came: dict[int, Peer] = {}
        self.select = selectors.DefaultSelector()
        for listener in listeners:
            self.select.register(listener, selectors.EVENT_READ, None)
        self._register(own)
        self.began = self.ticked = self._said = time.monotonic()
        self.interval = interval(count, heartbeat)
        self._verdict: tuple[Any, ...] = ()
        self.ended = False
        self.others_gone = threading.Event()
        self._topics: dict[str, dict[int, str]] = {}
        self._given: dict[str, dict[int, dict[str, Any]]] = {}
        self._accused: list[tuple[int, float, int, int, str]] = []  # kind, when, process, exit code, why
        self._signal = 0  # the signal
        self._since_stuck: tuple[list[int], float] = ([], 0.0)

    def _register(self, connection: socket.socket) -> None:
        self.select.register(connection, selectors.EVENT_READ, Peer(connection))

    def run(self) -> None:
        while not self.ended or not self.others_gone.is_set():
            for key, _ in self.select.select(TICK):
                peer = key.data
                if peer is None:
                    with contextlib.suppress(OSError):
                        self._register(key.fileobj.accept()[0])  # type: ignore[union-attr]  # ours are sockets
                    continue
                try:
                    for kind, *values in peer.read():
                        peer.heard = time.monotonic()
                        self._hear(peer, kind, values)
                except (EOFError, TypeError, ValueError):  # what is no message is no process of ours
                    self._gone(peer)
            self._tick()
        for key in list(self.select.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]  # ours are sockets
        self.select.close()

    def _say(self, *message: Any) -> None:
        for peer in list(self.came.values()):
            if not peer.done:
                peer.send(*message)

    def _hear(self, peer: Peer, kind: str, values: list[Any]) -> None:
        hear: dict[str, Callable[..., None]] = {
            "hello": self._hello, "agree": self._agree, "facts": self._facts, "stop": self._stopped,
            "polls": self._polled, "fault": self._fault, "bye": self._bye,
        }  # fmt: skip
        if kind == "alive" and peer.index >= 0:
            peer.status = tuple(values)  # type: ignore[assignment]  # JSON: of the types that `status` gives
        elif kind in hear and (peer.index >= 0 or kind == "hello"):
            hear[kind](peer, *values)

    # Coming and going

    def _hello(self, peer: Peer, index: int, count: int, name: str) -> None:
        got = f"process {index} ({name}) says that the job has {count} processes, process 0 that it has {self.count}"
        if count == self.count and index in self.came:
            got = f"two processes say that they are process {index}: {self.came[index].name} and {name}"
        peer.index, peer.name = index, name
        if self._verdict:
            peer.send(*self._verdict)
            return
        if count != self.count or index in self.came:
            peer.send("end", 2, [], "", False)
            self._end(2, [], f"environment: {got}")
            return
        self.came[index] = peer
        if len(self.came) == self.count:
            self._stop_listening()
            self._say("go", "go", self.address)

    def _stop_listening(self) -> None:
        for listener in self.listeners:
            self.select.unregister(listener)
            listener.close()
        self.listeners = []

    def _gone(self, peer: Peer) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self.select.unregister(peer.connection)
        peer.connection.close()
        peer.closed = True
        if all(each.closed for index, each in self.came.items() if index):
            self.others_gone.set()
        if self.came.get(peer.index) is peer and not peer.done:
            peer.done = True
            self._accuse(LOST, peer, 1, "has ended without a word: killed, or its machine is gone")
            self._all_done()

    def _bye(self, peer: Peer, code: int) -> None:
        peer.done = True
        if peer.index == 0:
            self.ended = True
        self._all_done()

    def _all_done(self) -> None:
        if all(each.done for each in self.came.values()):
            for each in self.came.values():
                each.send("bye")

    def _tick(self) -> None:
        now = time.monotonic()
        if now - self.ticked > 2.0:  # this process was stopped: what the others said meanwhile is not read yet
            for peer in self.came.values():
                peer.heard += now - self.ticked
        self.ticked = now
        if now - self._said > self.interval:
            self._said = now
            self._say("alive")
        if self.ended:
            return
        if self.listeners and now - self.began > self.arrival:
            missing = [index for index in range(self.count) if index not in self.came]
            names = ", ".join(map(str, missing[:20])) + (f" and {len(missing) - 20} more" if len(missing) > 20 else "")
            kind = "process" if len(missing) == 1 else "processes"
            self._end(1, [], f"{kind} {names} of {self.count} never came to {self.address} within {self.arrival:.0f} s")
        for peer in self.came.values():
            if not peer.done and now - peer.heard > self.heartbeat:
                peer.done = True
                silence = f"has not been heard of for {self.heartbeat:.0f} s: stopped, or its machine is gone"
                self._accuse(LOST, peer, 1, silence)
        self._find_stuck(now)
        if self._accused and now - min(when for _, when, *_ in self._accused) > GATHER:
            kind, _, index, code, why = min(self._accused)
            self._end(code, [index], f"process {index} ({self.came[index].name}) {why}" if kind == LOST else "")

    # Faults

    def _accuse(self, kind: int, peer: Peer, code: int, why: str) -> None:
        self._accused.append((kind, time.monotonic(), peer.index, code, why))

    def _fault(self, peer: Peer, code: int, what: str, follows: bool) -> None:
        self._accuse(FOLLOWS if follows else OWN, peer, code, what)

    def _find_stuck(self, now: float) -> None:
        """Of processes that wait for one another, the stuck one is behind; none is while that one has time left."""
        found = {i: peer.status for i, peer in self.came.items() if not peer.done}
        if not any(over for *_, over in found.values()):
            return
        least = min(polls for polls, *_ in found.values())
        behind = [i for i, (polls, *_) in found.items() if polls == least]
        behind = [i for i in behind if found[i][1] != COLLECTIVE] or behind
        if not all(found[i][3] for i in behind):
            return
        if self._since_stuck[0] != behind:  # what each has said last may be of some moments ago
            self._since_stuck = (behind, now)
        elif now - self._since_stuck[1] > 1.5 * self.interval:
            polls, activity, seconds, _ = found[behind[0]]
            who = " and ".join(f"{i} ({self.came[i].name})" for i in behind[:4])
            which = f"process{'es' * (len(behind) > 1)} {who}"
            self._end(1, behind[:4], f"{which} stuck for {seconds:.0f} s: {activity}; {polls} steps begun here", True)

    def _end(self, code: int, culprits: list[int], why: str, stuck: bool = False) -> None:
        self._verdict = ("end", code, culprits, why, stuck)
        self._say(*self._verdict)
        self.ended = True
        if self.listeners:
            self._stop_listening()

    # Agreement

    def _agree(self, peer: Peer, topic: str, digest: str) -> None:
        said = self._topics.setdefault(topic, {})
        said[peer.index] = digest
        if 0 not in said or (peer.index and digest == said[0] and len(said) < self.count):
            return
        others = [i for i, each in said.items() if each != said[0]]
        if others and topic not in self._given:
            self._given[topic] = {}
            for i in (0, others[0]):
                self.came[i].send("facts", topic)
        elif len(said) == self.count and not others:
            del self._topics[topic]
            self._say("agreed", topic)

    def _facts(self, peer: Peer, topic: str, facts: dict[str, Any]) -> None:
        given = self._given[topic]
        given[peer.index] = facts
        if len(given) < 2:
            return
        (here,), there = [facts for i, facts in given.items() if i], given[0]
        index = next(i for i in given if i)
        names = [name for name in {**there, **here} if here.get(name) != there.get(name)]
        pairs = [(name, _short(here.get(name)), _short(there.get(name))) for name in names[:10]]
        lines = [f"\n    {name}: {mine}, in process 0 {its}" for name, mine, its in pairs]
        more = f"\n    and {len(names) - 10} more" if len(names) > 10 else ""
        got = f"process {index} ({self.came[index].name}) differs from process 0 in{''.join(lines)}{more}"
        self._say("refused", topic, topic, got, "the same in all processes of a job")

    # Stopping

    def _stopped(self, peer: Peer, number: int) -> None:
        if self._signal:
            return
        self._signal = number
        if self.listeners:  # those that have not come yet find nobody
            self._leave()
        else:
            self._say("polls")

    def _leave(self) -> None:
        self._say("leave", 130 if self._signal == 2 else 75)
        self.ended = True

    def _polled(self, peer: Peer, polls: int, ready: bool) -> None:
        peer.polls = polls, ready
        said = [each.polls for each in self.came.values() if each.polls]
        if len(said) == self.count:
            if all(ready for _, ready in said):
                self._say("at", max(polls for polls, _ in said) + 1, self._signal)
            else:
                self._leave()


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
