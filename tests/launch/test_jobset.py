"""launch/jobset.py and launch/jobset_rules.py: manifests for TPU slices and GPU nodes are right by the schemas of
Kubernetes and by our rules, and each mistake is named. No cluster: that they run on GKE is not shown here."""

from __future__ import annotations

import copy
import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
sys.path.append(str(LAUNCH))
rules, manifest, slices, jobset = map(importlib.import_module, ("jobset_rules", "manifest", "slices", "jobset"))

SHAPES = {
    "v5e": ["--topology", "v5e:4x4"],
    "v5e of 4": ["--topology", "v5e:8x8", "--slices", "4", "--queue", "tpus"],
    "v5p": ["--topology", "v5p:2x2x4"],
    "v5p of 4": ["--topology", "v5p:2x2x2", "--slices", "4"],
    "v6e": ["--topology", "v6e:2x4", "--queue", "tpus"],
    "v6e of 4": ["--topology", "v6e:4x8", "--slices", "4", "--env", "TOKEN=$$(x)"],
    "v6e, one host": ["--topology", "v6e:2x4", "--chips-per-host", "8", "--secret", "wandb"],
    "GPUs": ["--gpus", "8", "--nodes", "4", "--select", "cloud.google.com/gke-accelerator=nvidia-h100-80gb"],
    "no chips": ["--request", "cpu=16", "--request", "memory=64Gi", "--service-account", "trainer"],
}
COMMAND = ["train", "t5_sotu", "mesh.fsdp=16"]


def made(shape: str, *options: str) -> dict[str, Any]:
    words = [*SHAPES[shape], "--image", "registry.io:5000/t5x-like:1.0", "--claim", "runs", *options, *COMMAND]
    parser = jobset.parser()
    parsed = parser.parse_args(words)
    job = jobset.on_claim(jobset.jobs.parse(parser, parsed), "/mnt")
    return jobset.manifest(parsed, job, "t5-sotu")


def inner(found: dict[str, Any]) -> dict[str, Any]:
    return found["spec"]["replicatedJobs"][0]["template"]["spec"]


def pod(found: dict[str, Any]) -> dict[str, Any]:
    return inner(found)["template"]["spec"]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_manifest_is_right_by_our_rules_and_survives_yaml(shape):
    found = made(shape)
    assert rules.problems(found) == []
    yaml = pytest.importorskip("yaml")
    assert yaml.safe_load(manifest.to_yaml(found)) == found


@pytest.mark.parametrize("shape", SHAPES)
def test_the_inner_job_is_right_by_the_schemas_of_kubernetes(shape):
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    folder = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
    versions = sorted({int(match[1]) for path in folder.iterdir() if (match := re.match(r"v1\.(\d+)", path.name))})
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, "spec": inner(made(shape))}
    checked = [minor for minor in versions if minor >= 30]
    assert checked[0] == 30 and len(checked) >= 5
    for minor in checked:
        kubernetes_validate.validate(job, f"1.{minor}", strict=True)
    job["spec"]["template"]["spec"]["containers"][0]["imagePullPolicies"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, "1.30", strict=True)


def test_hosts_and_chips_of_the_slices():
    hosts = {shape: inner(made(shape))["parallelism"] for shape in SHAPES}
    assert list(hosts.values()) == [4, 16, 4, 2, 2, 8, 1, 4, 1]
    assert slices.slice_of("v5p:4x4x8").accelerator_type == "v5p-256"  # cores
    assert slices.slice_of("v5e:4x4").accelerator_type == "v5litepod-16"
    assert slices.slice_of("v6e:1x1") == ("v6e", "1x1", 1, 1)
    for wrong in ("v9:4x4", "v5e", "v5e:4x4x4", "v5p:4x4", "v5e:3x3", "v6e:0x4", "v5e:4xa"):
        with pytest.raises(ValueError, match=re.escape(repr(wrong))):
            slices.slice_of(wrong)
    with pytest.raises(ValueError, match="4 chips each, not 8"):
        slices.slice_of("v6e:4x4", 8)


def test_what_jobset_does_after_each_exit_code():
    found = made("v5e of 4")
    job = found["spec"]["replicatedJobs"][0]
    after = {code: rules.action_after(found["spec"], job, code) for code in (75, None, 2, 1, 130, 137, 139, 143)}
    assert after[75] == after[None] == "RestartJobSetAndIgnoreMaxRestarts"
    assert after[2] == "FailJobSet"
    assert {after[code] for code in (1, 130, 137, 139, 143)} == {"RestartJobSet"}


