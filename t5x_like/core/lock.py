"""A lock on a folder, the same on a disk and in a bucket: whoever holds it says so again and again.

    FOLDER/.lock/7      JSON: who holds it, and how often it was said; written anew every ``RENEWED`` seconds

To take the lock is to create the next number, which exactly one of several can. To give it up is to remove the file. A
holder is dead if its process is gone from this machine, or it is an earlier start of the same job, or nothing is
written anew for ``EXPIRES`` seconds; then the next number is created, and a holder that finds a higher number than its
own has lost the folder (it was stopped, or cut off, for that long). No clock is compared with that of another machine.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import random
import secrets
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from t5x_like.core.errors import UserError
from t5x_like.core.storage import Place

LOCK = ".lock"
JOBS = ("T5X_LIKE_JOB", "SLURM_JOB_ID", "SKYPILOT_TASK_ID")  # set to the same by all starts of one submitted job
RENEWED = 10.0  # seconds between two signs of life, and at most until a second training is refused
EXPIRES = 90.0  # longer than a bucket's usual hiccup (45 s), and than a network disk's client shows the past (60 s)
TRIES = 20  # times to take it against others that try at once


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def job_name() -> str:
    """``NAME=VALUE`` of the submitted job that this start is of; empty where nothing says it."""
    return next((f"{name}={os.environ[name]}" for name in JOBS if os.environ.get(name)), "")


def machine() -> str:
    """Where a process number means one process: this boot of this machine, and the container in it."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()} {boot} {os.stat('/proc/self/ns/pid').st_ino}"
    return platform.node()


