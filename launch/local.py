#!/usr/bin/env python3
"""Runs one job as several processes on this machine, and starts it again when it was stopped or has failed.

    python launch/local.py --processes 2 --devices 4 -- t5x-like train t5_sotu mesh.fsdp=2

With ``--devices n`` every process gets n virtual CPU devices, to try meshes without accelerators; with ``--gpus n``
there is one process for each of n GPUs; without both each process sees what jax finds. The processes find one another
through JAX_COORDINATOR_ADDRESS (a free port of this machine, another at each start), JAX_NUM_PROCESSES and
JAX_PROCESS_ID. It runs at once; ``--dry-run`` shows what would run.

Signals: SIGTERM, SIGHUP and Ctrl-C reach all processes as SIGTERM, on which they save and exit with code 75; what still
runs after ``--grace`` seconds is killed, after a second Ctrl-C at once. If one fails, the others, which would wait in
vain, are ended after 5 seconds. A job that ended with 75 without this launcher having been told to stop starts again at
once, a failed one with growing pauses, up to ``--restarts`` failures in a row without a new checkpoint. If the launcher
itself is killed, a process that watches it (``watch``) stops the others in the same way.

What the processes print is shown, and kept whole in DIRECTORY/logs/START-PROCESS.log. An error that all of them print
is shown once, and what jax's C++ says of a lost process not at all: it is said here. Standard library only: copy it and
``job.py``, and edit.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from typing import IO

import job

# Lines of jax's C++ about a process that it cannot reach, and their continuations.
LOST = re.compile(
    r"[WEF]\d{4} .*(coordination_service|preemption_sync_manager|client\.h)|\*\*\* Begin|:?[A-Z_]+: ?(Stream|Failed)"
    r"|:[A-Z_]+:|Additional GRPC|=== Source Location|external/xla|\. This is only expected|RPC: /|$"
)
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def environment(index: int, count: int, port: int, devices: int, gpus: list[str]) -> dict[str, str]:
    """What process ``index`` of ``count`` is given in addition to this environment."""
    found = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(count),
        "JAX_PROCESS_ID": str(index),
        "JAX_COORDINATOR_BIND_ADDRESS": f"127.0.0.1:{port}",  # reachable from this machine only
    }
    if devices:
        found.update({"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)})
    if gpus:
        found["CUDA_VISIBLE_DEVICES"] = gpus[index]
    return found


def gpus(asked: str) -> list[str]:
    """The names of the GPUs to use: a number of them, or all; of those in CUDA_VISIBLE_DEVICES if that is set."""
    if not asked:
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name for name in visible.split(",") if name]
    if not visible:
        names = [str(n) for n in range(len(re.findall(r"^GPU \d+", job.outside(["nvidia-smi", "-L"]), re.M)))]
    count = len(names) if asked == "all" else int(asked) if asked.isdigit() else 0
    if not 0 < count <= len(names):
        raise job.LaunchError(f"--gpus {asked}: {len(names)} are there; a number from 1 to that, or all")
    return names[:count]


class Log:
    """What one process printed. It is kept in memory until the run has begun, because a directory in which no run could
    begin stays as it was; ``close`` writes it if the process has failed."""

    def __init__(self, directory: str, start: int, index: int):
        self.directory, self.path = directory, os.path.join(directory, "logs", f"{start}-{index}.log")
        self.lines: list[str] = []
        self.file: IO[str] | None = None
        self.lock = threading.Lock()

    def add(self, line: str) -> None:
        with self.lock:
            self.lines.append(line)
            if self.file or os.path.exists(os.path.join(self.directory, "config.json")):
                self.write()

    def write(self) -> None:
        with contextlib.suppress(OSError):  # a full disk is the run's to tell
            if self.file is None and self.directory and "://" not in self.directory:
                os.makedirs(os.path.dirname(self.path), exist_ok=True)
                self.file = open(self.path, "a", encoding="utf-8", errors="replace")
            if self.file is not None:
                self.file.write("".join(self.lines))
                self.file.flush()
        self.lines = []

    def close(self, code: int) -> None:
        with self.lock:
            if self.lines and code not in (job.COMPLETE, job.MISTAKE, job.SAVED, job.INTERRUPTED):
                self.write()
            if self.file is not None:
                with contextlib.suppress(OSError):  # a full disk
                    self.file.close()


def next_start(directory: str) -> int:
    """The number of the next start, by the logs of those before."""
    with contextlib.suppress(OSError):
        names = (name.split("-")[0] for name in os.listdir(os.path.join(directory, "logs")))
        return 1 + max((int(name) for name in names if name.isdigit()), default=0)
    return 1


def show(text: str, to: IO[str]) -> None:
    with contextlib.suppress(OSError, ValueError):  # nobody reads any more: the job goes on
        print(text, end="", file=to, flush=True)


def pass_on_output(stream: IO[str], log: Log) -> None:
    """Copies a process's standard output to ours and to its log."""
    for line in stream:
        log.add(line)
        show(line, sys.stdout)