def test_a_job_that_ran_before_kubernetes_said_it_in_other_words_is_still_restarted():
    """If a pattern matches no message, JobSet's default is a counted restart, never an end without one."""
    found = made("v5e")
    for rule in found["spec"]["failurePolicy"]["rules"][:3]:
        rule["onJobFailureMessagePatterns"] = ["no such message"]
    assert rules.action_after(found["spec"], found["spec"]["replicatedJobs"][0], 75) == "RestartJobSet"
    assert any(line.startswith("spec.failurePolicy.rules: exit code 75") for line in rules.problems(found))


def test_all_starts_of_one_jobset_are_told_so():
    """By the JobSet's own identity, which a restart leaves as it is and the next submission has another of."""
    (variable,) = (each for each in pod(made("v5e of 4"))["containers"][0]["env"] if each["name"] == "T5X_LIKE_JOB")
    path = "metadata.labels['jobset.sigs.k8s.io/jobset-uid']"
    assert variable["valueFrom"] == {"fieldRef": {"fieldPath": path}}
    given = pod(made("v5e of 4", "--env", "T5X_LIKE_JOB=mine"))["containers"][0]["env"]
    assert [each for each in given if each["name"] == "T5X_LIKE_JOB"] == [{"name": "T5X_LIKE_JOB", "value": "mine"}]


GONE = object()
RULES, QUEUE, CHIP = "F.rules[0]", f"metadata.labels[{rules.QUEUE}]", f"C.resources.limits[{rules.TPU}]"
SELECTOR, END = "P.nodeSelector[cloud.google.com/gke-tpu-", "J.podFailurePolicy.rules[0].onExitCodes"
# Mistakes in a good manifest: the field that is changed (shortened as in LONG), what it becomes, and the field that
# must be named if it is another.
MUTANTS = {
    "wrong apiVersion": ("apiVersion", "jobset.x-k8s.io/v1alpha1"),
    "wrong kind": ("kind", "Job"),
    "slip in a field": ("spec.failurePolicies", {}),
    "slip in a pod's field": ("P.terminationGracePeriod", 600),
    "long name": ("metadata.name", "x" * 29),
    "capital name": ("metadata.name", "T5"),
    "digit first": ("metadata.name", "5t"),
    "long names of pods": ("R.name", "s" * 50, "metadata.name"),
    "bad label": (QUEUE, "a queue"),
    "empty queue": (QUEUE, ""),
    "label not a text": ("metadata.labels[x]", 1),
    "slices in one pool": ("metadata.annotations", GONE, f"metadata.annotations[{rules.EXCLUSIVE}]"),
    "no failure policy": ("F", GONE),
    "75 is counted": ("F.rules[1].action", "RestartJobSet", "F.rules"),
    "2 is restarted": ("F.rules[0].action", "RestartJobSet", "F.rules"),
    "1 ends the job": ("F.rules[3].action", "FailJobSet", "F.rules"),
    "disruption is counted": ("J.podFailurePolicy.rules[2].action", "Count", "F.rules"),
    "two rules of a name": ("F.rules[1].name", "mistake"),
    "rule with a dash": ("F.rules[1].name", "saved-it"),
    "unknown action": (f"{RULES}.action", "Fail"),
    "unknown reason": (f"{RULES}.onJobFailureReasons", ["ExitCode"]),
    "unknown target": (f"{RULES}.targetReplicatedJobs", ["workers"]),
    "bad pattern": (f"{RULES}.onJobFailureMessagePatterns", ["("]),
    "negative restarts": ("F.maxRestarts", -1),
    "unknown coordinator": ("spec.coordinator", {"replicatedJob": "driver"}, "spec.coordinator.replicatedJob"),
    "coordinator's pod": ("spec.coordinator", {"replicatedJob": "slice", "podIndex": 16}, "spec.coordinator.podIndex"),
    "no host names": ("spec.network.enableDNSHostnames", False),
    "replicas as text": ("R.replicas", "4"),
    "no replicas": ("R.replicas", 0),
    "two jobs of a name": ("spec.replicatedJobs", lambda old: [*old, *old], "spec.replicatedJobs[1].name"),
    "fewer completions": ("J.completions", 8),
    "no completionMode": ("J.completionMode", GONE),
    "pods restarted alone": ("J.backoffLimit", 6),
    "fewer hosts than the slice": ("J.parallelism", 8),
    "pods replaced early": ("J.podReplacementPolicy", "TerminatingOrFailed"),
    "unknown container": (f"{END}.containerName", "main"),
    "success as a failure": (f"{END}.values", [0, 2]),
    "exit code twice": (f"{END}.values", [2, 2]),
    "unknown operator": (f"{END}.operator", "Equals"),
    "condition without status": ("J.podFailurePolicy.rules[2].onPodConditions[0].status", GONE),
    "status not a text": ("J.podFailurePolicy.rules[2].onPodConditions[0].status", True),
    "rule of neither kind": (END, GONE, "J.podFailurePolicy.rules[0]"),
    "restartPolicy": ("P.restartPolicy", "OnFailure"),
    "names unknown on the host": ("P.dnsPolicy", GONE),
    "short grace": ("P.terminationGracePeriodSeconds", 30),
    "no grace": ("P.terminationGracePeriodSeconds", GONE),
    "toleration with a value": ("P.tolerations[0].value", "present"),
    "unknown chip": (f"{SELECTOR}accelerator]", "tpu-v5e"),
    "topology of three": (f"{SELECTOR}topology]", "4x4x4"),
    "no topology": (f"{SELECTOR}topology]", GONE),
    "other topology": (f"{SELECTOR}topology]", "4x4", "J.parallelism"),
    "chips of a host": (CHIP, 8),
    "half a chip": (CHIP, "500m"),
    "no chips": ("C.resources", GONE, CHIP),
    "requests against limits": ("C.resources.requests", {rules.TPU: 1}, f"C.resources.requests[{rules.TPU}]"),
    "no image": ("C.image", GONE),
    "image with a space": ("C.image", "t5x like"),
    "variable twice": ("C.env", lambda old: [*old, {"name": "JOB_INDEX", "value": "4"}], "C.env[9].name"),
    "variable not a text": ("C.env[0].value", 4),
    "variable of both kinds": ("C.env[0].valueFrom", {}),
    "wrong number of processes": ("C.env[3].value", "16"),
    "another coordinator": ("C.env[0].value", "localhost:8476"),
    "no such volume": ("C.volumeMounts[1].name", "disk"),
    "mounted over another": ("C.volumeMounts[1].mountPath", "/dev/shm"),
    "shell without exec": ("C.command", ["bash", "-c", "cd /work; python -m t5x_like train x"]),
    "command as a text": ("C.command", "sh -c x"),
    "argument not a text": ("C.args", ["--steps", 1]),
    "no containers": ("P.containers", []),
    "two containers of a name": ("P.containers", lambda old: [*old, *old], "P.containers[1].name"),
    "nothing at all": ("spec", {}, "spec.replicatedJobs"),
}
LONG = {"C.": "P.containers[0].", "P.": "J.template.spec.", "J.": "R.template.spec.", "R.": "spec.replicatedJobs[0].",
        "F.": "spec.failurePolicy."}  # fmt: skip


