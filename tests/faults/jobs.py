"""Jobs of real processes on this machine under ``launch/local.py``, and what they leave."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import numpy as np
from tiny_runs import ROOT, checkpoint, run_file, tiny_run

HERE = Path(__file__).parent
STEPS, EVERY = 24, 6  # updates of a run, and between two checkpoints
FIELDS = (f"train.steps={STEPS}", f"checkpoint.every.steps={EVERY}", "train.batch_size=12")
LAUNCHER = (sys.executable, str(ROOT / "launch/local.py"))
WATCHED = ("job.step_limit=15", "job.heartbeat_timeout=10")  # what stands still is noticed soon here
OUTSIDE = {"tmp": "TMPDIR", "cache": "XDG_CACHE_HOME"}  # folders outside the run's, and what names them
STAYS = re.compile(r"config\.json|metrics\.jsonl|ledger|logs|checkpoints(/\d+|/\d+\.aside-\d+|/measured\.json)?")
PATIENCE = 240.0  # seconds after which a job that has not ended has failed its test


@dataclasses.dataclass
class Attempt:
    """One start: number of updates that it began with and came to; checkpoints that were whole when it began."""

    first: int
    end: int
    whole: tuple[int, ...]


@dataclasses.dataclass
class Job:
    """One run in one folder, started as often as the test needs.

    Attributes:
      folder: where everything lies: ``run``, the record, the order of a fault.
      processes, devices: number of processes, and of devices of each.
      fields: more assignments of the command line.
    """

    folder: Path
    processes: int = 2
    devices: int = 2
    directory: Path = Path()
    fields: tuple[str, ...] = WATCHED
    token: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)
    launcher: subprocess.Popen | None = None
    said: str = ""

    def __post_init__(self):
        for name in OUTSIDE:
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        if self.directory == Path():
            self.directory = self.folder / "run"
        fields = (*FIELDS, f"mesh.data={self.processes * self.devices}")
        self.config = run_file(tiny_run("llama", *fields), f"faults_{self.processes}_{self.devices}")

    def start(self, restarts: int = 4, pause: float = 0.05, **more: str) -> None:
        environment = os.environ | {
            "RECORD": str(self.folder / "record"), "FAULT": str(self.folder / "fault"), "PAUSE": str(pause),
            "JOB_TOKEN": self.token, "PYTHONPATH": str(ROOT), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            **{variable: str(self.folder / name) for name, variable in OUTSIDE.items()}, **more,
        }  # fmt: skip
        command = [
            *LAUNCHER, "--processes", str(self.processes), "--devices", str(self.devices), "--restarts", str(restarts),
            "--grace", "60", "--", sys.executable, str(HERE / "rank.py"), "train", self.config,
            "--directory", str(self.directory), *self.fields,
        ]  # fmt: skip
        if self.launcher is not None:
            self.launcher.wait(10)  # it has ended, or was killed
        with (self.folder / "output").open("a") as output:
            self.launcher = subprocess.Popen(
                command, env=environment, stdout=output, stderr=subprocess.STDOUT, text=True, start_new_session=True
            )

    def order(self, rank: int, step: int, do: str) -> None:
        """Has a rank fail by itself."""
        (self.folder / "fault").write_text(json.dumps({"rank": rank, "step": step, "do": do}))

    def wait(self, seconds: float = PATIENCE) -> int:
        """The exit code; what was said is in ``said``. A job that does not end is ended, and fails the test."""
        assert self.launcher is not None
        try:
            code = self.launcher.wait(seconds)
        except subprocess.TimeoutExpired:
            self.end()
            raise AssertionError(f"the job has not ended after {seconds:.0f} s:\n{self.text()[-4000:]}") from None
        self.said = self.text()
        return code

    def text(self) -> str:
        return (self.folder / "output").read_text(errors="replace")

    def end(self) -> None:
        """Ends all that is left of the job."""
        for pid in [*self.living(), *([self.launcher.pid] if self.launcher and self.launcher.poll() is None else [])]:
            try:
                os.kill(pid, signal.SIGCONT)
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        if self.launcher is not None:
            self.launcher.wait(10)

    def living(self) -> list[int]:
        """Ids of the processes of the job that live, but the launcher's."""
        token, found = f"JOB_TOKEN={self.token}".encode(), []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    mine = token in (entry / "environ").read_bytes()
                    dead = b") Z " in (entry / "stat").read_bytes()
                except OSError:
                    continue
                if mine and not dead and not (self.launcher and int(entry.name) == self.launcher.pid):
                    found.append(int(entry.name))
        return found

    def working(self) -> list[int]:
        """Those of ``living`` that train: not the launcher's own helper."""
        return [pid for pid in self.living() if b"local.py" not in command_line(pid)]

    def ranks(self) -> dict[int, int]:
        """Rank to process id, of those that have recorded something and live."""
        living = set(self.living())
        return {line["rank"]: line["pid"] for line in self.record() if line["pid"] in living}

    def record(self) -> list[dict]:
        path = self.folder / "record"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    def wait_until(self, met, what: str, seconds: float = 120.0) -> None:
        """Returns when ``met()``; a job that ends before is a failure."""
        deadline = time.monotonic() + seconds
        while not met():
            assert self.launcher is not None and self.launcher.poll() is None, f"ended before {what}:\n{self.text()}"
            assert time.monotonic() < deadline, f"{what} did not come:\n{self.text()}"
            time.sleep(0.02)

    def wait_for_steps(self, count: int) -> None:
        """Returns when every rank of the present attempt has dispatched ``count`` steps."""

        def reached() -> bool:
            done: dict[int, int] = {}
            living = set(self.living())
            for line in self.record():
                if "dispatched" in line and line["pid"] in living:
                    done[line["rank"]] = done.get(line["rank"], 0) + 1
            return len(done) == self.processes and min(done.values()) >= count

        self.wait_until(reached, f"step {count}")

    # What it has trained on

    def stream(self) -> dict[tuple[int, int], set[str]]:
        """(step, rank) to the digests of what that rank has read for it, in all attempts."""
        found: dict[tuple[int, int], set[str]] = {}
        for line in self.record():
            if "batch" in line:
                found.setdefault((line["batch"], line["rank"]), set()).add(line["digest"])
        return found

    def attempts(self) -> list[Attempt]:
        """Of every process of rank 0 that has read a batch, in order of time."""
        found: dict[int, Attempt] = {}
        whole: list[int] = []
        for line in self.record():
            if "committed" in line:
                whole.append(line["committed"])
            elif line["rank"] == 0 and "batch" in line:
                found.setdefault(line["pid"], Attempt(line["batch"], line["batch"], tuple(whole)))
            elif line["rank"] == 0 and "dispatched" in line:
                found[line["pid"]].end += 1
        return list(found.values())

    def lost(self) -> int:
        """Number of steps that were made and lost, at most at one restart."""
        return max([before.end - after.first for before, after in itertools.pairwise(self.attempts())], default=0)

    def arrays(self) -> dict[str, np.ndarray]:
        return checkpoint(self.directory)

    def leftovers(self) -> list[str]:
        """What should not be there after the end: processes, unfinished saves and other files of a run, and anything in
        the folders for temporary files and caches. (Of the caches of tokens and programs, tests have their own.)"""
        left = [f"process {pid}" for pid in self.living()]
        left += [str(path) for name in OUTSIDE for path in (self.folder / name).rglob("*")]
        inside = [*self.directory.iterdir(), *(self.directory / "checkpoints").iterdir()]
        names = [str(path.relative_to(self.directory)) for path in inside]
        return left + [name for name in names if not STAYS.fullmatch(name)]


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def beside(directory: Path) -> list[Path]:
    """Files of a run's folder that are no checkpoint: config, metrics, ledger, what was measured."""
    found = [directory / "config.json", directory / "metrics.jsonl", directory / "checkpoints" / "measured.json"]
    found += (directory / "ledger").iterdir()
    return sorted(path for path in found if path.is_file() and path.stat().st_size)


def damageable(directory: Path) -> list[Path]:
    """Files with the bits of arrays of the latest checkpoint."""
    steps = (path for path in (directory / "checkpoints").iterdir() if path.name.isdigit())
    latest = max(steps, key=lambda path: int(path.name))
    return [path for path in sorted(latest.rglob("*")) if path.is_file() and path.stat().st_size]
