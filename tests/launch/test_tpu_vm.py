"""launch/tpu_vm.py with a stand-in of gcloud that plays the states of a queued resource and of the job on it; and its
scripts for the hosts, run here. No TPU VM: that gcloud does with these lines what they say is not shown here."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import textwrap
import time
from pathlib import Path

import pytest
from stand_ins import StandIns, assert_golden

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
GOLDEN = Path(__file__).parent / "golden"
sys.path.append(str(LAUNCH))
tpu_vm = importlib.import_module("tpu_vm")
TRAIN = ["--directory", "/mnt/runs/t5", "train", "t5_sotu", "train.steps=100"]
NOT_FOUND = {"err": "ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: Resource not found\n", "code": 1}
REACH = {"err": "ssh: connect to host 1.2.3.4 port 22: Connection refused\n", "code": 255}


@pytest.fixture
def gcloud(tmp_path) -> StandIns:
    found = StandIns(tmp_path / "bin", "gcloud")
    (tmp_path / "bin" / "git").symlink_to(shutil.which("git") or "git")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "pyproject.toml").write_text("")
    subprocess.run(["git", "init", "--quiet", str(tmp_path / "source")], check=True)
    return found


def launch(gcloud: StandIns, *words: str, shape=("--slices", "2", "--spot")) -> subprocess.CompletedProcess:
    where = ["--zone", "us-east5-b", "--topology", "v6e:4x4", "--source", str(gcloud.folder.parent / "source"), *shape]
    options = [*where, "--setup", "sudo mount 10.0.0.2:/share /mnt", "--poll", "0", *words]
    return gcloud.run(LAUNCH / "tpu_vm.py", *options, cwd=gcloud.folder.parent)


def plays(gcloud: StandIns, states: list, job: list) -> None:
    """What is answered about the queued resource, and about the job where that is ACTIVE."""
    gcloud.answer("queued-resources describe", *states)
    gcloud.answer("ask.sh", *job)
    gcloud.answer("job.log", "step 99\nstep 100\n")
    gcloud.answer("tpu-vm describe", "10.0.0.5\n")
    gcloud.answer(" (create|delete|scp|ssh) ", "")


def verbs(gcloud: StandIns) -> list[str]:
    """What was done, questions left out."""
    return [call.split()[4] for call in gcloud.calls if not any(w in call for w in ("describe", "ask.sh", "job.log"))]


def test_created_installed_run_preempted_created_anew_and_complete(gcloud, tmp_path):
    plays(
        gcloud,
        [NOT_FOUND, "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE", "ACTIVE", "SUSPENDING", "ACCEPTED", "ACTIVE"],
        ["new", "running", "new", "running", "75", "running", "0"],
    )
    done = launch(gcloud, *TRAIN, "--go")
    assert done.returncode == 0, done.stderr
    assert verbs(gcloud) == ["create", "scp", "ssh", "ssh", "ssh", "delete", "create", "scp", "ssh", "ssh", "ssh",
                             "ssh", "ssh", "delete"]  # the last two ssh: the restart after 75  # fmt: skip
    assert "WAITING_FOR_RESOURCES" in done.stderr and "exit code 75" in done.stderr
    assert done.stdout.splitlines()[1:] == ["step 99", "step 100", "exit code 0; the log: runs/t5/launch/t5.log"]
    assert (tmp_path / "runs/t5/launch/t5.log").read_text() == "step 99\nstep 100\n"
    calls = [re.sub(r"(?<= scp )\S+", "ARCHIVE", call) for call in gcloud.calls]
    assert_golden(GOLDEN / "tpu_vm.txt", calls)


def test_one_slice_is_a_node_and_may_be_kept(gcloud):
    plays(gcloud, [NOT_FOUND, "ACTIVE"], ["new", "0"])
    done = launch(gcloud, "--project", "p", "--reserved", "--keep", *TRAIN, "--go", shape=())
    assert done.returncode == 0, done.stderr
    assert verbs(gcloud) == ["create", "scp", "ssh", "ssh"]
    create = next(call for call in gcloud.calls if " create " in call)
    assert "--node-id=t5" in create and "--reserved" in create and "--project=p" in create and "--spot" not in create
    assert any("tpu-vm describe t5 " in call for call in gcloud.calls)


def test_the_same_command_watches_a_job_that_runs(gcloud):
    plays(gcloud, ["ACTIVE"], ["running", "running", "0"])
    assert launch(gcloud, *TRAIN, "--go").returncode == 0
    assert verbs(gcloud) == ["delete"]


def test_what_an_earlier_job_left_does_not_count(gcloud):
    plays(gcloud, ["ACTIVE"], ["2", "running", "0"])
    assert launch(gcloud, *TRAIN, "--go").returncode == 0
    assert verbs(gcloud) == ["scp", "ssh", "ssh", "ssh", "delete"]


def test_all_starts_of_one_submission_are_told_so(gcloud, tmp_path):
    """By T5X_LIKE_JOB in what the hosts get: the same where TPUs are created anew and where the command is typed again
    to watch on; another once the job has ended, was cancelled, or is gone."""
    (gcloud.folder / "gcloud").rename(gcloud.folder / "played")
    (gcloud.folder / "gcloud").write_text(textwrap.dedent(f"""\
        #!/bin/sh
        case "$*" in *" scp "*) for word; do case $word in *.tar.gz) /bin/cp "$word" {tmp_path}/sent-$$.tar.gz;; esac
        done;; esac
        exec {sys.executable} -c "$(/usr/bin/tail -n +2 {gcloud.folder}/played)" "$@"
        """))
    (gcloud.folder / "gcloud").chmod(0o755)
    (gcloud.folder / "played").write_text((gcloud.folder / "played").read_text().replace(
        "os.path.basename(sys.argv[0])", "'gcloud'"))  # fmt: skip

    def told(states: list, job: list, *words: str) -> list[str]:
        """T5X_LIKE_JOB of each installation."""
        gcloud.play.clear()
        plays(gcloud, states, job)
        launch(gcloud, *words, "--go")
        sent = sorted(tmp_path.glob("sent-*"), key=lambda path: path.stat().st_mtime_ns)
        found = []
        for path in sent:
            with tarfile.open(path) as tar:
                text = tar.extractfile("start.sh").read().decode()  # pyright: ignore[reportOptionalMemberAccess]
            found += re.findall(r"^export .* T5X_LIKE_JOB=(\w+)", text, re.M)
            path.unlink()
        return found

    refused = {"err": "PERMISSION_DENIED", "code": 1}
    again = [*TRAIN, "--rewind", "20"]
    first = told([NOT_FOUND, "ACTIVE", "SUSPENDED", "ACTIVE", "ACTIVE", refused], ["new", "running"] * 2, *again)
    assert len(first) == 2 and len(set(first)) == 1 and len(first[0]) > 8
    assert told(["SUSPENDED", "ACTIVE"], ["new", "0"], *again) == first[:1]  # watched again, until its end
    second = told([NOT_FOUND, "ACTIVE"], ["new", refused], *again)
    assert len(second) == 1 and second != first[:1]
    third = told([NOT_FOUND, "ACTIVE"], ["new", refused], *again)  # cancelled elsewhere
    assert len(third) == 1 and third != second
    fourth = told(["ACTIVE"], ["1", refused], *again, "train.steps=200")  # another command
    assert len({*first, *second, *third, *fourth}) == 4
    assert told(["ACTIVE"], ["new", "0"], "--env", "T5X_LIKE_JOB=mine", *again)[-1:] == ["mine"]


@pytest.mark.parametrize("end, restarts, code", [("2", 0, 2), ("1", 1, 1), ("lost", 1, 1), ("137", 1, 1)])
def test_a_mistake_ends_and_a_failure_is_tried_again(gcloud, end, restarts, code):
    plays(gcloud, ["ACTIVE"], ["new", end])
    done = launch(gcloud, "--restarts", "1", *TRAIN, "--go", shape=())
    assert done.returncode == code, done.stderr
    assert verbs(gcloud) == ["scp", "ssh", "ssh", *["ssh"] * restarts, "delete"]


def test_no_resources_is_tried_again_and_then_given_up(gcloud):
    plays(gcloud, ["FAILED"], ["new"])
    done = launch(gcloud, "--restarts", "1", *TRAIN, "--go")
    assert done.returncode == 1 and "FAILED" in done.stderr
    assert verbs(gcloud) == ["delete", "create"]


def test_cancelled_from_elsewhere_it_is_not_created_again(gcloud):
    plays(gcloud, ["ACTIVE", "ACTIVE", NOT_FOUND], ["new", "running"])
    assert launch(gcloud, *TRAIN, "--go").returncode == 130
    assert verbs(gcloud).count("create") == 0


def test_a_host_that_does_not_answer_for_a_while(gcloud):
    plays(gcloud, ["ACTIVE"], ["running", REACH, REACH, "running", "0"])
    done = launch(gcloud, *TRAIN, "--go")
    assert done.returncode == 0 and done.stderr.count("Connection refused") == 1
    gcloud.play.clear()
    plays(gcloud, ["ACTIVE"], [REACH])
    done = launch(gcloud, *TRAIN, "--go")
    assert done.returncode == 1 and "costs money" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "answer, said",
    [("ERROR: RESOURCE_EXHAUSTED: Quota limit 'TPUV6EPerProjectPerZone' has been exceeded. Limit: 0.", "for a quota"),
     ("ERROR: PERMISSION_DENIED: The caller does not have permission", "PERMISSION_DENIED")],
)  # fmt: skip
def test_what_gcloud_refuses_is_said(gcloud, answer, said):
    gcloud.answer("describe", NOT_FOUND)
    gcloud.answer(" create ", {"err": answer, "code": 1})
    done = launch(gcloud, *TRAIN, "--go")
    assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr


def test_no_gcloud(tmp_path, gcloud):
    (gcloud.folder / "gcloud").unlink()
    done = launch(gcloud, *TRAIN, "--go")
    assert done.returncode == 2 and "gcloud: no such command" in done.stderr


@pytest.mark.parametrize("state, job, code, said", [
    ("ACTIVE", "running", 0, "job running"), ("PROVISIONING", "new", 0, "PROVISIONING"),
    (NOT_FOUND, "new", 2, "no queued"), ("ACTIVE", "1", 1, "exit code 1"), ("SUSPENDED", "new", 0, "SUSPENDED"),
])  # fmt: skip
def test_status_follow_and_cancel(gcloud, state, job, code, said):
    plays(gcloud, ["ACTIVE"], ["running", "0"])
    launch(gcloud, *TRAIN, "--go")
    gcloud.play.clear()
    plays(gcloud, [state], [job])

    def act(*words: str) -> subprocess.CompletedProcess:
        (gcloud.folder / "calls.jsonl").unlink()
        return gcloud.run(LAUNCH / "tpu_vm.py", *words, cwd=gcloud.folder.parent)

    done = act("status", "runs/t5")
    assert done.returncode == code and said in done.stdout
    done = act("follow", "runs/t5")
    assert done.returncode == code and "step 100" in done.stdout and said in done.stdout
    done = act("--directory", "/mnt/runs/t5", "cancel", "t5_sotu")
    assert done.returncode == 0 and verbs(gcloud) == ["ssh", "delete"]


def test_without_go_the_lines_are_shown_and_nothing_is_called(gcloud):
    done = launch(gcloud, *TRAIN)
    assert done.returncode == 0 and gcloud.calls == []
    assert "queued-resources create t5 --accelerator-type=v6e-16" in done.stdout and "process.sh" in done.stdout
    assert "t5x-like check t5_sotu train.steps=100 --cluster tpu-vm --topology 'v6e:4x4 x2'\n" in done.stdout


@pytest.mark.parametrize("words, said", [
    (["train", "t5_sotu"], "would lie on each host's own disk"), (["--topology", "v6e:5x5", *TRAIN], "do not fill"),
    (["--zone", "", *TRAIN], "--zone: missing"), ([*TRAIN, "--spot"], "before the command"),
    (["status", "gpt_sotu"], "no job was started"), (["--directory", "/mnt/x", "train", "none.py"], "no run file"),
    (["--directory", "/mnt/x", "train", "mine.py"], "not in ")])  # fmt: skip
def test_mistakes_of_the_command_line(gcloud, tmp_path, words, said):
    (tmp_path / "mine.py").write_text("")
    done = launch(gcloud, *words)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr and gcloud.calls == []


def test_what_the_hosts_get(tmp_path, gcloud):
    source = tmp_path / "source"
    (source / ".gitignore").write_text("big\n")
    (source / "big").write_text("not to be sent")
    (source / "new.py").write_text("changed and not committed")
    tpu_vm.archive(str(tmp_path / "x.tar.gz"), str(source), {"start.sh": "é\n"})
    with tarfile.open(tmp_path / "x.tar.gz") as tar:
        assert tar.getnames() == ["source/.gitignore", "source/new.py", "source/pyproject.toml", "start.sh"]
        tar.extractall(tmp_path / "out", filter="data")
    assert (tmp_path / "out/start.sh").read_text() == "é\n"


@pytest.mark.slow
def test_the_scripts_of_the_hosts_start_answer_and_cancel(tmp_path):
    """start.sh, ask.sh and cancel.sh as a host runs them, with its metadata server played by a curl of ours."""
    program = "; ".join((
        "import os, signal, sys, time",
        "signal.signal(15, lambda *_: (print('saved', flush=True), sys.exit(75)))",
        "print(os.environ['JAX_PROCESS_ID'], os.environ['JAX_NUM_PROCESSES'], os.getcwd(), flush=True)",
        "time.sleep(float(sys.argv[1]))",
        "sys.exit(int(sys.argv[2]))",
    ))  # fmt: skip
    folder = tmp_path / tpu_vm.FOLDER
    (folder / "source").mkdir(parents=True)
    curl = tmp_path / "curl"
    curl.write_text("#!/bin/sh\necho 3\n")
    curl.chmod(0o755)
    environment = {"HOME": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def install(seconds: float, code: int) -> None:
        words = ["--slices", "2", "--grace", "20", "--", sys.executable, "-c", program, str(seconds), str(code)]
        parser = tpu_vm.parser()
        options = parser.parse_args(words)
        job, tpu = tpu_vm.jobs.parse(parser, options), tpu_vm.slice_of("v6e:4x4")
        for name, text in tpu_vm.scripts(options, job, tpu, "8f2c").items():
            (folder / name).write_text(text)

    def sh(name: str, *words: str) -> str:
        command = ["sh", str(folder / name), *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=True).stdout

    def wait(while_it_is: str) -> str:
        deadline = time.monotonic() + 20
        while sh("ask.sh").strip() == while_it_is and time.monotonic() < deadline:
            time.sleep(0.05)
        return sh("ask.sh").strip()

    def logged(text: str) -> None:
        deadline = time.monotonic() + 20
        while text not in (folder / "job.log").read_text() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert text in (folder / "job.log").read_text()

    install(0.0, 3)
    assert sh("ask.sh").strip() == "new"
    sh("start.sh", "1", "10.0.0.5")
    assert wait("running") == "3"
    logged(f"7 8 {folder}/source")
    install(60.0, 0)
    sh("start.sh", "0", "10.0.0.5")
    logged(f"3 8 {folder}/source")
    assert sh("ask.sh").strip() == "running"
    first = (folder / "job.pid").read_text().strip()
    sh("start.sh", "0", "10.0.0.5")  # again: of the first, nothing is left
    deadline = time.monotonic() + 20
    while not subprocess.run(["kill", "-0", "--", f"-{first}"], capture_output=True).returncode:
        assert time.monotonic() < deadline
    (folder / "job.log").write_text("")
    logged_at = time.monotonic()
    sh("start.sh", "0", "10.0.0.5")
    logged("3 8 ")
    sh("cancel.sh")
    assert time.monotonic() - logged_at < 20
    assert (folder / "job.log").read_text().endswith("saved\n") and sh("ask.sh").strip() == "cancelled"
    (folder / "job.cancelled").unlink()
    assert sh("ask.sh").strip() == "lost"
