#!/usr/bin/env python3
"""Submits a job to Kubernetes as a JobSet: TPU slices of GKE, nodes with GPUs, or one node for a command without chips.

    python launch/jobset.py --topology v5e:4x4 --slices 2 --image IMAGE --claim runs train t5_sotu mesh.fsdp=32 --go
    python launch/jobset.py --gpus 8 --nodes 4 --image IMAGE --claim runs train t5_sotu --go
    python launch/jobset.py status | follow | cancel t5_sotu

Without ``--go`` it writes the manifest and says what it would do. A pod is a process of the job and has a host of
a slice; it learns its number from JobSet and Kubernetes. Exit code 75 (saved) and a node taken away restart all pods,
uncounted; exit code 2 (a user's mistake) ends the job; other failures restart them ``--restarts`` times. The manifest
is checked by ``jobset_rules.py`` before it is applied. JobSet 0.10 or newer. Standard library only; copy it with
elsewhere.py, job.py, jobset_rules.py, manifest.py and slices.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
import time
from typing import Any

import job as jobs
import jobset_rules as rules
from elsewhere import ENDS, State, check_line, command_line, folder_here, pairs, plan_of, script_of, states
from manifest import to_yaml
from slices import CHIPS, Slice, slice_of

MOUNT, PORT, MAIN, REPLICATED = "/mnt", 8476, "train", "slice"
NUMBER = "$(($JOB_INDEX * $PROCESSES_IN_JOB + $JOB_COMPLETION_INDEX))"  # of a process


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description="Submit a job to Kubernetes as a JobSet.")
    add = top.add_argument
    add("--image", default="", help="the container image with t5x-like in it (required)")
    add("--topology", default="", metavar="CHIP:SIDES", help="TPU slices: v5e:4x4, v5p:2x2x4, v6e:8x8, ...")
    add("--slices", type=int, default=1, help="number of slices (default 1)")
    add("--chips-per-host", type=int, default=0, help="TPU chips of each host (default 4, or all of a small slice)")
    add("--gpus", type=int, default=0, help="GPUs of each node")
    add("--nodes", type=int, default=1, help="number of nodes without --topology (default 1)")
    add("--claim", default="", metavar="NAME[:PATH]", help="persistent volume claim for runs and caches, mounted at "
        f"PATH (default {MOUNT}); all nodes must be able to write to it (ReadWriteMany)")  # fmt: skip
    add("--queue", default="", help="Kueue's LocalQueue")
    add("--select", action="append", default=[], metavar="LABEL=VALUE", help="nodes with this label; repeatable")
    add("--request", action="append", default=[], metavar="NAME=AMOUNT", help="cpu=8, memory=64Gi, ...; repeatable")
    add("--env", action="append", default=[], metavar="NAME=VALUE", help="variable of the pods; repeatable")
    add("--secret", action="append", default=[], metavar="NAME", help="secret whose keys are variables; repeatable")
    add("--service-account", default="", metavar="NAME", help="service account of the pods")
    add("--grace", type=int, default=300, help="seconds to save in after SIGTERM (default 300)")
    add("--restarts", type=int, default=10, help="restarts after failures (default 10)")
    add("--name", default="", help="name of the JobSet (default: the run's)")
    add("--namespace", default="", help="kubectl's (default: that of the context)")
    add("--context", default="", help="kubectl's (default: the current one)")
    add("--poll", type=float, default=15.0, help="seconds between questions of follow (default 15)")
    jobs.add_options(top, "apply it with kubectl; without, the manifest is only written")
    return top


def on_claim(job: jobs.Job, mount: str) -> jobs.Job:
    """The job of ``train`` with its run's directory on the claim; any other would be lost with the pod."""
    if job.command != "train" or "://" in job.directory:
        return job
    directory = os.path.join(mount or os.sep, job.directory)
    if not mount or not directory.startswith(mount + "/"):
        said = f"mounted at {mount}, and the run's directory {directory}" if mount else f"missing, and {job.directory}"
        raise jobs.LaunchError(f"--claim: {said} would be lost with the pod; name a persistent volume claim, and a "
                               "--directory below its PATH")  # fmt: skip
    words = [directory if word == job.directory else word for word in job.arguments]
    return dataclasses.replace(job, arguments=words, directory=directory)


