"""One of several holds a folder, on a disk and in buckets: races, dead holders, stopped ones, other machines."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from buckets import KINDS, storage
from tiny_runs import ROOT

from t5x_like.core.lock import LOCK, Lock, Lost
from t5x_like.core.storage import place

RENEWED, EXPIRES = 0.2, 1.5


class Holder:
    """A process that takes the lock when it is told to."""

    def __init__(self, where: str, environment: dict[str, str], machine: str = "", job: str = ""):
        command = [sys.executable, str(Path(__file__).with_name("lock_holder.py")), where, str(RENEWED), str(EXPIRES)]
        self.process = subprocess.Popen(
            command + [machine] * bool(machine), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, cwd=ROOT, env=os.environ | environment | {"PYTHONPATH": str(ROOT), "T5X_LIKE_JOB": job},
        )  # fmt: skip
        self.line()

    def line(self) -> str:
        return self.process.stdout.readline().strip()

    def tell(self) -> None:
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def ask(self) -> str:
        self.tell()
        return self.line()

    def end(self) -> str:
        """Gives the lock up; what was printed for the eye."""
        self.process.stdin.close()
        error = self.process.stderr.read()
        assert self.process.wait(20) == 0, error
        return "".join(line for line in error.splitlines(True) if "google_auth_provider" not in line)


@contextlib.contextmanager
def holders(kind: str, tmp_path: Path):
    """Function to a new holder of one folder; the folder."""
    made = []
    with storage(kind, f"lock{time.time_ns()}", tmp_path) as (where, environment):
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)

            def hold(machine: str = "", job: str = "") -> Holder:
                made.append(Holder(where, environment, machine, job))
                return made[-1]

            try:
                yield hold, place(where)
            finally:
                for each in made:
                    each.process.kill()
                    for pipe in (each.process.stdout, each.process.stderr, each.process.stdin):
                        with contextlib.suppress(OSError):
                            pipe.close()
                    each.process.wait()


@pytest.mark.parametrize("kind", KINDS)
def test_of_eight_that_start_at_once_one_wins(kind, tmp_path):
    with holders(kind, tmp_path) as (hold, folder):
        all_ = [hold() for _ in range(8)]
        for each in all_:
            each.tell()
        said = [each.line() for each in all_]
        winners = [line for line in said if line.startswith("held")]
        assert len(winners) == 1, said
        process = winners[0].split()[1]
        who = f"process {process} on {platform.node()} since 20"
        assert all(line.startswith(who) for line in said if line != winners[0]), said
        assert folder.children(LOCK) == ["1"]
        for each in all_:
            each.end()
        assert folder.children(LOCK) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_holder_of_this_machine_is_not_in_the_way(kind, tmp_path):
    with holders(kind, tmp_path) as (hold, folder):
        first, second = hold(), hold()
        assert first.ask().startswith("held")
        first.process.kill()
        first.process.wait()
        began = time.monotonic()
        assert second.ask().startswith("held") and time.monotonic() - began < 1
        assert folder.children(LOCK) == ["2"] and second.end() == "" and folder.children(LOCK) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_holder_on_another_machine(kind, tmp_path):
    """A living one refuses as soon as it was heard; a dead one does after a time, and is told of meanwhile."""
    with holders(kind, tmp_path) as (hold, folder):
        first, second, third = hold("far"), hold(), hold()
        assert first.ask().startswith("held")
        assert second.ask().startswith(f"process {first.process.pid} on far since")
        assert "on another machine; waiting up to 1.5 s for a sign of life" in second.end()
        first.process.kill()
        first.process.wait()
        began = time.monotonic()
        assert third.ask().startswith("held") and time.monotonic() - began >= EXPIRES
        said = third.end()
        assert "gave no sign of life; taking over" in said and f"process {first.process.pid} on far" in said


def test_an_earlier_start_of_the_same_job_is_dead(tmp_path):
    with holders("disk", tmp_path) as (hold, _):
        first, second = hold("far", "7"), hold("near", "7")
        assert first.ask().startswith("held")
        first.process.kill()
        began = time.monotonic()
        assert second.ask().startswith("held") and time.monotonic() - began < 1 and second.end() == ""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ended", [False, True])
def test_a_stopped_holder_that_goes_on_later_has_lost(kind, ended, tmp_path):
    """Whether the one that took over is still there, or has come to its end meanwhile."""
    with holders(kind, tmp_path) as (hold, _):
        first, second = hold("far"), hold()
        assert first.ask().startswith("held") and first.ask() == "good"
        first.process.send_signal(signal.SIGSTOP)
        assert second.ask().startswith("held")
        if ended:
            second.end()
        first.process.send_signal(signal.SIGCONT)
        said = first.ask()
        assert "this training has lost the folder: another took it over after" in said
        assert ended or f"process {second.process.pid} on {platform.node()}" in said
        assert ended or second.ask() == "good"
        first.end()
        assert ended or second.ask() == "good"


def test_a_folder_that_is_removed_does_not_end_the_holder(tmp_path, capsys):
    folder = place(tmp_path / "run")
    lock = Lock(folder, renewed=0.2, expires=5.0)
    assert lock.acquire() == ""
    folder.remove("")
    time.sleep(0.5)  # half-way between two signs of life
    lock.check()
    assert folder.children(LOCK) == ["1"]
    folder.remove("")
    other = Lock(folder, renewed=0.2, expires=5.0)
    folder.write(f"{LOCK}/1", other._record())  # another came before this one looked
    time.sleep(0.5)
    with pytest.raises(Lost, match=f"process {os.getpid()}"):
        lock.check()
    lock.release()
    assert capsys.readouterr().err == ""


def test_a_bucket_that_fails_for_a_while_is_told_once(tmp_path, capsys, monkeypatch):
    folder = place(tmp_path / "run")
    lock = Lock(folder, renewed=0.05, expires=5.0)
    assert lock.acquire() == ""

    def fail(*arguments):
        raise OSError("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(type(folder), "write", fail)
        time.sleep(0.4)
        lock.check()
    time.sleep(0.2)
    lock.check()
    lock.release()
    assert capsys.readouterr().err == f"WARNING: the lock on {folder} cannot be renewed: no answer; it is tried again\n"


def test_a_full_disk_has_a_lock_too(tmp_path, monkeypatch):
    folder = place(tmp_path / "run")
    original = type(folder).create

    def full(self, name, data):
        if data:
            raise OSError(28, "No space left on device")
        return original(self, name, data)

    monkeypatch.setattr(type(folder), "create", full)
    first = Lock(folder, renewed=60.0, expires=0.3)
    assert first.acquire() == "" and folder.read(f"{LOCK}/1") == b""
    said = []
    second = Lock(folder, say=said.append, renewed=0.1, expires=0.3)
    assert second.acquire() == "" and "a process that had no room to say its name" in said[0]
    with pytest.raises(Lost):
        time.sleep(0.2)
        first.check()
    first.release()
    second.release()
