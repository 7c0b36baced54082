"""launch/slurm.py against stand-ins of Slurm's commands, which note their arguments and play states. The scripts that
it writes are files below golden/ (to make one anew: the command of its test, what stands between the first and the
last two lines), and are run by bash with a stand-in of srun. A real Slurm: test_real_slurm.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SLURM = Path(__file__).resolve().parents[2] / "launch" / "slurm.py"
GOLDEN = Path(__file__).with_name("golden")

# Stands for sbatch, squeue, scontrol, scancel, srun and t5x-like, by the name that it is called by. What a command
# answers is the next of the entries under its name in plays.json, the last one again and again: [exit code, text].
STAND_IN = """#!{python}
import json, os, pathlib, subprocess, sys
folder = pathlib.Path({folder!r})
name, words = pathlib.Path(sys.argv[0]).name, sys.argv[1:]
with (folder / "calls").open("a") as file:
    file.write(json.dumps([name, *words]) + "\\n")
if name == "srun":
    words = words[words.index("bash"):]
    count = int(os.environ["SLURM_NTASKS"])
    told = [dict.fromkeys(("SLURM_PROCID", "SLURM_LOCALID"), str(n)) for n in range(count)]
    tasks = [subprocess.Popen(words, env={{**os.environ, **each}}) for each in told]
    sys.exit(max(task.wait() for task in tasks))