def this_process() -> dict[str, Any]:
    """What tells this process from all others, as JSON."""
    process = os.getpid()
    return {"process": process, "started": _started(process), "host": platform.node(), "machine": machine(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S %z")}  # fmt: skip


def lives(process: dict[str, Any]) -> bool | None:
    """Whether a process lives, by its ``this_process``; None where it is of another machine."""
    if process.get("machine") != machine():
        return None
    return bool(process.get("started")) and _started(int(process.get("process", 0))) == process["started"]


def _started(process: int) -> str:
    """When a living process of this machine was started; empty where there is none, ``?`` where that is not known."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return ""
    except OSError:
        pass
    return "" if Path("/proc/self/stat").is_file() else "?"


def _now() -> tuple[float, float]:
    """Seconds on two clocks: one may stand still while a machine sleeps, the other be set."""
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return time.time(), time.monotonic() if boot is None else time.clock_gettime(boot)


class Lost(UserError):
    """Another process has taken over what this one held."""


class Lock:
    """The lock on a folder.

    Args:
      folder: the folder.
      what: what holds it, in words: ``training``.
      job: ``job_name`` of this start, whose earlier starts are dead; empty: there are none.
      say: function of a message.
      renewed, expires: as ``RENEWED`` and ``EXPIRES``, the same for all that try.
    """

    def __init__(
        self, folder: Place, what: str = "training", job: str = "", say: Callable[[str], None] = _say,
        renewed: float | None = None, expires: float | None = None,
    ):  # fmt: skip
        self._folder, self._what, self._say = folder, what, say
        self._renewed, self._expires = renewed or RENEWED, expires or EXPIRES
        self._mine: dict[str, Any] = {**this_process(), "token": secrets.token_hex(8), "job": job, "renewals": 0}
        self._number, self._heard = 0, _now()
        self._lost: Lost | None = None
        self._said = False
        self._busy, self._ended = threading.RLock(), threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="t5x_like lock", daemon=True)

    def acquire(self) -> str:
        """Takes the lock and keeps it until ``release``. Waits only for a holder of whose life nothing is known.

        Returns:
          Who holds it instead, in words; empty: it is this one's.

        Raises:
          OSError: the folder cannot be read or written.
        """
        dead: set[int] = set()
        for _ in range(TRIES):
            numbers = self._numbers()
            top = max(numbers, default=0)
            if top and top not in dead:
                if who := self._living(top):
                    return who
                dead.add(top)
            if not self._create(f"{LOCK}/{top + 1}"):
                continue
            if set(self._numbers()) - {*numbers, top + 1}:  # of one that saw another past, in the same moment
                self._folder.remove(f"{LOCK}/{top + 1}")
                time.sleep(random.uniform(0.1, 1.0))
                continue
            self._number, self._heard = top + 1, _now()
            for number in numbers:
                self._folder.remove(f"{LOCK}/{number}")
            self._keeper.start()
            return ""
        return "several processes that start at once"

    def check(self) -> None:
        """Raises Lost where another has taken over. Looks itself only where nothing was heard for a while."""
        if self._number and self._lost is None and self._silence() > self._expires / 2:
            self._renew()
        if self._lost is not None:
            raise self._lost

    def release(self) -> None:
        """Gives the lock up; nothing where it is not held."""
        self._ended.set()
        if not self._number:
            return
        with self._busy, contextlib.suppress(OSError):
            self._folder.remove(f"{LOCK}/{self._number}")
            self._number = 0

    # Within

    def _numbers(self) -> list[int]:
        return [int(name) for name in self._folder.children(LOCK) if name.isdecimal()]

    def _read(self, number: int) -> dict[str, Any] | None:
        """What a holder says of itself: nothing where a full disk had no room for it; None where the file is gone."""
        try:
            found = json.loads(self._folder.read(f"{LOCK}/{number}"))
        except FileNotFoundError:
            return None
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def _record(self) -> bytes:
        return json.dumps(self._mine).encode()

    def _create(self, name: str) -> bool:
        try:
            return self._folder.create(name, self._record())
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
        return self._folder.create(name, b"")  # a full disk has room for a name: what filled it may be our own

    def _living(self, number: int) -> str:
        """Who holds it with that number, if it lives; waits until that is known."""
        if (held := self._read(number)) is None:
            return ""
        who = _words(held)
        if (living := lives(held)) is not None:
            return who if living else ""
        if held.get("job") and held["job"] == self._mine["job"]:
            return ""
        self._say(f"{self._folder}: {who} holds it, on another machine; waiting up to {self._expires:g} s for a sign "
                  "of life")
        until = time.monotonic() + self._expires
        while time.monotonic() < until:
            time.sleep(min(1.0, self._renewed / 4))
            if (found := self._read(number)) != held:
                return "" if found is None else who
        self._say(f"{self._folder}: {who} gave no sign of life; taking over")
        return ""

    def _silence(self) -> float:
        return max(now - heard for now, heard in zip(_now(), self._heard, strict=True))

    def _keep(self) -> None:
        while self._lost is None and not self._ended.wait(self._renewed):
            self._renew()

    def _renew(self) -> None:
        """Looks who holds the lock, and says that this one lives. What fails is tried again the next time."""
        with self._busy:
            if self._ended.is_set() or self._lost is not None:
                return
            try:
                taken = self._taker()
                if taken is None:
                    self._mine["renewals"] += 1
                    self._folder.write(f"{LOCK}/{self._number}", self._record())
                    self._heard, self._said = _now(), False
                    return
            except OSError as error:
                if not self._said:
                    self._said = True
                    self._say(f"WARNING: the lock on {self._folder} cannot be renewed: {error}; it is tried again")
                return
            silent = f"another took it over after {self._silence():.0f} s of silence"
            got = f"this {self._what} has lost the folder: {silent}{taken}"
            self._lost = Lost(str(self._folder), got, f"one {self._what} in a folder", "nothing: the other one goes on")

    def _taker(self) -> str | None:
        """Who has taken over, in words; None: nobody."""
        for attempt in range(2):
            numbers = self._numbers()
            held = self._read(self._number) if self._number in numbers else None
            if held and held.get("token") != self._mine["token"]:  # of one that found this folder removed
                return f": {_words(held)}"
            if max(numbers, default=0) <= self._number:
                # Removed by hand, or with the folder, it is written anew; but after a long silence by one that took it.
                is_gone = self._number not in numbers and self._silence() >= 0.9 * self._expires
                return "" if is_gone else None
            if not attempt:
                time.sleep(1.0)  # who came too late withdraws
        held = self._read(max(numbers))
        return f": {_words(held)}" if held else ""


def _words(held: dict[str, Any]) -> str:
    if "process" not in held:
        return "a process that had no room to say its name"
    return f"process {held['process']} on {held.get('host')} since {held.get('since')}"
