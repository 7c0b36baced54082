"""How a command ends: told to, by a fault, or with nobody left to read what it prints. Loads no JAX."""

from __future__ import annotations

import contextlib
import errno
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from t5x_like.core.errors import refuse
from t5x_like.job.line import Fault, Line
from t5x_like.job.line import leave as leave_now
from t5x_like.job.output import lasting_stream

LEAST_FILES = 64  # of one process; a tiny run with data in its own process opens 30
NO_FILES = "Too many open files"


def _line() -> Line | None:
    joined = sys.modules.get("t5x_like.job.join")  # one that is not loaded has joined nothing
    return joined.line() if joined else None


def leave(code: int) -> int:
    """The exit code of a command that has ended as it should; of several processes the others are told."""
    if line := _line():
        line.close(code)
        if code:
            leave_now(code)  # an orderly exit would wait for the others
    return code


def fail(code: int, say: Callable[[], Any], error: Exception | None = None) -> int:
    """The exit code, after ``say``; of several processes the others end first, and only one of them says it."""
    if line := _line():
        jax = sys.modules["jax"]
        follows = isinstance(error, jax.errors.JaxRuntimeError)  # a collective whose other side is gone, perhaps
        line.fail(code, type(error).__name__, follows)
        say()
        leave_now(code)
    say()
    return code


def fault(error: BaseException) -> str:
    """What a fault of the job or of the machine says in one message; empty for any other error."""
    if isinstance(error, Fault):
        return str(error)
    chain: BaseException | None = error
    while chain is not None:
        if (isinstance(chain, OSError) and chain.errno in (errno.EMFILE, errno.ENFILE)) or NO_FILES in str(chain):
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            return f"no file can be opened any more: the limit is {limit} (ulimit -n)\n  try: ulimit -n 65536"
        chain = chain.__cause__ or chain.__context__
    return ""


def allow_files() -> None:
    """Lets this process open as many files as the system does. Raises UserError where these are too few for a run."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, hard), hard))
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    refuse(0 <= limit < LEAST_FILES, "ulimit -n", f"{limit}: a run has more files open than that",
           f"{LEAST_FILES} or more", "ulimit -n 65536")


@contextlib.contextmanager
def lasting() -> Iterator[None]:
    """What holds for a command that runs for long: SIGTERM and SIGHUP end it with exit code 75 where nothing else
    catches them, and it goes on where nobody reads its output."""
    before = {}

    def end(number: int, frame: FrameType | None) -> None:
        if line := _line():
            line.stop(number)  # all end, by their threads
        else:
            leave_now(75)

    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup
                before[number] = signal.signal(number, end)
    except ValueError:  # not the main thread: somebody else's signals
        before.clear()
    streams = sys.stdout, sys.stderr
    ours = sys.stdout, sys.stderr = lasting_stream(sys.stdout), lasting_stream(sys.stderr)
    try:
        yield
    finally:
        for name, stream, mine in zip(("stdout", "stderr"), streams, ours, strict=True):
            if getattr(sys, name) is mine:  # else joining has put another in its place
                mine.flush()
                setattr(sys, name, stream)
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
