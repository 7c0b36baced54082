"""launch/jobset.py with a stand-in of kubectl that plays the states of a JobSet: submit, status, follow, cancel."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from stand_ins import StandIns, assert_golden

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
GOLDEN = Path(__file__).parent / "golden"
SHAPE = ["--topology", "v5e:4x4", "--image", "gcr.io/p/t5x:1", "--claim", "runs", "--queue=tpus", "--namespace=ml"]
TRAIN = ["train", "t5_sotu", "train.steps=100"]
NOT_FOUND = {"err": 'Error from server (NotFound): jobsets.jobset.x-k8s.io "t5-sotu" not found\n', "code": 1}


def jobset(*conditions: str, ready: int = 0, restarts: int = 0, suspend: bool = False, **more: str) -> str:
    found = [{"type": kind, "status": "True", **more} for kind in conditions]
    counts = [{"name": "slice", "ready": ready, "active": 1}]
    status = {"conditions": found, "replicatedJobsStatus": counts, "restarts": restarts}
    return json.dumps({"metadata": {"uid": "u1"}, "spec": {"suspend": suspend}, "status": status})


PENDING, RUNNING, COMPLETE = jobset(), jobset(ready=1), jobset("Completed")
AGAIN = jobset(ready=1, restarts=1)
FAILED = jobset("Failed", reason="ReachedMaxRestarts", message="jobset failed due to reaching max number of restarts")
MISTAKE = jobset("Failed", reason="FailJobSetFailurePolicyAction", message="applying FailJobSet failure policy action")
SUSPENDED = jobset("Suspended", suspend=True)
SHORT = "insufficient quota for google.com/tpu, 16 more needed"
NO_QUOTA = {"type": "QuotaReserved", "status": "False", "message": SHORT}
WORKLOADS = json.dumps({"items": [{"status": {"conditions": [NO_QUOTA]}}]})


@pytest.fixture
def kubectl(tmp_path) -> StandIns:
    return StandIns(tmp_path / "bin", "kubectl")


def launch(kubectl: StandIns, *words: str):
    return kubectl.run(LAUNCH / "jobset.py", *words, cwd=kubectl.folder.parent)


def submitted(kubectl: StandIns) -> None:
    kubectl.answer("get jobset", NOT_FOUND)
    kubectl.answer("apply", "jobset.jobset.x-k8s.io/t5-sotu created\n")
    done = launch(kubectl, *SHAPE, *TRAIN, "--go")
    assert done.returncode == 0, done.stderr
    kubectl.play.clear()
    (kubectl.folder / "calls.jsonl").unlink()


def test_without_go_nothing_is_called_and_the_manifest_is_written(kubectl, tmp_path):
    done = launch(kubectl, *SHAPE, *TRAIN)
    assert done.returncode == 0, done.stderr
    assert kubectl.calls == []
    assert "start or resume" in done.stdout and "not submitted" in done.stdout
    assert "t5x-like check t5_sotu train.steps=100 --cluster jobset --topology v5e:4x4\n" in done.stdout
    written = (tmp_path / "runs/t5_sotu/launch/t5-sotu.yaml").read_text()
    assert "kueue.x-k8s.io/queue-name: tpus" in written and "namespace: ml" in written


def test_submit_follow_restart_and_complete(kubectl, tmp_path):
    kubectl.answer("get jobset", NOT_FOUND)
    kubectl.answer("apply", "jobset.jobset.x-k8s.io/t5-sotu created\n")
    done = launch(kubectl, *SHAPE, *TRAIN, "--go")
    assert done.returncode == 0, done.stderr
    assert "created" in done.stdout and "follow runs/t5_sotu" in done.stdout
    assert kubectl.texts == [(tmp_path / "runs/t5_sotu/launch/t5-sotu.yaml").read_text()]

    kubectl.play.clear()
    kubectl.answer("get jobset", SUSPENDED, PENDING, RUNNING, RUNNING, AGAIN, COMPLETE)
    kubectl.answer("get workloads", WORKLOADS)
    kubectl.answer("logs", "step 1\n", "step 2\n", "step 3\n")
    done = launch(kubectl, "--poll", "0", "follow", "t5_sotu")
    assert done.returncode == 0 and done.stdout == "step 1\nstep 2\nstep 3\n"
    said = done.stderr.splitlines()
    assert [line.split(": ")[1].split(",")[0] for line in said] == [
        "waits in its queue", "pending", "running", "running", "complete"]  # fmt: skip
    assert SHORT in said[0]
    # The second of one pod's logs begins where the first ended; those of a new pod from the beginning.
    calls = [re.sub(r"(?<=since-time=)\S+", "TIME", call) for call in kubectl.calls]
    assert_golden(GOLDEN / "jobset.txt", calls)


@pytest.mark.parametrize(
    "answer, code, said",
    [(PENDING, 0, "pending"), (RUNNING, 0, "1 of 1 slices ready"), (AGAIN, 0, "1 restarts"), (COMPLETE, 0, "complete"),
     (FAILED, 1, "ReachedMaxRestarts"), (MISTAKE, 2, "FailJobSet"), (NOT_FOUND, 2, "no such JobSet")],
)  # fmt: skip
def test_status_and_follow_end_as_the_job_did(kubectl, answer, code, said):
    submitted(kubectl)
    kubectl.answer("get jobset", answer)
    done = launch(kubectl, "status", "t5_sotu")
    assert done.returncode == code and said in done.stdout
    if code:
        done = launch(kubectl, "follow", "t5_sotu")
        assert done.returncode == code and said in done.stderr


def test_follow_outlives_a_server_that_does_not_answer(kubectl):
    submitted(kubectl)
    down = {"err": "Unable to connect to the server: EOF\n", "code": 1}
    kubectl.answer("get jobset", down, down, PENDING, COMPLETE)
    done = launch(kubectl, "--poll", "0", "follow", "t5_sotu")
    assert done.returncode == 0 and done.stderr.count("Unable to connect") == 1
    kubectl.play.clear()
    kubectl.answer("get jobset", down)
    done = launch(kubectl, "--poll", "0", "follow", "t5_sotu")
    assert done.returncode == 1 and done.stderr.endswith("Unable to connect to the server: EOF\n")


def test_cancel(kubectl):
    submitted(kubectl)
    kubectl.answer("delete", 'jobset.jobset.x-k8s.io "t5-sotu" deleted\n')
    done = launch(kubectl, "cancel", "t5_sotu")
    assert done.returncode == 0 and "deleted" in done.stdout
    assert kubectl.calls == ["kubectl --namespace=ml delete jobset t5-sotu --wait=false"]


@pytest.mark.parametrize("state", [SUSPENDED, PENDING, RUNNING])
def test_a_second_trainer_is_not_submitted(kubectl, state):
    kubectl.answer("get jobset", state)
    kubectl.answer("get workloads", WORKLOADS)
    done = launch(kubectl, *SHAPE, *TRAIN, "--go")
    assert done.returncode == 2 and "follow or cancel it" in done.stderr
    assert not any("apply" in call for call in kubectl.calls)


def test_one_that_has_ended_is_replaced(kubectl):
    kubectl.answer("get jobset", FAILED)
    kubectl.answer("delete", "deleted\n")
    kubectl.answer("apply", "created\n")
    assert launch(kubectl, *SHAPE, *TRAIN, "--go").returncode == 0
    assert [call.split()[2] for call in kubectl.calls] == ["get", "delete", "apply"]


@pytest.mark.parametrize(
    "answer, code, said",
    [("Error from server (Forbidden): exceeded quota: pods=64", 1, "refused for a quota"),
     ("Unable to connect to the server: dial tcp: i/o timeout", 1, "i/o timeout"),
     ('error: resource mapping not found: no matches for kind "JobSet"', 2, "no matches for kind")],
)  # fmt: skip
def test_what_kubectl_refuses_is_said(kubectl, answer, code, said):
    kubectl.answer("get jobset", NOT_FOUND)
    kubectl.answer("apply", {"err": answer, "code": 1})
    done = launch(kubectl, *SHAPE, *TRAIN, "--go")
    assert done.returncode == code and done.stderr.startswith("error: ") and said in done.stderr
    assert "Traceback" not in done.stderr


def test_no_kubectl(tmp_path):
    nothing = StandIns(tmp_path / "bin")
    done = launch(nothing, *SHAPE, *TRAIN, "--go")
    assert done.returncode == 2 and "kubectl: no such command" in done.stderr


@pytest.mark.parametrize(
    "words, said",
    [([*SHAPE[2:], *TRAIN], ""), ([*SHAPE[:2], *TRAIN], "--image"), (["--gpus", "8", *SHAPE, *TRAIN], "one of the two"),
     ([*SHAPE, "--topology", "v5e:3x3", *TRAIN], "do not fill"), ([*SHAPE, "--grace", "5", *TRAIN], "GracePeriod"),
     ([*SHAPE, "--env", "X", *TRAIN], "NAME=VALUE"), ([*SHAPE, *TRAIN, "--slices", "2"], "before the command"),
     ([*SHAPE, "train", "no_such_run"], "no run file"), ([*SHAPE[:4], *TRAIN], "lost with the pod"),
     ([*SHAPE, "--name", "T5", *TRAIN], "metadata.name"), (["status", "gpt2_sotu"], "no JobSet was submitted")],
)  # fmt: skip
def test_mistakes_of_the_command_line(kubectl, words, said):
    done = launch(kubectl, *words)
    assert (done.returncode == 2) == bool(said) and said in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and kubectl.calls == []


def test_a_run_that_is_complete_here_is_not_submitted(kubectl, tmp_path):
    run = tmp_path / "mnt/run"
    (run / "checkpoints/100").mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"train": {"steps": 100}}))
    shape = [*SHAPE[:4], "--claim", f"runs:{tmp_path}/mnt", "--directory", str(run)]
    done = launch(kubectl, *shape, *TRAIN, "--go")
    assert done.returncode == 0 and "is complete" in done.stdout and kubectl.calls == []
