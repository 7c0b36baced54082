"""Errors that a user can cause and fix. Knows nothing of any other room."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in what the user gave: a config field, a file, a command-line argument.

    The command line prints it as one message without a traceback and exits with code 2.

    Args:
      where: name of the wrong field (``optimizer.learning_rate``), file or argument.
      got: description of the value found there.
      allowed: description of allowed values; empty where ``got`` says it all.
      suggestion: something to try next; empty where ``allowed`` says it all.
    """

    def __init__(self, where: str, got: str, allowed: str = "", suggestion: str = ""):
        self.where, self.got, self.allowed, self.suggestion = where, got, allowed, suggestion
        super().__init__(str(self))

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.got}"]
        if self.allowed:
            lines.append(f"  allowed: {self.allowed}")
        if self.suggestion:
            lines.append(f"  try: {self.suggestion}")
        return "\n".join(lines)

    def __reduce__(self):  # other processes send errors back by pickle
        return type(self), (self.where, self.got, self.allowed, self.suggestion), vars(self)  # with its notes


def require(condition: bool, where: str, got: object, allowed: str, suggestion: str = "") -> None:
    """Raises UserError at the field ``where`` unless the condition holds."""
    if not condition:
        raise UserError(where, f"got {got}", allowed, suggestion)


def refuse(wrong: bool, where: str, got: str, allowed: str = "", suggestion: str = "") -> None:
    """Raises UserError, made of the other arguments, where something is wrong."""
    if wrong:
        raise UserError(where, got, allowed, suggestion)


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name most like ``name``, as ``did you mean 'x'?``, or an empty string if none is alike."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"did you mean {found[0]!r}?" if found else ""