if name == "t5x-like" and words[0] != "check":
    (folder / ("told-" + os.environ["JAX_PROCESS_ID"])).write_text(
        " ".join(os.environ[n] for n in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES")))
    name += os.environ["JAX_PROCESS_ID"]
plays = json.loads((folder / "plays.json").read_text())
answers = plays.get(name, [[0, ""]])
code, text = answers[0]
if len(answers) > 1:
    (folder / "plays.json").write_text(json.dumps(plays | {{name: answers[1:]}}))
print(text, file=sys.stderr if code else sys.stdout)
sys.exit(code)
"""


class Cluster:
    """A folder of stand-ins, what they are to answer, and what they were asked."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "bin").mkdir()
        for name in ("sbatch", "squeue", "scontrol", "scancel", "srun", "t5x-like"):
            path = folder / "bin" / name
            path.write_text(STAND_IN.format(python=sys.executable, folder=str(folder)))
            path.chmod(0o755)
        self.play(sbatch=[[0, "4242"]], squeue=[[0, ""]])
        self.environment = os.environ | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}

    def play(self, **answers) -> None:
        path = self.folder / "plays.json"
        before = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(before | {name.replace("_", "-"): each for name, each in answers.items()}))

    def calls(self, name: str) -> list[str]:
        path = self.folder / "calls"
        lines = map(json.loads, path.read_text().splitlines() if path.exists() else ())
        return [" ".join(words[1:]) for words in lines if words[0] == name]

    def slurm(self, *words: str, code: int = 0) -> str:
        done = subprocess.run([sys.executable, str(SLURM), *words], env=self.environment, capture_output=True,
                              text=True, cwd=self.folder, timeout=60)  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    def job(self, script: Path, restarts: int = 0, **more: str) -> tuple[int, str]:
        """Runs a script as Slurm would: its exit code and its log."""
        told = {"SLURM_JOB_ID": "4242", "SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "n[1-2]"}
        if restarts:
            told["SLURM_RESTART_COUNT"] = str(restarts)
        done = subprocess.run(["bash", str(script)], env={**self.environment, **told, **more}, capture_output=True,
                              text=True, cwd=self.folder, timeout=60)  # fmt: skip
        return done.returncode, done.stdout + done.stderr


@pytest.fixture
def cluster(tmp_path) -> Cluster:
    return Cluster(tmp_path)


LARGE = ("--nodes", "2", "--gpus", "8", "--time", "24:00:00", "--partition", "gpu", "--account", "me",
         "--sbatch=--mem=64G", "--setup", "source .venv/bin/activate", "train", "t5_1_1_base", "mesh.fsdp=-1",
         "name=it's a run")  # fmt: skip
SWEEP = ("--sweep", "optimizer.learning_rate=1e-3,2e-3", "--sweep", "train.seed=0,1", "--at-once", "2", "--no-check",
         "train", "t5_sotu", "train.steps=100")  # fmt: skip


@pytest.mark.parametrize(("name", "words"), [("slurm_job.sh", LARGE), ("slurm_sweep.sh", SWEEP),
                                             ("slurm_eval.sh", ("eval", "runs/mine"))])  # fmt: skip
def test_scripts_are_as_in_the_golden_files(cluster, name, words):
    shown = cluster.slurm(*words)
    assert shown.endswith("\n\nnot submitted: --go submits it\n") and not (cluster.folder / "runs").exists()
    text = shown[shown.index("#!/bin/bash") : -len("\nnot submitted: --go submits it\n")]
    assert text == (GOLDEN / name).read_text()
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0
    assert not cluster.calls("sbatch")


def test_it_submits_follows_and_tells_how_it_ended(cluster):
    states = [[0, "4242|PENDING|0:00|(Priority)"], [0, "4242|RUNNING|0:05|n[1-2]"], [1, "Invalid job id specified"]]
    cluster.play(squeue=states, scontrol=[[0, "JobId=4242 JobState=COMPLETED ExitCode=0:0"]])
    log = cluster.folder / "runs" / "t5_sotu" / "launch" / "slurm-4242.log"
    log.parent.mkdir(parents=True)
    log.write_text("step 1\nstep 2\n")
    said = cluster.slurm("--follow", "train", "t5_sotu", "--go")
    assert said.startswith("start runs/t5_sotu\n")
    assert "\nsubmitted job 4242; its log: runs/t5_sotu/launch/slurm-4242.log\n" in said
    assert said.endswith("step 1\nstep 2\njob 4242: COMPLETED (0)\n")
    assert cluster.calls("sbatch") == ["--parsable runs/t5_sotu/launch/slurm.sh"]
    assert len(cluster.calls("squeue")) == 3
    cluster.play(squeue=[[0, ""]], scontrol=[[0, "JobState=FAILED ExitCode=1:0"]])
    assert cluster.slurm("follow", "runs/t5_sotu", code=1).endswith("job 4242: FAILED (1)\n")


def test_status_of_each_state(cluster):
    assert "no job was submitted" in cluster.slurm("status", "t5_sotu", code=2)
    cluster.slurm("train", "t5_sotu", "--go")
    (cluster.folder / "runs" / "t5_sotu" / "checkpoints" / "40").mkdir(parents=True)
    for answer, said in {"4242|PENDING|0:00|(BeginTime)": "PENDING, 0:00, (BeginTime)",
                         "4242|RUNNING|1:05|n1": "RUNNING, 1:05, n1"}.items():  # fmt: skip
        cluster.play(squeue=[[0, answer]])
        assert cluster.slurm("status", "t5_sotu").startswith(f"job 4242: {said}\nruns/t5_sotu: latest checkpoint 40\n")
    cluster.play(squeue=[[1, "slurm_load_jobs error: Invalid job id specified"]])
    for answer, said in ([0, "JobState=PREEMPTED ExitCode=0:0"], "PREEMPTED (0)"), ([1, "Invalid job id"], "gone"):
        cluster.play(scontrol=[answer])
        assert f"job 4242: {said}\n" in cluster.slurm("status", "t5_sotu")


def test_refusals_are_said_and_leave_nothing(cluster):
    text = "sbatch: error: QOSMaxSubmitJobPerUserLimit\nBatch job submission failed: Job violates accounting/QOS policy"
    cluster.play(sbatch=[[1, text]])
    said = cluster.slurm("train", "t5_sotu", "--go", code=1)
    assert "error: refused for a quota or limit: sbatch --parsable" in said and "QOSMaxSubmit" in said
    assert not (cluster.folder / "runs").exists()
    cluster.play(sbatch=[[1, "sbatch: error: invalid partition specified: no"]])
    assert "invalid partition" in cluster.slurm("--partition", "no", "train", "t5_sotu", "--go", code=1)
    (cluster.folder / "bin" / "sbatch").unlink()
    cluster.environment["PATH"] = str(cluster.folder / "bin")
    assert "sbatch: no such command on this machine" in cluster.slurm("train", "t5_sotu", "--go", code=2)
    assert "no run file 'nowhere'" in cluster.slurm("train", "nowhere", code=2)
    assert "stands before the command" in cluster.slurm("train", "t5_sotu", "--nodes=2", code=2)
    assert "a field and its values" in cluster.slurm("--sweep", "train.seed", "train", "t5_sotu", code=2)
    assert not (cluster.folder / "runs").exists()


def test_a_run_is_not_submitted_twice_nor_when_it_is_complete(cluster):
    cluster.slurm("train", "t5_sotu", "--go")
    cluster.play(squeue=[[0, "4242|RUNNING|1:05|n1"]])
    assert "job 4242 is in the queue for runs/t5_sotu already (RUNNING)" in cluster.slurm(
        "train", "t5_sotu", "--go", code=2)  # fmt: skip
    cluster.play(squeue=[[0, ""]])
    (cluster.folder / "runs" / "t5_sotu" / "checkpoints" / "40").mkdir(parents=True)
    assert "is complete: 40 of 40" in cluster.slurm("train", "t5_sotu", "train.steps=40", "--go")
    assert "resume runs/t5_sotu from step 40 of 50" in cluster.slurm("train", "t5_sotu", "train.steps=50", "--go")
    cluster.slurm("--again", "train", "t5_sotu", "train.steps=40", "--go")
    assert len(cluster.calls("sbatch")) == 3


def test_cancel_lets_a_running_job_save_and_a_second_time_ends_it(cluster):
    cluster.slurm("train", "t5_sotu", "--go")
    cluster.play(squeue=[[0, "4242|PENDING|0:00|(Priority)"]])
    assert "job 4242 is cancelled" in cluster.slurm("cancel", "t5_sotu")
    assert cluster.calls("scancel") == ["4242"]
    mark = cluster.folder / "runs" / "t5_sotu" / "launch" / "slurm-4242.cancelled"
    mark.unlink()
    cluster.play(squeue=[[0, "4242|RUNNING|0:50|n1"]])
    assert "saves and ends" in cluster.slurm("cancel", "t5_sotu")
    assert cluster.calls("scancel")[1:] == ["--state=PENDING 4242", "--signal=TERM 4242"]
    cluster.play(**{"t5x-like0": [[75, "saved"]], "t5x-like1": [[75, "saved"]]})
    assert cluster.job(cluster.folder / "runs" / "t5_sotu" / "launch" / "slurm.sh")[0] == 0  # not started at all
    assert "is cancelled" in cluster.slurm("cancel", "t5_sotu")
    assert cluster.calls("scancel")[3:] == ["4242"] and not cluster.calls("scontrol")


@pytest.fixture
def script(cluster) -> Path:
    cluster.slurm("--nodes", "2", "--no-check", "train", "t5_sotu", "train.steps=100", "--go")
    cluster.play(scontrol=[[0, "n1\nn2"]])
    return cluster.folder / "runs" / "t5_sotu" / "launch" / "slurm.sh"


def plan(cluster: Cluster, first: list, second: list) -> None:
    cluster.play(**{"t5x-like0": [first], "t5x-like1": [second]})


def requeues(cluster: Cluster) -> int:
    return sum(call == "requeue 4242" for call in cluster.calls("scontrol"))


def test_the_job_tells_each_process_who_it_is_on_a_port_of_its_own(cluster, script):
    seen = []
    for restarts in (0, 1):
        plan(cluster, [0, "done"], [0, "done"])
        code, log = cluster.job(script, restarts)
        assert code == 0 and f"job 4242, start {restarts + 1}, 2 processes on n[1-2]" in log
        address, count = (cluster.folder / "told-1").read_text().split()
        assert count == "2" and (cluster.folder / "told-0").read_text() == f"{address} 2"
        assert address.startswith("n1:") and 61440 <= int(address[3:]) < 65536
        seen.append(address)
    assert seen[0] != seen[1] and seen[0] == f"n1:{61440 + 4242 % 4096}"
    assert cluster.calls("t5x-like")[0] == "train t5_sotu train.steps=100 --directory runs/t5_sotu"
    assert not requeues(cluster)


def test_processes_of_one_node_share_its_gpus(cluster):
    cluster.slurm("--gpus", "8", "--tasks-per-node", "2", "train", "t5_sotu", "--go")
    script = cluster.folder / "runs" / "t5_sotu" / "launch" / "slurm.sh"
    script.write_text(script.read_text().replace('"$@" & child', 'echo "ids: $JAX_LOCAL_DEVICE_IDS"; "$@" & child'))
    _, log = cluster.job(script)
    assert sorted(line for line in log.splitlines() if "ids: " in line) == ["ids: 0,1,2,3", "ids: 4,5,6,7"]
    assert "a multiple of --tasks-per-node 3" in cluster.slurm(
        "--gpus", "8", "--tasks-per-node", "3", "train", "t5_sotu", code=2)  # fmt: skip


def test_saved_is_requeued_without_an_end_and_failures_up_to_a_limit(cluster, script):
    for turn in range(4):  # more often than it may fail
        plan(cluster, [75, ""], [75, ""])
        code, log = cluster.job(script, turn)
        assert requeues(cluster) == turn + 1 and "job 4242: saved" in log
    for turn, (first, second) in enumerate([([1, ""], [1, ""]), ([0, ""], [137, ""]), ([137, ""], [75, ""])]):
        plan(cluster, first, second)
        code, log = cluster.job(script, 4 + turn)
        assert f"failure {turn + 1} of at most 3" in log and requeues(cluster) == 5 + turn, log
    (cluster.folder / "runs" / "t5_sotu" / "checkpoints" / "7").mkdir(parents=True)
    plan(cluster, [75, ""], [75, ""])  # with a checkpoint: counted anew
    cluster.job(script, 7)
    plan(cluster, [1, ""], [0, ""])
    for turn in range(1, 4):
        assert f"failure {turn} of" in cluster.job(script, 7 + turn)[1] and requeues(cluster) == 8 + turn
    code, log = cluster.job(script, 11)
    assert code == 1 and requeues(cluster) == 11 and "failure 4 of at most 3" in log


@pytest.mark.parametrize("code", [2, 130])
def test_a_mistake_is_not_tried_again(cluster, script, code):
    plan(cluster, [code, "error: train.steps"], [code, ""])
    assert cluster.job(script)[0] == code and not requeues(cluster)
    plan(cluster, [2, "error: train.steps"], [137, ""])  # killed by srun, because the other has ended
    assert cluster.job(script)[0] == 2 and not requeues(cluster)


def test_the_check_is_the_first_step_of_the_first_start(cluster):
    cluster.play(t5x_like=[[0, "usage"], [2, "no: the corpus is not there"]])
    said = cluster.slurm("--gpus", "4", "train", "t5_sotu", "--go", code=2)
    assert "the corpus is not there" in said and "error: not submitted" in said and not cluster.calls("sbatch")
    assert cluster.calls("t5x-like")[1].endswith(" --cluster slurm --topology gpu:4")
    cluster.play(t5x_like=[[0, ""]])
    cluster.slurm("train", "t5_sotu", "train.steps=100", "--go")
    (cluster.folder / "calls").unlink()
    script = cluster.folder / "runs" / "t5_sotu" / "launch" / "slurm.sh"
    cluster.play(scontrol=[[0, "n1"]], t5x_like=[[0, "usage"], [2, "no: the corpus is not there"]])
    code, log = cluster.job(script)
    assert code == 2 and "the corpus is not there" in log and not cluster.calls("srun")
    assert cluster.calls("t5x-like") == [
        "check --help", "check t5_sotu train.steps=100 --directory runs/t5_sotu --cluster slurm"
    ]  # fmt: skip
    cluster.play(t5x_like=[[2, "no such command"]])  # an older program
    assert cluster.job(script)[0] == 0 and len(cluster.calls("t5x-like")) == 5
    cluster.play(t5x_like=[[0, ""]])
    assert cluster.job(script, restarts=1)[0] == 0 and len(cluster.calls("t5x-like")) == 7


def test_a_sweep_is_an_array_of_the_runs_that_are_not_complete(cluster):
    done = cluster.folder / "runs" / "t5_sotu" / "learning_rate=1e-3,seed=1" / "checkpoints" / "100"
    done.mkdir(parents=True)
    said = cluster.slurm(*SWEEP, "--go")
    assert said.count("start runs/t5_sotu/learning_rate=") == 3 and said.count("is complete: 100 of 100") == 1
    script = cluster.folder / "runs" / "t5_sotu" / "launch" / "slurm.sh"
    assert "#SBATCH --array=0,2,3%2\n" in script.read_text()
    cluster.play(scontrol=[[0, "n1"]], **{"t5x-like0": [[75, ""]]})
    told = {"SLURM_ARRAY_JOB_ID": "4242", "SLURM_ARRAY_TASK_ID": "2", "SLURM_JOB_ID": "4244", "SLURM_NTASKS": "1"}
    cluster.job(script, **told)
    assert cluster.calls("t5x-like") == [
        "train t5_sotu train.steps=100 optimizer.learning_rate=2e-3 train.seed=0 "
        "--directory runs/t5_sotu/learning_rate=2e-3,seed=0"
    ]  # fmt: skip
    assert cluster.calls("scontrol")[-1] == "requeue 4242_2"


def test_told_to_stop_before_there_is_anything_to_save_is_no_failure(cluster, script):
    """SIGTERM to the shell of a task reaches its program, whose end by it counts as saved."""
    text = script.read_text()
    task = text[text.index("bash -c '\n") + len("bash -c '\n") : text.index("\n' bash")]
    told = {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "DEVICES_EACH": "0", "CODES": str(cluster.folder / "codes")}
    shell = ["bash", "-c", task, "bash", "sleep", "60"]
    process = subprocess.Popen(shell, env={**os.environ, **told})
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not children.read_text().split():
            pass
        process.terminate()
        assert process.wait(timeout=20) == 0
    finally:
        process.kill()
    assert (cluster.folder / "codes.0").read_text().split()[1] == "75"