def at_length(field: str) -> str:
    for short, long in LONG.items():
        field = long + field[2:] if field.startswith(short) else long[:-1] if field == short[0] else field
    return field


def changed(good: dict[str, Any], field: str, value: Any) -> dict[str, Any]:
    """A manifest with another value of a field."""
    bad = parent = copy.deepcopy(good)
    *path, last = [int(i) if i.isdigit() else i for i in re.findall(r"(?<=\[)[^]]+|[^.[\]]+", field)]
    for key in path:
        parent = parent[key]
    if value is GONE:
        del parent[last]
    else:
        parent[last] = value(copy.deepcopy(parent[last])) if callable(value) else value
    return bad


@pytest.mark.parametrize("mistake", MUTANTS)
def test_a_mistake_is_refused_by_the_name_of_its_field(mistake):
    field, value, *named = MUTANTS[mistake]
    good = made("v5e of 4")
    assert rules.problems(good) == []
    found = rules.problems(changed(good, at_length(field), value))
    assert any(line.startswith(at_length(named[0] if named else field) + ": ") for line in found), found


@pytest.mark.parametrize("value", [None, [], "text", 3, {}, {"spec": []}, {"spec": {"replicatedJobs": [3]}}])
def test_what_is_no_manifest_is_refused_without_a_traceback(value):
    assert rules.problems(value)


LEAVES = st.none() | st.booleans() | st.integers() | st.text()
JSONS = st.recursive(LEAVES, lambda each: st.lists(each) | st.dictionaries(st.text(max_size=80), each))


@settings(max_examples=100, deadline=None)
@given(JSONS)
def test_any_value_survives_yaml(value):
    yaml = pytest.importorskip("yaml")
    assert yaml.safe_load(manifest.to_yaml(value)) == value


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_no_change_of_a_manifest_makes_a_traceback(data):
    """Any one value of a good manifest replaced by any other: problems or none, never an error of ours."""
    found = made("v5e")
    parent, key = data.draw(st.sampled_from(list(places(found))))
    parent[key] = data.draw(JSONS)
    assert isinstance(rules.problems(found), list)


def places(value: Any):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in items:
        yield value, key
        yield from places(each)


