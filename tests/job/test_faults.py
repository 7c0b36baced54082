"""Real processes of one job, in one of which something goes wrong: the others end within a second or the configured
time, one message says what and where, and the exit code tells a launcher whether to try again."""

from __future__ import annotations

import dataclasses
import json
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_runs import ROOT, environment, run_file, saved_steps, start, tiny_run

from t5x_like.report.ledger import read_ledger

FAULTY = Path(__file__).with_name("faulty.py")
DATA = "t5x_like.train.feed:to_devices"
QUICK = ("job.heartbeat_timeout=3", "job.initialization_timeout=20", "job.step_limit=2", "job.step_factor=5")
pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@dataclasses.dataclass
class Ended:
    """How one process ended: exit code, when, and what it printed."""

    code: int
    when: float
    text: str


def start_job(
    folder: Path, *assignments: str, count: int = 2, fault: dict | None = None, own: dict | None = None,
    host: str = "127.0.0.1", port: int = 0, only: tuple[int, ...] = (), command: list[str] | None = None,
) -> list[subprocess.Popen]:  # fmt: skip
    """The processes of one job of ``train``; ``own``: further assignments of one; ``only``: those that start."""
    config, started = run_file(tiny_run("llama", "train.steps=100_000", "train.batch_size=12")), []
    port = port or free_port()
    for index in only or range(count):
        train = ["train", config, "--directory", str(folder), *QUICK, *assignments]
        called = [sys.executable, str(FAULTY), *(command or train), *(own or {}).get(index, ())]
        told = environment(
            1, JAX_COORDINATOR_ADDRESS=f"{host}:{port}", JAX_NUM_PROCESSES=str(count), JAX_PROCESS_ID=str(index),
            JAX_DISABLE_MOST_OPTIMIZATIONS="1", FAULT=json.dumps(fault),
        )  # fmt: skip
        with (folder.parent / f"{index}.log").open("w") as out:
            started.append(subprocess.Popen(called, env=told, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT))
    return started


def ends(processes: list[subprocess.Popen], logs: list[Path], seconds: float = 90, stopped: int = -1) -> list[Ended]:
    """How all of them end, but one that is stopped, which is killed after the others."""
    found: dict[int, Ended] = {}
    deadline = time.time() + seconds
    try:
        while len(found) < len(processes):
            for index, process in enumerate(processes):
                if index == stopped and len(found) == len(processes) - 1:
                    process.kill()
                    process.wait()
                if index not in found and process.poll() is not None:
                    found[index] = Ended(process.returncode, time.time(), "")
            assert time.time() < deadline, "\n\n".join(log.read_text() for log in logs)
            time.sleep(0.01)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [dataclasses.replace(found[index], text=log.read_text()) for index, log in enumerate(logs)]


def run_job(folder: Path, *assignments: str, stopped: int = -1, **options) -> list[Ended]:
    processes = start_job(folder, *assignments, **options)
    indices = options.get("only") or range(options.get("count", 2))
    return ends(processes, [folder.parent / f"{index}.log" for index in indices], stopped=stopped)


def delay(ended: list[Ended]) -> float:
    """Seconds from the fault to the end of the last process."""
    text = "".join(each.text for each in ended)
    return max(each.when for each in ended) - float(re.findall(r"FAULT at ([\d.]+)", text)[0])


def noise(ended: list[Ended]) -> list[str]:
    """Lines of jax's C++, and stacks of it."""
    text = "\n".join(each.text for each in ended)
    return [line for line in text.splitlines() if re.match(r"[WEF]\d{4} |\*\*\* |Fatal Python", line)]


@pytest.mark.parametrize("what, process", [("raise", 1), ("raise", 0), ("thread", 1)])
def test_an_exception_in_one_ends_all_within_a_second_and_its_traceback_is_last(tmp_path, what, process):
    ended = run_job(tmp_path / "run", count=3, fault=dict(process=process, place=DATA, call=5, what=what))
    assert [each.code for each in ended] == [1, 1, 1], ended
    assert delay(ended) < 1.0
    assert ended[process].text.rstrip().endswith("ArithmeticError: planted")
    assert sum("Traceback" in each.text for each in ended) == 1 and not noise(ended)


