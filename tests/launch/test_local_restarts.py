"""launch/local.py starts a job again: at once after 75, later after a failure, on a new port, up to a limit; it keeps a
log of each process; killed, it leaves nothing behind. No JAX in these processes."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

LOCAL = Path(__file__).resolve().parents[2] / "launch" / "local.py"

# Stands for t5x-like: notes each start of each process, then does what the next word of the plan says.
STAND_IN = """#!{python}
import json, os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[sys.argv.index("--directory") + 1])
plan = sys.argv[sys.argv.index("--plan") + 1].split(",")
index = int(os.environ["JAX_PROCESS_ID"])
folder.mkdir(parents=True, exist_ok=True)
mine = folder / f"starts-{{index}}"
with mine.open("a") as file:
    file.write(json.dumps([os.environ["JAX_COORDINATOR_ADDRESS"], time.monotonic(), os.getpid()]) + "\\n")
start = len(mine.read_text().splitlines())
while index and len((folder / "starts-0").read_text().splitlines() if (folder / "starts-0").exists() else ()) < start:
    time.sleep(0.01)
step = plan[start - 1]
print(f"start {{start}} of {{index}}: {{step}}")
print(f"a warning of {{index}}", file=sys.stderr)
if step.startswith("save"):
    (folder / "config.json").write_text("{{}}")
    (folder / "checkpoints" / step[4:]).mkdir(parents=True, exist_ok=True)
    sys.exit(1)
if step == "wait":
    signal.signal(signal.SIGTERM, lambda *_: (folder.joinpath(f"saved-{{index}}").touch(), os._exit(75)))
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (folder / f"ready-{{os.getpid()}}").touch()
    time.sleep(60)
if step == "killed":
    os.kill(os.getpid(), signal.SIGKILL) if index else time.sleep(60)
sys.exit(int(step))
"""


@pytest.fixture
def start(tmp_path):
    program = tmp_path / "bin" / "t5x-like"
    program.parent.mkdir()
    program.write_text(STAND_IN.format(python=sys.executable))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "own.py").touch()

    def start(plan: str, *options: str) -> subprocess.Popen:
        command = [sys.executable, str(LOCAL), *options, "--", str(program), "train", "own.py", "--plan", plan]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)

    return start


def done(process: subprocess.Popen) -> tuple[int, str, str]:
    try:
        out, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, out, errors


def starts(folder: Path, index: int = 0) -> list[list]:
    return [json.loads(line) for line in (folder / "runs" / "own" / f"starts-{index}").read_text().splitlines()]


def test_saved_starts_again_at_once_and_a_failure_later_on_another_port(start, tmp_path):
    code, out, errors = done(start("75,1,75,killed,0"))
    assert code == 0, errors
    noted = starts(tmp_path)
    assert len(noted) == len(starts(tmp_path, 1)) == 5
    assert len({address for address, *_ in noted}) > 1
    pauses = [after - before for (_, before, _), (_, after, _) in zip(noted, noted[1:], strict=False)]
    assert pauses[0] < 0.9 < pauses[1] and pauses[2] < 0.9 < pauses[3]
    assert errors.count("starting again (it has saved; at once)") == 2
    assert "failure 1 of at most 3" in errors and "failure 2 of at most 3" in errors
    assert "process 1 has ended with 137 (SIGKILL: " in errors
    assert sorted(out.split("\n"))[-4:] == ["start 4 of 0: killed", "start 4 of 1: killed", "start 5 of 0: 0",
                                            "start 5 of 1: 0"]  # fmt: skip


def test_it_gives_up_after_failures_without_a_new_checkpoint(start, tmp_path):
    code, _, errors = done(start("1,save4,1,1,0", "--restarts", "2", "--processes", "1"))
    assert code == 1 and len(starts(tmp_path)) == 4  # save4 began to count anew
    assert errors.count("failure 1 of at most 2") == 2 and errors.count("failure 2 of at most 2") == 1


@pytest.mark.parametrize(("plan", "options", "expected"), [
    ("2,0", (), 2), ("130,0", (), 130), ("75,0", ("--restarts", "0"), 75),
])  # fmt: skip
def test_a_mistake_is_not_tried_again(start, tmp_path, plan, options, expected):
    code, _, errors = done(start(plan, *options))
    assert code == expected and len(starts(tmp_path)) == 1 and "again" not in errors
    assert not (tmp_path / "runs" / "own" / "logs").exists()  # no run has begun


def test_each_process_has_its_log_at_each_start(start, tmp_path):
    code, out, errors = done(start("1,save4,75,0"))
    assert code == 0
    logs = {path.name: path.read_text() for path in (tmp_path / "runs" / "own" / "logs").iterdir()}
    assert sorted(logs) == [f"{n}-{index}.log" for n in (1, 2, 3, 4) for index in (0, 1)]
    assert sorted(logs["3-1.log"].splitlines()) == ["a warning of 1", "start 3 of 1: 75"]
    assert out.count("start 3 of 1: 75") == 1 and errors.count("a warning of 1") == 4


def wait_for(folder: Path, pattern: str, count: int) -> list[Path]:
    deadline = time.monotonic() + 30
    while len(found := list(folder.glob(f"runs/own/{pattern}"))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL])
def test_stopped_or_killed_it_leaves_no_process_behind(start, tmp_path, number):
    """Neither its processes, which save, nor what they have started and what heeds no SIGTERM."""
    process = start("wait,0", "--grace", "3")
    ready = wait_for(tmp_path, "ready-*", 4)
    process.send_signal(number)
    if number == signal.SIGKILL:
        process.wait(timeout=10)
        wait_for(tmp_path, "saved-*", 2)
    else:
        assert done(process)[0] == 75 and len(wait_for(tmp_path, "saved-*", 2)) == 2
    pids = [int(path.name.split("-")[1]) for path in ready]
    deadline = time.monotonic() + 15
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in pids if alive(pid)]
    assert len(starts(tmp_path)) == 1
    process.communicate(timeout=10)


def test_a_second_ctrl_c_ends_it_at_once(start, tmp_path):
    process = start("wait,0")
    pids = [int(path.name.split("-")[1]) for path in wait_for(tmp_path, "ready-*", 4)]
    os.kill(starts(tmp_path)[0][2], signal.SIGSTOP)  # one that can't save
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert done(process)[0] == 130
    assert not [pid for pid in pids if alive(pid)]


def test_a_dry_run_and_gpus(start, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,6")
    code, out, _ = done(start("0", "--gpus", "2", "--dry-run"))
    lines = out.splitlines()
    assert code == 0 and lines[0] == "start runs/own" and not (tmp_path / "runs").exists()
    assert [line.split("CUDA_VISIBLE_DEVICES=")[1][0] for line in lines[1:3]] == ["3", "5"]
    assert "logs: runs/own/logs/1-0.log" in lines[3]
    code, _, errors = done(start("0", "--gpus", "4"))
    assert code == 2 and "--gpus 4: 3 are there" in errors
