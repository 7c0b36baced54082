"""How far the preparation of a corpus is, for whoever shows it. Knows numbers; must not know how they are shown."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

_SHOW_SECONDS = 0.2

Doing = Literal["waiting", "tokenizing", "merging"]


@dataclass(frozen=True)
class Progress:
    """How far ``prepare`` is.

    Attributes:
      documents, tokens: tokenized so far.
      done, total: bytes of the source, about; ``total`` is 0 where it is not known.
      resumed: bytes of ``done`` that an earlier process had done before it was stopped.
      doing: what it is about: waiting for another process that prepares the same, tokenizing, merging.
      name: of the corpus.
      note: what the user should know before it begins; empty if nothing.
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
    """What is done of each part, added up and shown a few times a second.

    Args:
      name: of the corpus.
      show: gets the sums; None shows nothing.
      note: given with them, as in ``Progress``.
    """

    def __init__(self, name: str, show: Show | None, note: str = ""):
        self._name, self._show, self._note = name, show, note
        self._parts: dict[int, tuple[int, int, int]] = {}
        self._total = self._resumed = 0
        self._next = 0.0

    def expect(self, total: int) -> None:
        """There are so many bytes."""
        self._total = total

    def resume(self, part: int, documents: int, tokens: int, done: int) -> None:
        """An earlier process has done so much of ``part``."""
        self._parts[part] = (documents, tokens, done)
        self._resumed += done

    def advance(self, part: int, documents: int, tokens: int, done: int) -> None:
        """So much of ``part`` is done by now."""
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