@pytest.mark.parametrize("process", [0, 2])
def test_one_that_is_killed_is_named_at_once(tmp_path, process):
    ended = run_job(tmp_path / "run", count=3, fault=dict(process=process, place=DATA, call=5, what="SIGKILL"))
    assert delay(ended) < 1.5 and not any("Traceback" in each.text for each in ended)
    if process:  # of process 0 jax's C++ may know first, and aborts
        assert [each.code for each in ended] == [1, 1, -9], ended
        assert re.search(r"error: process 2 .*has ended without a word: killed", ended[0].text), ended[0].text
        assert not noise(ended)


@pytest.mark.parametrize("process", [0, 1])
def test_one_that_is_stopped_is_named_after_the_heartbeat(tmp_path, process):
    fault = dict(process=process, place=DATA, call=5, what="SIGSTOP")
    ended = run_job(tmp_path / "run", fault=fault, stopped=process)
    assert ended[1 - process].code == 1, ended
    said = ended[1 - process].text
    assert f"error: process {process} " in said and "has not been heard of for 3 s" in said, said
    assert 2 < delay(ended) < 8 and not noise(ended)


def test_one_that_is_stuck_is_named_with_its_stack(tmp_path):
    ended = run_job(tmp_path / "run", count=3, fault=dict(process=1, place=DATA, call=8, what="sleep"))
    assert [each.code for each in ended] == [1, 1, 1], ended
    assert re.search(r"error: process 1 \(.*\) stuck for \d+ s: data", ended[0].text), ended[0].text
    assert "time.sleep(600)  # the planted line" in ended[1].text
    assert delay(ended) < 12 and not noise(ended) and "stack" not in ended[0].text + ended[2].text
    assert "Timeout" not in "".join(each.text for each in ended)  # faulthandler's net behind
    faults = read_ledger(tmp_path / "run", "fault")  # what waits may see its connection end, too
    (fault,) = [each for each in faults if each["kind"] == "stuck"]
    assert fault["processes"] == [1] and "process 1 (" in fault["message"]


def test_one_that_keeps_python_from_running_is_noticed_too(tmp_path):
    ended = run_job(tmp_path / "run", fault=dict(process=1, place=DATA, call=5, what="hold"))
    assert [each.code for each in ended] == [1, 1], ended
    assert "Timeout (0:00:03)!" in ended[1].text and "in go_wrong" in ended[1].text
    assert "error: process 1 (" in ended[0].text and delay(ended) < 8 and not noise(ended)


def test_sigterm_ends_an_evaluation_by_command(tmp_path):
    """``eval`` has nothing to save: all of its processes leave at once."""
    config = run_file(tiny_run("llama", "train.steps=2", "train.batch_size=2", "data.corpus.heldout=0.5"))
    run = str(tmp_path / "run")
    (trained,) = ends(start_job(tmp_path / "run", count=1, command=["train", config, "--directory", run]),
                      [tmp_path / "0.log"])  # fmt: skip
    assert trained.code == 0, trained.text
    fault = dict(process=1, place="t5x_like.train.opened:OpenedRun.sums", call=3, what="SIGTERM")
    ended = run_job(tmp_path / "run", fault=fault, command=["eval", run])
    assert [each.code for each in ended] == [75, 75] and delay(ended) < 3 and not noise(ended), ended


def test_one_process_that_is_stuck_ends_itself(tmp_path):
    ended = run_job(tmp_path / "run", count=1, fault=dict(process=0, place=DATA, call=8, what="sleep"))
    assert ended[0].code == 1 and "error: stuck for" in ended[0].text and "# the planted line" in ended[0].text
    assert delay(ended) < 8


