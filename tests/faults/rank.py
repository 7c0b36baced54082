"""One rank of a job under test: ``t5x-like`` with its arguments, which records what it trains on and fails on demand.

Environment: $RECORD, a file to which a line of JSON is added per batch read, step dispatched and save committed;
$FAULT, a file of JSON {rank, step, do}: the rank that comes to that step renames it, so that it acts once, and does
what ``do`` says; $PAUSE, seconds that each step takes longer. Not run by hand.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

FAILURES = (
    "exception", "exception in a thread", "stuck", "stuck in C", "clock an hour on", "clock an hour back",
)  # fmt: skip
RANK = int(os.environ.get("JAX_PROCESS_ID", "0"))


def record(**facts) -> None:
    line = json.dumps({"time": time.time(), "rank": RANK, "pid": os.getpid(), **facts}) + "\n"
    descriptor = os.open(os.environ["RECORD"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(descriptor, line.encode())  # one write: several processes add to the file
    os.close(descriptor)


def asked(step: int | None, *kinds: str) -> str | None:
    """What is to be done now, once in the job; None mostly."""
    path = Path(os.environ.get("FAULT") or "/nowhere")
    try:
        order = json.loads(path.read_text())
        if order["rank"] != RANK or order["do"] not in kinds or (step is not None and step < order["step"]):
            return None
        path.rename(path.with_suffix(".done"))
    except (OSError, ValueError):
        return None
    record(fault=order["do"], step=step)
    return order["do"]


def fail(do: str | None) -> None:
    if do == "exception":
        raise RuntimeError("an exception of rank's own")
    if do == "exception in a thread":
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()
    if do in ("clock an hour on", "clock an hour back"):
        right, shift = time.time, 3600 if do.endswith("on") else -3600
        time.time = lambda: right() + shift
    if do == "stuck":
        time.sleep(3600)
    if do == "stuck in C":  # with the interpreter's lock held, so that no other thread of Python runs
        ctypes.PyDLL(None).sleep(3600)


def main() -> int:
    from t5x_like.checkpoint import arrays
    from t5x_like.checkpoint.folder import Folder
    from t5x_like.cli.main import main as cli
    from t5x_like.train import run

    feed, compiling, read, commit = run.Feed, run.compile_step, arrays.read, Folder.commit

    def watched(reader):
        for step, rows in reader:
            digest = hashlib.sha256(b"".join(rows[name].tobytes() for name in sorted(rows))).hexdigest()
            record(batch=step, digest=digest)
            fail(asked(step, *FAILURES))
            yield step, rows

    def compile_step(setup, placement):
        step = compiling(setup, placement)

        def stepped(state, batch):
            result = step(state, batch)
            record(dispatched=True)
            time.sleep(float(os.environ.get("PAUSE", "0")))
            return result

        return stepped

    def read_once_wrong(*args, **kwargs):
        if asked(None, "failed read"):
            raise OSError(5, "Input/output error")
        return read(*args, **kwargs)

    def committed(folder, step, metadata):
        commit(folder, step, metadata)
        record(committed=step)

    run.Feed = lambda placement, reader, *more: feed(placement, watched(reader), *more)  # type: ignore[misc]  # a stand-in
    run.compile_step = compile_step
    arrays.read, Folder.commit = read_once_wrong, committed  # type: ignore[method-assign]  # stand-ins
    if asked(None, "port in use"):
        host, port = os.environ["JAX_COORDINATOR_ADDRESS"].split(":")
        holder = f"import socket, time; s = socket.create_server(({host!r}, {port})); print(flush=True); time.sleep(9)"
        clean = {name: value for name, value in os.environ.items() if name != "JOB_TOKEN"}
        command = [sys.executable, "-c", holder]
        subprocess.Popen(command, env=clean, stdout=subprocess.PIPE, start_new_session=True).stdout.readline()
    arguments = sys.argv[1:]
    if os.environ.get("UNSHARED"):
        place = arguments.index("--directory") + 1
        arguments[place] += f"-of-{RANK}"
    return cli(arguments)


if __name__ == "__main__":
    sys.exit(main())
