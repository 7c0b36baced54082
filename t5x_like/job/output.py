"""Standard streams that go on where nobody reads them any more, or where the disk behind them is full."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Any

NAMES = {1: "standard output", 2: "standard error"}


class _Output(io.RawIOBase):
    """A file descriptor; what cannot be written is lost, which standard error says once."""

    def __init__(self, number: int, name: str):
        self._number, self._name, self._lost = number, name, False

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return os.isatty(self._number)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        try:
            return os.write(self._number, data)
        except OSError as error:
            if not self._lost:
                self._lost = True
                with contextlib.suppress(OSError):
                    os.write(2, f"note: {self._name}: {error.strerror}; going on without it\n".encode())
            return len(data)


def lasting_stream(stream: Any) -> Any:
    """The same stream, which goes on; one of a test or a notebook, which is no file, as it is."""
    try:
        number = stream.fileno()
    except (AttributeError, OSError, ValueError):
        return stream
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    with contextlib.suppress(OSError):
        stream.flush()
    return _opened(number, NAMES.get(number, "output"), stream)


def _opened(number: int, name: str, like: io.TextIOWrapper) -> io.TextIOWrapper:
    buffer = io.BufferedWriter(_Output(number, name))  # closes nothing: the number is not its own
    return io.TextIOWrapper(buffer, like.encoding, like.errors, line_buffering=True)


def keep_stdout_to_python() -> None:
    """Gloo's C++ writes every connection to standard output, and has no switch for it: Python goes on with a copy."""
    try:
        if sys.stdout.fileno() != 1:
            return
    except (OSError, ValueError):  # not a file: captured by a test or a notebook
        return
    sys.stdout.flush()
    sys.stdout = _opened(os.dup(1), NAMES[1], sys.stdout)  # type: ignore[arg-type]  # has a fileno
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.close(silent)
