"""Progress of the preparation of a corpus. Knows numbers; must not know how they are shown."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

_SHOW_SECONDS = 0.2

Doing = Literal["waiting", "tokenizing", "merging"]


@dataclass(frozen=True)
class Progress:
    """Progress of ``prepare``.

    Attributes:
      documents, tokens: numbers tokenized so far.
      done, total: approximate bytes of the source; a ``total`` of 0 is unknown.
      resumed: bytes of ``done`` that an earlier, stopped process had done.
      doing: current activity: waiting for another process that prepares the same, tokenizing, merging.
      name: name of the corpus.
      note: message to the user before it begins; empty: none.
    """

    documents: int
    tokens: int
    done: int = 0
    total: int = 0
    resumed: int = 0
    doing: Doing = "tokenizing"
    name: str = ""
    note: str = ""


Show = Callable[[Progress], None]


class Tally:
    """What is done of each part, added up and shown a few times a second; of use to several threads at once.

    Args:
      name: name of the corpus.
      show: function of the sums; None shows nothing.
      note: message given with them, as in ``Progress``.
    """

    def __init__(self, name: str, show: Show | None, note: str = ""):
        self._name, self._show, self._note = name, show, note
        self._parts: dict[int, tuple[int, int, int]] = {}
        self._total = self._resumed = 0
        self._next = 0.0
        self._lock = threading.RLock()

    def expect(self, total: int) -> None:
        """Sets the total to ``total`` bytes."""
        self._total = total

    def resume(self, part: int, documents: int, tokens: int, done: int) -> None:
        """Counts what an earlier process has done of ``part``."""
        self._parts[part] = (documents, tokens, done)
        self._resumed += done

    def advance(self, part: int, documents: int, tokens: int, done: int) -> None:
        """Sets what is done of ``part`` so far."""
        with self._lock:
            self._parts[part] = (documents, tokens, done)
            if time.monotonic() >= self._next:
                self.say("tokenizing")

    def say(self, doing: Doing) -> None:
        """Shows the sums now."""
        self._next = time.monotonic() + _SHOW_SECONDS
        if self._show is not None:
            documents, tokens, done = (sum(part[i] for part in self._parts.values()) for i in range(3))
            progress = Progress(documents, tokens, done, self._total, self._resumed, doing, self._name, self._note)
            self._show(progress)
