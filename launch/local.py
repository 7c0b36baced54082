#!/usr/bin/env python3
"""Runs one job as several processes on this machine.

    python launch/local.py --processes 2 --devices 4 -- t5x-like train t5_sotu mesh.fsdp=2

With ``--devices n`` every process gets n virtual CPU devices, to try meshes without accelerators; without it each
process sees what jax finds. The processes find one another through JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
JAX_PROCESS_ID. SIGTERM and Ctrl-C reach all of them as SIGTERM, on which they save and exit with code 75. If one fails,
the others are ended. An error that all of them print is shown once, and what jax's C++ says of a lost process not at
all: it is said here. Standard library only: copy and edit.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import IO

SAVED = 75  # exit code: saved, run me again
# Lines of jax's C++ about a process that it cannot reach, and their continuations.
LOST = re.compile(
    r"[WEF]\d{4} .*(coordination_service|preemption_sync_manager|client\.h)|\*\*\* Begin|:?[A-Z_]+: ?(Stream|Failed)"
    r"|:[A-Z_]+:|Additional GRPC|=== Source Location|external/xla|\. This is only expected|RPC: /|$"
)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def environment(index: int, count: int, port: int, devices: int) -> dict[str, str]:
    """What process ``index`` of ``count`` is started with."""
    found = os.environ | {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(count),
        "JAX_PROCESS_ID": str(index),
        "JAX_COORDINATOR_BIND_ADDRESS": f"127.0.0.1:{port}",  # reachable from this machine only
    }
    if devices:
        found |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    return found


def pass_on(stream: IO[str], said: set[str]) -> None:
    """Copies a process's standard error to ours, without what ``LOST`` matches; an error that another process has
    ``said`` too, to its last line, is left out."""
    error: list[str] = []
    for line in stream:
        if error or line.startswith(("error: ", "Traceback ")):
            error.append(line)
        elif not LOST.match(line):
            print(line, end="", file=sys.stderr, flush=True)
    text = "".join(line for line in error if not LOST.match(line))
    if text not in said:
        said.add(text)
        print(text, end="", file=sys.stderr, flush=True)


def exit_code(returncode: int) -> int:
    """What a shell would call it: 128 + the signal for a process that a signal ended."""
    return returncode if returncode >= 0 else 128 - returncode


def run(command: list[str], count: int, devices: int, grace: float) -> int:
    """The exit code of the job: 0, or that of the first process that ended otherwise (128 + n if signal n ended it)."""
    port = free_port()
    processes: list[subprocess.Popen] = []
    readers: list[threading.Thread] = []
    said: set[str] = {""}
    told = False
    deadline: float | None = None

    def end(number: int, frame: object) -> None:
        nonlocal told, deadline
        told = True
        deadline = deadline or time.monotonic() + grace
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    for index in range(count):
        if not told:
            # A session of its own: a terminal's Ctrl-C comes here only, and reaches the processes as SIGTERM.
            new = subprocess.Popen(
                command, env=environment(index, count, port, devices), start_new_session=True, stderr=subprocess.PIPE,
                text=True, errors="replace",
            )  # fmt: skip
            processes.append(new)
            readers.append(threading.Thread(target=pass_on, args=(new.stderr, said), daemon=True))
            readers[-1].start()
    code, running = 0, True
    while running:
        ended = [process.poll() for process in processes]
        running = None in ended
        failed = [(index, each) for index, each in enumerate(ended) if each]
        if failed and not code:
            index, code = failed[0]
            if code not in (SAVED, 2):  # 2: it has said itself what the user's mistake is
                print(f"process {index} has ended with {exit_code(code)}", file=sys.stderr, flush=True)
            # 75: it was told to stop and has saved, and so will the others; anything else, and they wait in vain.
            deadline = deadline or time.monotonic() + (grace if code == SAVED else 5.0)
        if deadline is not None and time.monotonic() > deadline:
            for process in processes:
                if process.poll() is None:
                    process.kill()
        time.sleep(0.1 if running else 0.0)
    for reader in readers:
        reader.join(timeout=5)
    return exit_code(code)


def main() -> int:
    parser = argparse.ArgumentParser(description="Run one job as several processes on this machine.")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--devices", type=int, default=0, help="virtual CPU devices of each process; 0: what there is")
    parser.add_argument("--grace", type=float, default=120.0, help="seconds to save in after being told to stop")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND ...")
    options = parser.parse_args()
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        parser.error("no command: end with -- t5x-like train CONFIG")
    if options.processes < 1:
        parser.error(f"--processes {options.processes}: at least 1")
    if options.devices < 0:
        parser.error(f"--devices {options.devices}: 0 or more")
    if not 0 <= options.grace < float("inf"):
        parser.error(f"--grace {options.grace}: seconds, 0 or more")
    try:
        return run(command, options.processes, options.devices, options.grace)
    except OSError as error:
        print(f"error: {command[0]}: {error.strerror}", file=sys.stderr)
        return 127


if __name__ == "__main__":
    sys.exit(main())