def test_a_users_own_file_is_checked(tmp_path):
    good, bad = made("GPUs"), made("v5e")
    inner(bad)["completions"] = 3
    text = {"good.json": json.dumps(good), "bad.json": json.dumps(bad), "torn.json": '{"a": '}
    text["bad.yaml"] = manifest.to_yaml(bad)
    for name, content in text.items():
        (tmp_path / name).write_text(content)

    def checked(name: str) -> subprocess.CompletedProcess:
        command = [sys.executable, str(LAUNCH / "jobset_rules.py"), str(tmp_path / name)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert checked("good.json").returncode == 0
    for name in ("bad.json", "bad.yaml", "torn.json", "missing.json"):
        done = checked(name)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    assert ".completions: 3, but parallelism is 4" in checked("bad.json").stderr


def test_dollars_reach_the_program_as_they_were():
    """Kubernetes replaces $(NAME) and $$ in commands; this is its rule (third_party/forked/golang/expansion)."""

    def expanded(text: str) -> str:
        return re.sub(r"\$(\$|\(([^)]*)\))", lambda m: "$" if m[1] == "$" else m[0] if m[2] != "HOSTS" else "4", text)

    assert expanded("$$(HOSTS) $(HOSTS) $(X) $x $") == "$(HOSTS) 4 $(X) $x $"
    script = jobset.script_of(jobset.jobs.job_of(COMMAND), jobset.NUMBER, "tpu:4")
    for word in ("$(HOSTS)", "$$", "a$$$b", "$", "$$(HOSTS)", "100$", "$((1 + 2))", script):
        assert expanded(jobset.escaped(word)) == word


def test_a_run_that_would_be_lost_with_its_pod_is_refused():
    job = jobset.jobs.job_of(COMMAND)
    assert jobset.on_claim(job, "/mnt").words[-2:] == ["--directory", "/mnt/runs/t5_sotu"]
    for directory, mount in (("", ""), ("/elsewhere/run", "/mnt"), ("/mntx/run", "/mnt")):
        with pytest.raises(jobset.jobs.LaunchError, match="--claim"):
            jobset.on_claim(jobset.jobs.job_of(COMMAND, directory), mount)
    bucket = jobset.jobs.job_of(COMMAND, "gs://bucket/run")
    assert jobset.on_claim(bucket, "") == bucket


CHECKS = """#!/bin/sh
[ "$2" = --help ] || echo "$1 $JAX_PLATFORMS $JAX_NUM_PROCESSES ${JAX_COORDINATOR_ADDRESS-none}" "$@" >> checks
[ "$1" != check ] || [ "$2" = --help ] || exit $CODE
"""


@pytest.mark.parametrize("number, code, ends, starts", [(0, 0, 0, 1), (0, 2, 2, 0), (0, 1, 0, 1), (1, 2, 0, 1)])
def test_the_first_process_has_the_run_checked_and_only_a_mistake_stops_it(tmp_path, number, code, ends, starts):
    (tmp_path / "t5x-like").write_text(CHECKS)
    (tmp_path / "t5x-like").chmod(0o755)
    job = jobset.jobs.job_of(["train", "t5_sotu"])
    variables = {
        "JOB_INDEX": "0", "PROCESSES_IN_JOB": "4", "JOB_COMPLETION_INDEX": str(number), "JAX_NUM_PROCESSES": "4",
        "JAX_COORDINATOR_ADDRESS": "x:1", "CODE": str(code), "PATH": f"{tmp_path}:/usr/bin:/bin",
    }  # fmt: skip
    words = ["sh", "-c", jobset.script_of(job, jobset.NUMBER, "tpu:16"), "train", *job.words]
    assert subprocess.run(words, env=variables, cwd=tmp_path).returncode == ends
    ran = [line.split() for line in (tmp_path / "checks").read_text().splitlines()]
    expected = ["check", "cpu", "1", "none", "check", "t5_sotu", "--directory", "runs/t5_sotu", "--topology", "tpu:16"]
    assert [line for line in ran if line[0] == "check"] == [expected] * (number == 0)
    assert [line[:4] for line in ran if line[0] == "train"] == [["train", "4", "x:1", "train"]] * starts


@pytest.mark.skipif(not shutil.which("sh"), reason="needs a POSIX shell")
def test_the_pods_script_numbers_the_processes_and_leaves_its_place_to_the_program():
    job = jobset.jobs.job_of(["--", sys.executable, "-c", "x"][1:])
    program = "import os; print(os.environ['JAX_PROCESS_ID'], os.getpid())"
    variables = {"JOB_INDEX": "2", "PROCESSES_IN_JOB": "4", "JOB_COMPLETION_INDEX": "3", "PATH": "/usr/bin:/bin"}
    script = jobset.script_of(job, jobset.NUMBER, "")
    words = ["sh", "-c", script, "train", sys.executable, "-c", program]
    with subprocess.Popen(words, env=variables, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.read().split() == ["11", str(process.pid)]
