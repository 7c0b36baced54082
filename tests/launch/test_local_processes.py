"""launch/local.py: the processes learn who they are, a failure ends all of them, its exit code and signals are passed
on. No JAX in these processes; what two training processes do is in tests/train."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

LOCAL = Path(__file__).resolve().parents[2] / "launch" / "local.py"


def command(program: str, *options: str) -> list[str]:
    return [sys.executable, str(LOCAL), *options, "--", sys.executable, "-c", program]


def launched(program: str, *options: str) -> subprocess.CompletedProcess:
    return subprocess.run(command(program, *options), capture_output=True, text=True, timeout=60)


REPORT = """
import json, os, sys
names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "JAX_PLATFORMS", "JAX_NUM_CPU_DEVICES")
sys.stdout.write(json.dumps([os.environ.get(name) for name in names]) + "\\n")
"""


def test_each_process_is_told_who_it_is():
    done = launched(REPORT, "--processes", "3", "--devices", "4")
    assert done.returncode == 0, done.stderr
    addresses, counts, ids, platforms, devices = zip(*map(json.loads, done.stdout.splitlines()), strict=True)
    assert sorted(ids) == ["0", "1", "2"] and set(counts) == {"3"}
    assert len(set(addresses)) == 1 and addresses[0].startswith("127.0.0.1:")
    assert set(platforms) == {"cpu"} and set(devices) == {"4"}


def test_without_devices_the_platform_is_left_alone():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    done = subprocess.run(command(REPORT), capture_output=True, text=True, env=environment, timeout=60)
    assert [json.loads(line)[3:] for line in done.stdout.splitlines()] == [[None, None], [None, None]]


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_standard_streams_that_were_closed_before_do_not_end_it(tmp_path, closed):
    """As under a cron or a remote shell; the kernel gives their numbers to what is opened next."""
    program = f"print('hello'); open({str(tmp_path / 'came')!r}, 'w').close(); raise SystemExit(3)"
    words = command(program, "--processes", "1", "--restarts", "0")
    done = subprocess.run(["sh", "-c", f'exec "$@" {closed}', "sh", *words], timeout=60)
    assert done.returncode == 3 and (tmp_path / "came").exists()


def test_no_command_is_a_usage_error():
    done = subprocess.run([sys.executable, str(LOCAL), "--processes", "2"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "no command" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("end, code", [("sys.exit(3)", 3), ("os.kill(os.getpid(), 9)", 137)])
def test_one_that_fails_ends_the_others_and_its_code_is_the_jobs(tmp_path, end, code):
    program = f"""
import os, sys, time
if os.environ["JAX_PROCESS_ID"] == "1":
    {end}
open({str(tmp_path)!r} + "/began", "w").close()
time.sleep(120)
open({str(tmp_path)!r} + "/ended", "w").close()
"""
    began = time.monotonic()
    done = launched(program)
    assert done.returncode == code
    assert time.monotonic() - began < 40
    assert (tmp_path / "began").exists() and not (tmp_path / "ended").exists()


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_all_of_them_and_they_have_time_to_save(tmp_path, which):
    program = f"""
import os, signal, sys, time
mine = {str(tmp_path)!r} + "/" + os.environ["JAX_PROCESS_ID"]
def save(number, frame):
    time.sleep(0.5)
    open(mine + ".saved", "w").close()
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
signal.signal(signal.SIGINT, signal.SIG_IGN)
open(mine + ".ready", "w").close()
time.sleep(60)
"""
    process = subprocess.Popen(command(program))
    try:
        deadline = time.monotonic() + 30
        while len(list(tmp_path.glob("*.ready"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(which)
        assert process.wait(timeout=30) == 75
    finally:
        process.kill()
    assert sorted(path.name for path in tmp_path.glob("*.saved")) == ["0.saved", "1.saved"]


@pytest.mark.slow
def test_one_that_will_not_stop_is_killed_after_its_grace(tmp_path):
    program = f"""
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open({str(tmp_path)!r} + "/" + os.environ["JAX_PROCESS_ID"], "w").close()
time.sleep(60)
"""
    process = subprocess.Popen(command(program, "--grace", "1"))
    try:
        deadline = time.monotonic() + 30
        while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.terminate()
        assert process.wait(timeout=30) == 137
    finally:
        process.kill()


def test_ctrl_c_in_a_terminal_leaves_the_others_their_time_to_save(tmp_path):
    """One process ends at once, another saves for longer than a failed job is waited for. A terminal sends Ctrl-C to a
    whole process group; the processes are not in the launcher's."""
    program = f"""
import os, signal, sys, time
number = int(os.environ["JAX_PROCESS_ID"])
def save(*_):
    time.sleep(6.5 * number)
    open({str(tmp_path)!r} + f"/saved{{number}}", "w").close()
    os._exit(75)
signal.signal(signal.SIGTERM, save)
open({str(tmp_path)!r} + f"/ready{{number}}", "w").close()
time.sleep(60)
"""
    job = subprocess.Popen(command(program, "--grace", "30"), start_new_session=True)
    try:
        deadline = time.monotonic() + 30
        while not all((tmp_path / f"ready{n}").exists() for n in (0, 1)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(job.pid, signal.SIGINT)
        assert job.wait(timeout=30) == 75
    finally:
        job.kill()
    assert (tmp_path / "saved0").exists() and (tmp_path / "saved1").exists()


def test_no_processes_and_no_program_are_said(tmp_path):
    for wrong in (("--processes", "0"), ("--devices", "-1"), ("--grace", "nan"), ("--grace", "-1")):
        done = launched("", *wrong)
        assert done.returncode == 2 and " ".join(wrong) in done.stderr
    done = subprocess.run([sys.executable, str(LOCAL), "--", str(tmp_path / "none")], capture_output=True, text=True)
    assert done.returncode == 127 and "No such file" in done.stderr


def test_an_error_of_all_is_shown_once_and_that_of_one_as_well():
    same = "a warning\nerror: train.steps: got 0\n  allowed: 1 or more\n"
    done = launched(f"import sys; sys.stderr.write({same!r}); sys.exit(2)", "--processes", "3")
    assert done.returncode == 2 and done.stderr.count("error: train.steps") == done.stderr.count("allowed: 1") == 1
    assert done.stderr.count("a warning") == 3
    own = "import os, sys; sys.stderr.write(f'error: in {os.environ[\"JAX_PROCESS_ID\"]}\\n'); sys.exit(2)"
    done = launched(own)
    assert sorted(done.stderr.splitlines()) == ["error: in 0", "error: in 1"]


def test_what_cpp_says_of_a_lost_process_is_left_out_and_said_here():
    noise = """W1128 00:42:47.398956   23896 preemption_sync_manager.cc:147] Failed to retrieve preemption notice
Additional GRPC error information from remote target coordination_service while calling /xla:
:UNAVAILABLE:Stream removed (Socket closed)
=== Source Location Trace: ===
external/xla+/xla/tsl/distributed_runtime/rpc/grpc_util.h:89
. This is only expected if one of the tasks is unhealthy.

F1128 00:42:47.399284   23896 client.h:86] Terminating process because the JAX distributed service detected
W1128 00:42:47.399284   23896 other.cc:86] stays
"""
    program = f"""
import os, signal, sys, time
sys.stderr.write({noise!r})
sys.stderr.flush()
if os.environ["JAX_PROCESS_ID"] == "1":
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = launched(program)
    assert done.returncode == 137
    lines = done.stderr.splitlines()
    (told,) = (line for line in lines if "stays" not in line)
    assert told.startswith("process 1 has ended with 137 (SIGKILL: ") and len(lines) == 3