def pass_on_errors(stream: IO[str], log: Log, said: set[str]) -> None:
    """Copies a process's standard error to its log and to ours, there without what ``LOST`` matches; an error that
    another process has ``said`` too, to its last line, is left out."""
    error: list[str] = []
    for line in stream:
        log.add(line)
        if error or line.startswith(("error: ", "Traceback ")):
            error.append(line)
        elif not LOST.match(line):
            show(line, sys.stderr)
    text = "".join(line for line in error if not LOST.match(line))
    if text not in said:
        said.add(text)
        show(text, sys.stderr)


def exit_code(returncode: int) -> int:
    """What a shell would call it: 128 + the signal for a process that a signal ended."""
    return returncode if returncode >= 0 else 128 - returncode


def telling(returncode: int) -> int:
    """Order of the exit codes of processes that ended together: the cause first, what follows of it last."""
    if returncode in (job.MISTAKE, job.SAVED, -signal.SIGABRT):  # aborted: by jax, which has lost another process
        return {job.MISTAKE: 0, job.SAVED: 3}.get(returncode, 4)
    return 1 if returncode < 0 else 2


def name_end(index: int, returncode: int) -> str:
    """How process ``index`` ended, for people."""
    text = f"process {index} has ended with {exit_code(returncode)}"
    if returncode >= 0:
        return text
    why = ": killed from outside, or for want of memory" if returncode == -signal.SIGKILL else ""
    with contextlib.suppress(ValueError):
        text += f" ({signal.Signals(-returncode).name}{why})"
    return text


def signal_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # it has ended
        os.killpg(pid, number)


def watch(grace: float) -> tuple[int, IO[str]]:
    """Starts a process that stops the job if this one is killed, and reads until then which processes run: returns its
    number and the pipe that ``+pid`` and ``-pid`` are written to. A process killed with us between its start and that
    line is not seen: some microseconds."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < 3:
        pass  # a standard stream that was closed when we were started would be our pipe
    os.close(descriptor)
    reading, writing = os.pipe()
    watcher = os.fork()
    if watcher:
        os.close(reading)
        return watcher, os.fdopen(writing, "w", buffering=1)
    os.close(writing)
    os.setsid()  # a kill of our process group is not one of its
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
    for descriptor in range(3):
        os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
    running: set[int] = set()
    with os.fdopen(reading) as lines:
        for line in lines:
            (running.add if line[0] == "+" else running.discard)(int(line[1:]))
    for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, 0.0)):
        for pid in running:
            signal_group(pid, number)
        deadline = time.monotonic() + seconds
        while any(map(is_group, running)) and time.monotonic() < deadline:
            time.sleep(0.1)
    os._exit(0)


def is_group(pid: int) -> bool:
    try:
        os.killpg(pid, 0)
    except OSError:
        return False
    return True


class Local:
    """One job on this machine: its processes at a start, and what it was told."""

    def __init__(self, work: job.Job, options: argparse.Namespace, names: list[str]):
        self.work, self.options, self.gpus = work, options, names
        self.processes: list[subprocess.Popen[str]] = []
        self.told = 0  # signals to stop
        self.identity = os.environ.get("T5X_LIKE_JOB") or uuid.uuid4().hex  # the same at each start
        self.deadline: float | None = None  # when to kill what still runs
        self.watcher, self.pipe = watch(options.grace)
        for number in STOPS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores it
                signal.signal(number, self.stop)

    def stop(self, number: int, frame: object) -> None:
        self.told += number == signal.SIGINT or not self.told
        now = time.monotonic()
        self.deadline = now if self.told > 1 else self.deadline or now + self.options.grace
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)

    def start(self, index: int, port: int, log: Log, said: set[str]) -> list[threading.Thread]:
        """Starts one process, in a session of its own: a terminal's Ctrl-C comes to us only. Returns the threads that
        read what it prints."""
        told = environment(index, self.options.processes, port, self.options.devices, self.gpus)
        new = subprocess.Popen(
            self.work.words, env={**os.environ, "PYTHONUNBUFFERED": "1", "T5X_LIKE_JOB": self.identity, **told},
            start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
        )  # fmt: skip
        self.processes.append(new)
        print(f"+{new.pid}", file=self.pipe)
        readers = [threading.Thread(target=pass_on_output, args=(new.stdout, log), daemon=True),
                   threading.Thread(target=pass_on_errors, args=(new.stderr, log, said), daemon=True)]  # fmt: skip
        for reader in readers:
            reader.start()
        return readers

    def ended(self) -> list[int | None]:
        """The return code of each process so far. With one that has failed go the processes that it has started."""
        for process in self.processes:
            if process.returncode is None and process.poll() is not None:
                print(f"-{process.pid}", file=self.pipe)
                if process.returncode:
                    signal_group(process.pid, signal.SIGKILL)
        return [process.returncode for process in self.processes]

    def once(self, start: int) -> int:
        """Starts the processes and waits for their end: 0, or the exit code of the first that ended otherwise."""
        port, said, self.processes, readers = free_port(), {""}, [], []
        logs = [Log(self.work.directory, start, index) for index in range(self.options.processes)]
        for index, log in enumerate(logs):
            if not self.told:
                readers += self.start(index, port, log, said)
        code, running = 0, True
        while running:
            ended = self.ended()
            running = None in ended
            failed = sorted(((index, each) for index, each in enumerate(ended) if each), key=lambda f: telling(f[1]))
            if failed and not code:
                index, code = failed[0]
                if code not in (job.SAVED, job.MISTAKE):  # which say themselves what there is to say
                    show(name_end(index, code) + "\n", sys.stderr)
                # 75: it was told to stop and has saved, and so will the others; anything else, and they wait in vain.
                seconds = self.options.grace if code == job.SAVED else 5.0
                self.deadline = self.deadline or time.monotonic() + seconds
            if self.deadline is not None and time.monotonic() > self.deadline:
                for process in self.processes:
                    if process.returncode is None:
                        signal_group(process.pid, signal.SIGKILL)
            time.sleep(0.1 if running else 0.0)
        for reader in readers:
            reader.join(timeout=5)
        for log in logs:
            log.close(code)
        return exit_code(code)

    def run(self) -> int:
        """Starts the job until it is complete, can't be started again, or is told to stop; returns its exit code."""
        directory = self.work.directory
        restarts = job.Restarts(self.options.restarts)
        while True:
            code = self.once(next_start(directory))
            self.deadline = self.deadline if self.told else None
            pause = None if self.told else restarts.wait(code, job.latest_step(directory))
            if pause is None:
                break
            counted = f"failure {restarts.failures} of at most {restarts.limit} without a new checkpoint"
            why = f"{counted}; in {pause:.0f} s" if pause else "it has saved; at once"
            show(f"starting again ({why})\n", sys.stderr)
            until = time.monotonic() + pause
            while time.monotonic() < until and not self.told:
                time.sleep(0.1)
            if self.told:
                break
        return job.INTERRUPTED if self.told > 1 else code

    def close(self) -> None:
        self.pipe.close()
        os.waitpid(self.watcher, 0)


