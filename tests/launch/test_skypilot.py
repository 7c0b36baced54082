"""launch/skypilot.py with a stand-in of sky that plays the states of a managed job; and the script of its nodes, run
here. No cloud: that SkyPilot does with this YAML what it says is not shown here."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stand_ins import StandIns, assert_golden

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
GOLDEN = Path(__file__).parent / "golden"
sys.path.append(str(LAUNCH))
skypilot = importlib.import_module("skypilot")
SHAPE = ["--accelerators", "H100:8", "--nodes", "4", "--spot", "--mount", "/mnt=runs", "--directory", "/mnt/runs/t5"]
TRAIN = ["train", "t5_sotu", "train.steps=100"]


def queue(*states: str, name: str = "t5") -> str:
    """SkyPilot's table, the newest job first."""
    rows = [f"{9 - i}   -     {name}  1x[H100:8]  2 hrs ago  1h 2m  1h 1m  {i}  {s}  -" for i, s in enumerate(states)]
    head = "ID  TASK  NAME  REQUESTED  SUBMITTED  TOT. DURATION  JOB DURATION  #RECOVERIES  \x1b[32mSTATUS\x1b[0m  POOL"
    return "\n".join(["Fetching managed job statuses...", head, *rows, "8 -  other 1x[L4] 1h 1h 1h 0 RUNNING -", ""])


@pytest.fixture
def sky(tmp_path) -> StandIns:
    return StandIns(tmp_path / "bin", "sky")


def launch(sky: StandIns, *words: str) -> subprocess.CompletedProcess:
    return sky.run(LAUNCH / "skypilot.py", *words, cwd=sky.folder.parent)


def test_without_go_the_task_is_written_and_nothing_is_called(sky, tmp_path):
    done = launch(sky, *SHAPE, *TRAIN)
    assert done.returncode == 0 and sky.calls == [] and "not submitted" in done.stdout, done.stderr
    yaml = pytest.importorskip("yaml")
    task = yaml.safe_load((tmp_path / "runs/t5/launch/t5.sky.yaml").read_text())
    assert task["num_nodes"] == 4 and task["volumes"] == {"/mnt": "runs"}
    assert task["envs"] == {"JAX_PLATFORMS": "cuda,cpu", "T5X_LIKE_CACHE": "/mnt/cache"}
    assert task["resources"] == {
        "accelerators": "H100:8", "use_spot": True,
        "job_recovery": {"max_restarts_on_errors": 0, "recover_on_exit_codes": [75]},
    }  # fmt: skip
    launch(sky, "--mount", "/mnt=gs://runs", "--resource", "cpus=16+", *SHAPE[-2:], *TRAIN)
    task = yaml.safe_load((tmp_path / "runs/t5/launch/t5.sky.yaml").read_text())
    assert task["file_mounts"] == {"/mnt": {"source": "gs://runs", "mode": "MOUNT"}} and "accelerators" not in str(task)
    assert task["resources"]["cpus"] == "16+" and "JAX_PLATFORMS" not in task["envs"]


def test_submit_follow_recovery_and_cancel(sky):
    sky.answer("jobs queue", queue("SUCCEEDED"))
    sky.answer("jobs launch", "Managed Job ID: 10\n")
    done = launch(sky, *SHAPE, *TRAIN, "--go")
    assert done.returncode == 0 and "Managed Job ID: 10" in done.stdout, done.stderr
    sky.play.clear()
    down = {"err": "Could not connect to SkyPilot API server\n", "code": 1}
    states = ["PENDING", "STARTING", "RUNNING", "RECOVERING", "RUNNING", "SUCCEEDED"]
    sky.answer("jobs queue", down, *[queue(state, "FAILED") for state in states])
    sky.answer("jobs logs", "step 1\n", "step 2\n")
    sky.answer("jobs cancel", "Job with name 't5' scheduled to be cancelled.\n")
    done = launch(sky, "--poll", "0", "follow", "runs/t5")
    assert done.returncode == 0 and done.stdout == "step 1\nstep 2\n", done.stderr
    assert [line.split(": ")[1] for line in done.stderr.splitlines() if line.startswith("t5: ")] == states
    assert launch(sky, "cancel", "runs/t5").returncode == 0
    assert_golden(GOLDEN / "skypilot.txt", sky.calls)


@pytest.mark.parametrize(
    "state, code",
    [("PENDING", 0), ("RUNNING", 0), ("SUCCEEDED", 0), ("FAILED", 1), ("FAILED_NO_RESOURCE", 1), ("FAILED_SETUP", 1),
     ("CANCELLED", 2), ("", 2)],
)  # fmt: skip
def test_status(sky, state, code):
    sky.answer("jobs queue", queue(*[state] * bool(state)))
    done = launch(sky, "--name", "t5", "status", "t5_sotu")
    assert done.returncode == code and (state or "no such managed job") in done.stdout


def test_what_is_refused(sky, tmp_path):
    sky.answer("jobs queue", queue("RECOVERING"))
    done = launch(sky, *SHAPE, *TRAIN, "--go")
    assert done.returncode == 2 and "follow or cancel it" in done.stderr
    sky.play.clear()
    sky.answer("jobs queue", queue())
    sky.answer("jobs launch", {"err": "sky.exceptions.ResourcesUnavailableError: quota exceeded", "code": 1})
    done = launch(sky, *SHAPE, *TRAIN, "--go")
    assert done.returncode == 1 and "for a quota" in done.stderr and "Traceback" not in done.stderr
    done = launch(sky, *SHAPE[:-2], *TRAIN)
    assert done.returncode == 2 and "lost with its machine" in done.stderr
    done = launch(sky, "status", "gpt_sotu")
    assert done.returncode == 2 and "no job was submitted" in done.stderr
    (sky.folder / "sky").unlink()
    done = launch(sky, *SHAPE, *TRAIN, "--go")
    assert done.returncode == 2 and "sky: no such command" in done.stderr


NODE = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1"}


def script(program: str, restarts: int = 2) -> str:
    parser = skypilot.parser()
    options = parser.parse_args(["--restarts", str(restarts), "--", sys.executable, "-c", program])
    job = skypilot.jobs.parse(parser, options)
    return skypilot.task(options, job, "x")["run"].replace("* 10", "* 0")


@pytest.mark.parametrize("code, times", [(0, 1), (2, 1), (75, 1), (130, 1), (1, 3), (134, 3)])
def test_a_node_restarts_what_failed_and_nothing_else(tmp_path, code, times):
    program = f"open('{tmp_path}/starts', 'a').write('x'); raise SystemExit({code})"
    done = subprocess.run(["bash", "-c", script(program)], env={**os.environ, **NODE}, timeout=60)
    assert done.returncode == code and (tmp_path / "starts").read_text() == "x" * times


def test_a_node_tells_its_program_who_it_is_and_passes_sigterm_on(tmp_path):
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    program = f"import os, signal, sys, time; signal.signal(15, lambda *_: (time.sleep(0.3), sys.exit(75))); " \
              f"print(*[os.environ[n] for n in {names}], flush=True); time.sleep(60)"  # fmt: skip
    with subprocess.Popen(["bash", "-c", script(program)], env={**os.environ, **NODE}, stdout=subprocess.PIPE,
                          text=True) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline().split() == ["10.0.0.1:8476", "2", "1"]
        time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 75
