"""``t5x-like COMMAND ...``: errors and exit codes. Commands import what they need when they run."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import traceback
from collections.abc import Sequence

from t5x_like.cli import ends
from t5x_like.cli.arguments import parse
from t5x_like.core.errors import UserError
from t5x_like.core.loading import user_files
from t5x_like.core.mistakes import mistake

LASTING = ("train", "prepare", "eval")  # commands that a launcher runs as a job

def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0 done, 1 a fault of the job or of ours, 2 a user's mistake, 75 saved
    and to be run again, 130 Ctrl-C. In a job of several processes all end with it."""
    options = parse(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that is no text here is shown by its bytes
            stream.reconfigure(errors="backslashreplace")
    with ends.lasting() if options.command in LASTING else contextlib.nullcontext():
        return _main(options)


def _main(options: argparse.Namespace) -> int:
    try:
        if options.command in LASTING:
            ends.allow_files()
        from t5x_like.cli import commands  # light: each command imports what it needs

        return ends.leave(getattr(commands, options.command)(options))
    except UserError as error:
        return _refuse(error, options.traceback)
    except KeyboardInterrupt:
        return ends.fail(130, lambda: print("interrupted", file=sys.stderr, flush=True))
    except SystemExit as error:  # told to end where there is nothing to save
        return ends.leave(int(error.code or 0))
    except BrokenPipeError:  # the reader of our output has ended: head, say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        # A mistake in the user's own class, or a fault of ours: shown whole, and other processes are not waited for.
        if said := ends.fault(error):
            return ends.fail(1, lambda: print(f"error: {said}", file=sys.stderr, flush=True))
        if theirs := mistake(error, user_files()):
            return _refuse(theirs, options.traceback)
        return ends.fail(1, traceback.print_exc, error)


def _refuse(error: UserError, whole: bool) -> int:
    """Says what a user can mend."""

    def say() -> None:
        if whole:
            traceback.print_exc()
        print("\n".join([f"error: {error}", *getattr(error, "__notes__", ())]), file=sys.stderr, flush=True)

    return ends.fail(2, say)