def test_a_long_phase_of_one_is_no_reason_to_end_those_that_wait_for_it(tmp_path):
    """The others wait in a step for longer than a step may take, while one saves, for which there is more time."""
    fault = dict(process=0, place="t5x_like.checkpoint.checkpoints:Checkpoints.save", call=1, what="sleep")
    processes = start_job(tmp_path / "run", "checkpoint.every.steps=5", fault=fault)
    logs = [tmp_path / f"{index}.log" for index in range(2)]
    deadline = time.time() + 60
    while "FAULT" not in logs[0].read_text():
        assert time.time() < deadline and all(each.poll() is None for each in processes), logs[0].read_text()
        time.sleep(0.05)
    time.sleep(6.0)  # three times step_limit
    alive = [each.poll() is None for each in processes]
    for each in processes:
        each.kill()
        each.wait()
    assert alive == [True, True], logs[1].read_text()


# Joining


def test_two_slices_of_two_tpu_hosts_are_one_job(tmp_path):
    """The environment that GKE gives to the hosts of two slices, on CPUs of one machine."""
    config, port = run_file(tiny_run("llama", "train.steps=2")), str(free_port())
    command = [sys.executable, "-m", "t5x_like", "train", config, "--directory", str(tmp_path / "run")]
    hosts = dict(
        TPU_WORKER_HOSTNAMES="127.0.0.1,127.0.0.1", MEGASCALE_NUM_SLICES="2",
        MEGASCALE_COORDINATOR_ADDRESS="127.0.0.1:8080", JAX_COORDINATOR_PORT=port, JAX_DISABLE_MOST_OPTIMIZATIONS="1",
    )  # fmt: skip
    processes = [start(command, 1, **hosts, TPU_WORKER_ID=str(i % 2), MEGASCALE_SLICE_ID=str(i // 2)) for i in range(4)]
    said = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, said
    assert f"job: process 0 of 4, process 0 at 127.0.0.1:{port} (from TPU hosts: TPU_WORKER_HOSTNAMES" in said[0]
    assert "4 x cpu in 4 processes" in said[0] and saved_steps(tmp_path / "run") == [2]


def test_ranks_that_never_start_are_named_within_the_time(tmp_path):
    began = time.time()
    ended = run_job(tmp_path / "run", "job.initialization_timeout=4", count=4, only=(0, 2))
    assert [each.code for each in ended] == [1, 1]
    said = "".join(each.text for each in ended)
    assert re.search(r"error: processes 1, 3 of 4 never came to 127.0.0.1:\d+ within 4 s", said), said
    assert said.count("error: ") == 1 and time.time() - began < 25 and not noise(ended)


def test_process_0_that_never_starts_a_port_in_use_and_a_name_that_does_not_resolve(tmp_path):
    port = free_port()
    short = "job.initialization_timeout=3"
    (ended,) = run_job(tmp_path / "run", short, only=(1,), port=port)
    assert ended.code == 1 and f"process 1 has not found process 0 at 127.0.0.1:{port} within 3 s" in ended.text
    (ended,) = run_job(tmp_path / "run", short, only=(1,), host="no-such-host.invalid")
    assert ended.code == 1 and "no-such-host.invalid" in ended.text and "does not resolve" in ended.text
    (ended,) = run_job(tmp_path / "run", short, only=(0,), host="no-such-host.invalid")
    assert ended.code == 1 and "does not resolve: no-such-host.invalid" in ended.text
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        (ended,) = run_job(tmp_path / "run", short, only=(0,), port=port)
    assert ended.code == 1 and f"process 0 cannot listen at 127.0.0.1:{port}: Address already in use" in ended.text
    assert "Traceback" not in ended.text and ended.text.count("error: ") == 1


def test_processes_that_differ_are_refused_by_the_field(tmp_path):
    for own, said in (("train.seed=7", r"train.seed: 7, in process 0 0"), ("mesh.tensor=2", "mesh.tensor: 2")):
        ended = run_job(tmp_path / "run", own={1: (own,)})
        assert [each.code for each in ended] == [2, 2], ended
        text = "".join(each.text for each in ended)
        assert "error: config: process 1 (" in text and re.search(said, text), text
        assert text.count("error: ") == 1


def test_processes_with_other_texts_are_refused(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.txt").write_text("words that nobody else has, " * 60)
    own = (f"data.corpus.source.paths={other}/a.txt", f"data.cache={tmp_path / 'cache'}")
    ended = run_job(tmp_path / "run", own={1: own})
    assert [each.code for each in ended] == [2, 2], ended
    text = "".join(each.text for each in ended)
    assert "error: data.corpus: process 1 (" in text and "all texts: " in text, text


# Signals


@pytest.mark.parametrize(
    "place, process, what, code",
    [
        ("t5x_like.train.data:prepare", 1, "SIGTERM", 75),
        ("t5x_like.train.run:compile_step", 0, "SIGHUP", 75),
        ("t5x_like.train.run:first_state", 1, "SIGINT", 130),
        ("t5x_like.train.run:first_state", 0, "SIGTERM", 75),
    ],
)
def test_where_there_is_nothing_to_save_all_leave_at_once(tmp_path, place, process, what, code):
    ended = run_job(tmp_path / "run", fault=dict(process=process, place=place, what=what))
    assert [each.code for each in ended] == [code, code], ended
    assert delay(ended) < 3 and not noise(ended) and not any("Traceback" in each.text for each in ended)


@pytest.mark.parametrize(
    "place, what, code",
    [
        ("t5x_like.train.data:prepare", "SIGTERM", 75),
        ("t5x_like.train.run:compile_step", "SIGHUP", 75),
        ("t5x_like.train.run:first_state", "SIGINT", 130),
    ],
)
def test_so_does_one_process_alone(tmp_path, place, what, code):
    (ended,) = run_job(tmp_path / "run", count=1, fault=dict(process=0, place=place, what=what))
    assert ended.code == code and delay([ended]) < 3 and "Traceback" not in ended.text, ended


@pytest.mark.parametrize(
    "place, call, process, what, code",
    [
        (DATA, 8, 1, "SIGTERM", 75),
        (DATA, 8, 0, "SIGINT", 130),
        ("t5x_like.train.opened:OpenedRun.sums", 4, 1, "SIGHUP", 75),  # in an evaluation of 20 steps
        ("t5x_like.checkpoint.checkpoints:Checkpoints.save", 1, 1, "SIGTERM", 75),
    ],
)
def test_a_signal_to_one_saves_one_step_in_all(tmp_path, place, call, process, what, code):
    more = ("data.corpus.heldout=0.5", "train.evaluate_every.steps=5", "checkpoint.every.steps=6", "train.batch_size=2",
            "evaluations.0.batches=1000", "data.input_length=16")  # fmt: skip
    ended = run_job(tmp_path / "run", *more, fault=dict(process=process, place=place, call=call, what=what, slow=0.05))
    assert [each.code for each in ended] == [code, code], ended
    step = saved_steps(tmp_path / "run")[-1]
    assert f"saved at step {step}; to resume" in ended[0].text and step < 20
    assert not noise(ended) and not any("Traceback" in each.text for each in ended)
    if "sums" in place:
        assert step == 5 and not re.search(r"5/100,000 .*held-out loss", ended[0].text)


def test_ctrl_c_twice_stops_at_once(tmp_path):
    processes = start_job(tmp_path / "run", fault=dict(process=1, place=DATA, call=8, what="sleep"))
    logs = [tmp_path / f"{index}.log" for index in range(2)]
    deadline = time.time() + 60
    while "FAULT" not in logs[1].read_text():
        assert time.time() < deadline
        time.sleep(0.02)
    for _ in range(2):
        processes[1].send_signal(signal.SIGINT)
        time.sleep(0.2)
    ended = ends(processes, logs, seconds=20)
    assert [each.code for each in ended] == [130, 130], ended