def escaped(word: str) -> str:
    """A word of a command, escaped for Kubernetes, which replaces $(NAME), and $$ by $."""
    return re.sub(r"\$(?=[$(])", "$$", word)


def manifest(options: argparse.Namespace, job: jobs.Job, name: str) -> dict[str, Any]:
    """The JobSet of a job."""
    tpu = slice_of(options.topology, options.chips_per_host) if options.topology else None
    hosts, replicas = (tpu.hosts, options.slices) if tpu else (options.nodes, 1)
    ends = [  # JobSet takes the first that matches any failed Job: a mistake ends the job even if others saved
        ("mistake", rules.FAIL, {"onExitCodes": {"containerName": MAIN, "operator": "In", "values": [jobs.MISTAKE]}}),
        ("saved", rules.UNCOUNTED, {"onExitCodes": {"containerName": MAIN, "operator": "In", "values": [jobs.SAVED]}}),
        ("disrupted", rules.UNCOUNTED, {"onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}),
    ]
    matching = [
        {"name": rule, "action": action, "onJobFailureReasons": ["PodFailurePolicy"],
         "onJobFailureMessagePatterns": [f"matching FailJob rule at index {index}$"]}
        for index, (rule, action, _) in enumerate(ends)
    ]  # fmt: skip
    template = {
        "parallelism": hosts,
        "completions": hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": [{"action": "FailJob", **when} for _, _, when in ends]},
        "template": {"spec": pod(options, job, name, tpu, hosts, replicas)},
    }
    return {
        "apiVersion": rules.API,
        "kind": rules.KIND,
        "metadata": {
            "name": name,
            **({"namespace": options.namespace} if options.namespace else {}),
            **({"labels": {rules.QUEUE: options.queue}} if options.queue else {}),
            **({"annotations": {rules.EXCLUSIVE: "cloud.google.com/gke-nodepool"}} if tpu else {}),
        },
        "spec": {
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "failurePolicy": {
                "maxRestarts": options.restarts,
                "restartStrategy": "BlockingRecreate",  # new pods only when the old ones are gone
                "rules": [*matching, {"name": "failed", "action": rules.RESTART}],
            },
            "replicatedJobs": [{"name": REPLICATED, "replicas": replicas, "template": {"spec": template}}],
        },
    }


def pod(
    options: argparse.Namespace, job: jobs.Job, name: str, tpu: Slice | None, hosts: int, replicas: int
) -> dict[str, Any]:
    """A pod's specification."""
    chip, count = (rules.TPU, tpu.chips) if tpu else (rules.GPU, options.gpus)
    devices = f"{'tpu' if tpu else 'gpu'}:{count * hosts * replicas}" if count else ""
    claim, mount = claim_of(options)
    select = pairs(options.select, "--select")
    if tpu:
        select = {rules.ACCELERATOR: CHIPS[tpu.kind].gke, rules.TOPOLOGY: tpu.topology, **select}
    platforms = {"JAX_PLATFORMS": "tpu,cpu" if tpu else "cuda,cpu"} if count else {}
    label = "metadata.labels['jobset.sigs.k8s.io/{}']"
    variables: dict[str, Any] = {
        "JAX_COORDINATOR_ADDRESS": f"{name}-{REPLICATED}-0-0.{name}:{PORT}",
        "POD_IP": {"fieldRef": {"fieldPath": "status.podIP"}},
        "JAX_COORDINATOR_BIND_ADDRESS": f"$(POD_IP):{PORT}",  # not reachable by any other of the node's addresses
        "JAX_NUM_PROCESSES": str(hosts * replicas),
        "PROCESSES_IN_JOB": str(hosts),
        "JOB_INDEX": {"fieldRef": {"fieldPath": label.format("job-index")}},
        "T5X_LIKE_JOB": {"fieldRef": {"fieldPath": label.format("jobset-uid")}},  # the same after every restart
        **platforms,
        **({"T5X_LIKE_CACHE": f"{mount}/cache"} if claim else {}),
        **pairs(options.env, "--env"),
    }
    env = [{"name": key, "value" if isinstance(each, str) else "valueFrom": each} for key, each in variables.items()]
    requests, limits = pairs(options.request, "--request"), {chip: count} if count else {}
    volumes: list[dict[str, Any]] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
    mounts = [{"name": "shm", "mountPath": "/dev/shm"}]
    if claim:
        volumes.append({"name": "claim", "persistentVolumeClaim": {"claimName": claim}})
        mounts.append({"name": "claim", "mountPath": mount})
    container = {
        "name": MAIN,
        "image": options.image,
        "command": ["sh", "-c", escaped(script_of(job, NUMBER, devices)), MAIN],
        "args": [escaped(word) for word in job.words],
        "env": env,
        **({"envFrom": [{"secretRef": {"name": secret}} for secret in options.secret]} if options.secret else {}),
        "resources": {**({"limits": limits} if limits else {}), **({"requests": requests} if requests else {})},
        "volumeMounts": mounts,
    }
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": options.grace,
        **({"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"} if tpu else {}),
        **({"serviceAccountName": options.service_account} if options.service_account else {}),
        **({"nodeSelector": select} if select else {}),
        **({"tolerations": [{"key": chip, "operator": "Exists", "effect": "NoSchedule"}]} if count else {}),
        "containers": [container],
        "volumes": volumes,
    }


def claim_of(options: argparse.Namespace) -> tuple[str, str]:
    """The claim's name and where it is mounted; two empty strings without one."""
    claim, _, mount = options.claim.partition(":")
    return claim, (mount or MOUNT).rstrip("/") if claim else ""


def kubectl(options: Any, *words: str) -> list[str]:
    flags = [f"--{key}={value}" for key in ("context", "namespace") if (value := getattr(options, key))]
    return ["kubectl", *flags, *words]


def state_of(options: Any, name: str) -> State:
    """What kubectl says of a JobSet.

    Raises:
      job.OutsideError: kubectl fails for another reason than that there is none.
    """
    try:
        found = json.loads(jobs.outside(kubectl(options, "get", "jobset", name, "--output=json")))
    except jobs.OutsideError as error:
        if error.kind == "gone":
            return State("gone", f"{name}: no such JobSet: never submitted here, cancelled, or removed")
        raise
    status = found.get("status") or {}
    true = {each["type"]: each for each in status.get("conditions") or [] if each.get("status") == "True"}
    restarts = status.get("restarts") or 0
    again = f", {restarts} restarts" if restarts else ""
    if "Completed" in true:
        return State("complete", f"{name}: complete{again}", restarts)
    if "Failed" in true:
        reason, message = true["Failed"].get("reason", ""), true["Failed"].get("message", "")
        kind = "mistake" if rules.FAIL in reason else "failed"
        return State(kind, f"{name}: failed{again}: {reason}: {message}", restarts)
    if (found.get("spec") or {}).get("suspend"):
        return State("queued", f"{name}: waits in its queue{again}{_why_queued(options, found)}", restarts)
    counts = status.get("replicatedJobsStatus") or []
    ready, active = (sum(each.get(key) or 0 for each in counts) for key in ("ready", "active"))
    if not ready:
        return State("pending", f"{name}: pending{again}: no slice has all of its pods", restarts)
    return State("running", f"{name}: running{again}: {ready} of {max(ready, active)} slices ready", restarts)


def _why_queued(options: Any, found: dict[str, Any]) -> str:
    """Kueue's reason, after a colon."""
    label = f"--selector=kueue.x-k8s.io/job-uid={(found.get('metadata') or {}).get('uid')}"
    try:
        items = json.loads(jobs.outside(kubectl(options, "get", "workloads", label, "--output=json")))["items"]
    except (jobs.OutsideError, ValueError, KeyError):
        return ""  # no Kueue here: suspended by hand
    said = [c.get("message", "") for item in items for c in (item.get("status") or {}).get("conditions") or []
            if c.get("type") == "QuotaReserved" and c.get("status") == "False"]  # fmt: skip
    return f": {said[-1]}" if said else ""


def follow(options: Any, name: str, poll: float) -> int:
    """Prints the first process's log and every change of the JobSet's state until it ends; the job's exit code."""
    labels = {"jobset.sigs.k8s.io/jobset-name": name, "jobset.sigs.k8s.io/job-index": 0,
              "batch.kubernetes.io/job-completion-index": 0}  # fmt: skip
    selector, state = "--selector=" + ",".join(f"{key}={value}" for key, value in labels.items()), None
    since, seen = "", -1
    for state in states(lambda: state_of(options, name), poll):
        if state.kind == "running":
            new = f"--since-time={since}" if state.restarts == seen else "--tail=-1"
            subprocess.run(kubectl(options, "logs", "--follow", selector, f"--container={MAIN}", new))
            seen, since = state.restarts, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return ENDS[state.kind] if state else jobs.FAILED


def act(action: str, options: argparse.Namespace, folder: str) -> int:
    """``status``, ``follow`` or ``cancel`` of the JobSet last submitted for the run in ``folder``."""
    last = (jobs.remembered(folder, "jobset") or [{}])[-1]
    for key in ("namespace", "context"):
        setattr(options, key, getattr(options, key) or last.get(key, ""))
    name = options.name or last.get("name")
    if not name:
        raise jobs.LaunchError(f"{folder}: no JobSet was submitted for it from here; --name NAME asks for one by name")
    if action == "follow":
        return follow(options, name, options.poll)
    if action == "cancel":
        print(jobs.outside(kubectl(options, "delete", "jobset", name, "--wait=false")), end="")
        return 0
    state = state_of(options, name)
    print(state.said)
    return ENDS.get(state.kind, 0)


def submit(options: argparse.Namespace, name: str, text: str) -> None:
    """Applies a manifest; one that has ended under its name is removed first, and one that has not is refused."""
    state = state_of(options, name)
    if state.kind in ("queued", "pending", "running"):
        raise jobs.LaunchError(f"{state.said}\n  follow or cancel it, or give this one another --name")
    if state.kind != "gone":
        jobs.outside(kubectl(options, "delete", "jobset", name, "--cascade=foreground"), seconds=600)
    print(jobs.outside(kubectl(options, "apply", "--filename=-"), text=text), end="")


def launch(top: argparse.ArgumentParser, options: argparse.Namespace, job: jobs.Job) -> int:
    here = folder_here(job.folder)
    if not options.image:
        top.error("--image: missing; build one with the Dockerfile of the repository")
    if options.topology and options.gpus:
        top.error("--topology and --gpus: one of the two")
    job = on_claim(job, claim_of(options)[1])
    name = options.name or job.name[:rules.KUEUE_NAME].strip("-")
    try:
        made = manifest(options, job, name)
    except ValueError as error:
        raise jobs.LaunchError(f"--topology: {error}") from None
    if found := rules.problems(made):
        raise jobs.LaunchError("\n  ".join(["the manifest would not run as it should:", *found]))
    plan = plan_of(job)
    print(plan.said)
    if plan.action == "complete":
        return 0
    path = os.path.join(here, "launch", f"{name}.yaml")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(to_yaml(made) + "\n")
    print(f"manifest: {path}")
    if not options.go:
        gpus = f"gpu:{options.gpus * options.nodes}" if options.gpus else ""
        slices = options.topology + f" x{options.slices}" * (options.slices > 1)
        if job.command == "train":
            print(f"where it is installed: {check_line(job, 'jobset', slices if options.topology else gpus)}")
        print(f"not submitted; --go does: {shlex.join(kubectl(options, 'apply', f'--filename={path}'))}")
        return 0
    submit(options, name, to_yaml(made) + "\n")
    jobs.remember(dataclasses.replace(job, directory=here), "jobset", name=name, namespace=options.namespace,
                  context=options.context)  # fmt: skip
    print(f"next: python {sys.argv[0]} follow {here}")
    return 0


if __name__ == "__main__":
    jobs.leave(lambda: command_line(parser(), act, launch))