def shown(work: job.Job, options: argparse.Namespace, names: list[str]) -> str:
    """What would run."""
    lines = [job.decide(work).said]
    for index in range(options.processes):
        told = environment(index, options.processes, 0, options.devices, names)
        words = [f"{name}={value}" for name, value in told.items()]
        lines.append(shlex.join([*words, *work.words]).replace("127.0.0.1:0", "127.0.0.1:PORT"))
    if work.directory:
        lines.append(f"logs: {Log(work.directory, next_start(work.directory), 0).path} ...")
    return "\n".join([*lines, f"started again after at most {options.restarts} failures without a new checkpoint"])


def main() -> int:
    parser = argparse.ArgumentParser(description="Run one job as several processes on this machine.")
    parser.add_argument("--processes", type=int, help="number of processes (default 2, or that of --gpus)")
    parser.add_argument("--devices", type=int, default=0, help="virtual CPU devices of each process; 0: what there is")
    parser.add_argument("--gpus", default="", metavar="N", help="one process for each of N GPUs, or of 'all'")
    parser.add_argument("--grace", type=float, default=120.0, help="seconds to save in after being told to stop")
    parser.add_argument("--restarts", type=int, help="failures in a row without a new checkpoint, after which to give "
                        "up; 0: never start again (default 3 for train and prepare, else 0)")
    parser.add_argument("--dry-run", action="store_true", help="show what would run")
    job.add_options(parser, go="")
    options = parser.parse_args()
    work = job.parse(parser, options)
    if options.restarts is None:
        options.restarts = 3 if work.command in job.RESUMING else 0
    names = gpus(options.gpus)
    options.processes = len(names) or 2 if options.processes is None else options.processes
    if options.processes < 1 or names and options.processes != len(names):
        parser.error(f"--processes {options.processes}: {'as many as --gpus' if names else 'at least 1'}")
    for name in ("devices", "restarts"):
        if getattr(options, name) < 0:
            parser.error(f"--{name} {getattr(options, name)}: 0 or more")
    if not 0 <= options.grace < float("inf"):
        parser.error(f"--grace {options.grace}: seconds, 0 or more")
    if options.dry_run:
        print(shown(work, options, names))
        return 0
    local = Local(work, options, names)
    try:
        return local.run()
    except OSError as error:
        print(f"error: {work.words[0]}: {error.strerror}", file=sys.stderr)
        return 127
    finally:
        local.close()


if __name__ == "__main__":
    job.leave(main)
