#!/usr/bin/env python3
"""What must hold between the fields of a JobSet for a JAX job, checked without a cluster.

    python launch/jobset_rules.py job.json      # or job.yaml, where PyYAML is installed

Schemas check one field at a time; a manifest that passes them can still hang, train the same job several times, or lose
its last steps. ``problems`` returns one line for each mistake, which begins with the field. The rules are those of
batch/v1, of JobSet's admission webhook (0.10 and newer), of Kueue and of GKE's TPU slices, and what a job of
processes that wait for one another needs; ``action_after`` says what JobSet does after an exit code. Standard library
only, Python 3.8 or newer.
"""

from __future__ import annotations

import argparse
import re
import sys
from typing import TYPE_CHECKING, Any

from manifest import NAME, Node, WrongKind, read, twice, whole
from slices import CHIPS, slice_of

if TYPE_CHECKING:
    from manifest import Found

API, KIND = "jobset.x-k8s.io/v1alpha2", "JobSet"
QUEUE = "kueue.x-k8s.io/queue-name"
EXCLUSIVE = "alpha.jobset.sigs.k8s.io/exclusive-topology"
ACCELERATOR, TOPOLOGY = "cloud.google.com/gke-tpu-accelerator", "cloud.google.com/gke-tpu-topology"
TPU, GPU = "google.com/tpu", "nvidia.com/gpu"
UNCOUNTED, FAIL, RESTART = "RestartJobSetAndIgnoreMaxRestarts", "FailJobSet", "RestartJobSet"
RIGHT = {75: UNCOUNTED, None: UNCOUNTED, 2: FAIL, 1: RESTART}  # by exit code; None: its node was taken away
KUEUE_NAME, GRACE = 28, 60  # characters under Kueue, seconds

REASONS = ("BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "MaxFailedIndexesExceeded", "PodFailurePolicy")


def problems(manifest: Any) -> list[str]:
    """One line for each mistake: the field, what it is, what is allowed. Empty: none was found."""
    found: list[str] = []
    try:
        for field, text in _jobset(Node(manifest, "", "manifest")):
            found.append(f"{field}: {text}")
    except WrongKind as wrong:
        found.append(str(wrong))
    return list(dict.fromkeys(found))


def _jobset(top: Node) -> Found:
    yield from top.unknown()
    yield from top.expect("apiVersion", [API])
    yield from top.expect("kind", [KIND])
    metadata, spec = top.node("metadata"), top.node("spec", "spec")
    labels = metadata.node("labels")
    yield from metadata.named(KUEUE_NAME if QUEUE in labels.value else NAME)
    yield from labels.labels()
    if QUEUE in labels.value and not labels.value[QUEUE]:
        yield labels.at(QUEUE), "empty, must be the name of a LocalQueue"
    yield from spec.unknown()
    yield from whole(spec, "ttlSecondsAfterFinished", 0, 0)
    jobs = spec.nodes("replicatedJobs", "replicatedJob")
    if not jobs:
        yield spec.at("replicatedJobs"), "empty: nothing would run"
    yield from twice(jobs)
    yield from spec.node("network", "network").unknown()
    yield from _coordinator(spec, jobs)
    yield from _failure_policy(spec, jobs)
    for job in jobs:
        yield from _replicated_job(job, str(metadata.value.get("name")))
        if job.get("replicas", int, 1) > 1 and ACCELERATOR in _pod_of(job).node("nodeSelector").value:
            if EXCLUSIVE not in metadata.node("annotations").value:
                yield metadata.node("annotations").at(EXCLUSIVE), (
                    "missing, must be cloud.google.com/gke-nodepool: hosts of two slices could share a node pool")
        yield from _actions(spec, job)
    yield from _joining(str(metadata.value.get("name")), spec, jobs)


def _job_of(job: Node) -> Node:
    return job.node("template").node("spec", "job")


def _pod_of(job: Node) -> Node:
    return _job_of(job).node("template").node("spec", "pod")


def _coordinator(spec: Node, jobs: list[Node]) -> Found:
    if "coordinator" not in spec.value:
        return
    found = spec.node("coordinator", "coordinator")
    yield from found.unknown()
    yield from found.expect("replicatedJob", [job.value.get("name") for job in jobs], "a name of spec.replicatedJobs")
    for job in (job for job in jobs if job.value.get("name") == found.value.get("replicatedJob")):
        counts = {"jobIndex": job.get("replicas", int, 1), "podIndex": _job_of(job).get("completions", int, 1)}
        for key, count in counts.items():
            if not 0 <= found.get(key, int, 0) < count:
                yield found.at(key), f"{found.value[key]}, must be 0 to {count - 1}"


def _failure_policy(spec: Node, jobs: list[Node]) -> Found:
    policy = spec.node("failurePolicy", "failurePolicy")
    if not policy.value:
        yield policy.path, "missing: the first failure of a pod would end the job"
    yield from policy.unknown()
    yield from whole(policy, "maxRestarts", 0, 0)
    yield from policy.expect("restartStrategy", [None, "Recreate", "BlockingRecreate"])
    rules, names = policy.nodes("rules", "rule"), [job.value.get("name") for job in jobs]
    yield from twice(rules)
    for rule in rules:
        yield from rule.unknown()
        if not re.fullmatch(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", str(rule.value.get("name") or "")):
            yield rule.at("name"), f"{rule.value.get('name')!r}: letters, digits, _ , and :, a letter first"
        yield from rule.expect("action", [FAIL, RESTART, UNCOUNTED])
        for key, allowed in (("onJobFailureReasons", REASONS), ("targetReplicatedJobs", names)):
            for value in rule.get(key, list, []):
                if value not in allowed:
                    yield rule.at(key), f"{value!r} is none of {', '.join(map(str, allowed))}"
        for pattern in rule.get("onJobFailureMessagePatterns", list, []):
            try:
                re.compile(pattern)
            except (re.error, TypeError) as error:
                yield rule.at("onJobFailureMessagePatterns"), f"{pattern!r}: {error}"


def _replicated_job(node: Node, jobset: str) -> Found:
    yield from node.unknown()
    yield from node.named()
    yield from whole(node, "replicas", 1, 1)
    job, pod = _job_of(node), _pod_of(node)
    yield from job.unknown()
    for key in ("parallelism", "completions"):
        yield from whole(job, key, 1, 1)
    parallelism, completions = job.get("parallelism", int, 1), job.get("completions", int, 1)
    if completions != parallelism:
        yield job.at("completions"), f"{completions}, but parallelism is {parallelism}: all processes must run at once"
    yield from job.expect("completionMode", ["Indexed"], "a process learns its number from it")
    yield from job.expect("backoffLimit", [0], "a pod restarted alone waits for processes that are gone")
    yield from job.expect("podReplacementPolicy", [None, "Failed"], "podFailurePolicy needs it")
    yield from pod.expect("restartPolicy", ["Never"], "podFailurePolicy needs it")
    longest = f"{jobset}-{node.value.get('name')}-{node.get('replicas', int, 1) - 1}-{completions - 1}-abcde"
    if len(longest) > NAME:
        yield "metadata.name", f"pods would be called {longest}: {len(longest)} characters, at most {NAME}"
    yield from job.node("template").node("metadata").node("labels").labels()
    yield from _pod_failure_policy(job, pod)
    yield from _pod(pod)
    yield from _tpu(job, pod)


def _pod_failure_policy(job: Node, pod: Node) -> Found:
    names = [each.value.get("name") for each in (*pod.nodes("initContainers"), *pod.nodes("containers"))]
    for rule in job.node("podFailurePolicy").nodes("rules"):
        yield from rule.expect("action", ["FailJob", "FailIndex", "Ignore", "Count"])
        codes, conditions = rule.node("onExitCodes"), rule.nodes("onPodConditions")
        if bool(codes.value) == bool(conditions):
            yield rule.path, "has both or none of onExitCodes and onPodConditions, must have one"
        for condition in conditions:
            why = "a text, which Kubernetes up to 1.34 asks for"
            yield from condition.expect("status", ["True", "False", "Unknown"], why)
        if not codes.value:
            continue
        yield from codes.expect("operator", ["In", "NotIn"])
        yield from codes.expect("containerName", [None, *names], "a container of the pod")
        values = codes.get("values", list, [])
        good = all(type(value) is int and 0 <= value < 256 for value in values)
        if not values or not good or len(set(values)) < len(values):
            yield codes.at("values"), f"{values!r}, must be different exit codes of 0 to 255"
        elif codes.value.get("operator") == "In" and 0 in values:
            yield codes.at("values"), "0 is success, which cannot be In"


def _pod(pod: Node) -> Found:
    yield from pod.unknown()
    containers, volumes = pod.nodes("containers", "container"), pod.nodes("volumes")
    if not containers:
        yield pod.at("containers"), "empty: nothing would run"
    everything = [*pod.nodes("initContainers", "container"), *containers]
    yield from twice(everything)
    yield from twice(volumes)
    for container in everything:
        yield from _container(container, [str(volume.value.get("name")) for volume in volumes])
    if pod.get("hostNetwork", bool, False):
        why = "beside hostNetwork no other resolves the coordinator's name"
        yield from pod.expect("dnsPolicy", ["ClusterFirstWithHostNet"], why)
    grace = pod.get("terminationGracePeriodSeconds", int)
    if grace is None or grace < GRACE:
        found = f"{grace}" if grace is not None else "missing, which means 30"
        yield pod.at("terminationGracePeriodSeconds"), f"{found}, must be {GRACE} or more: a step and a save lie in it"
    for each in pod.nodes("tolerations"):
        yield from each.expect("operator", [None, "Exists", "Equal"])
        if each.value.get("operator") == "Exists" and each.value.get("value"):
            yield each.at("value"), f"{each.value['value']!r}: the operator Exists has no value"
    yield from pod.node("nodeSelector").labels()


def _container(node: Node, volumes: list[str]) -> Found:
    yield from node.unknown()
    yield from node.named()
    image = str(node.value.get("image") or "")
    if not re.fullmatch(r"[\w.-]+(:\d+)?(/[\w.-]+)*(:[\w.-]+)?(@sha256:[0-9a-f]{64})?", image):
        yield node.at("image"), f"{image!r} is not the address of an image, REGISTRY/NAME:TAG"
    environment, mounts = node.nodes("env"), node.nodes("volumeMounts")
    yield from twice(environment)
    for each in environment:
        if not re.fullmatch(r"[A-Za-z_]\w*", str(each.value.get("name") or "")):
            yield each.at("name"), f"{each.value.get('name')!r}: letters, digits and _, no digit first"
        if each.get("value", str) is not None and each.value.get("valueFrom") is not None:
            yield each.at("valueFrom"), "beside a value, must be alone"
    yield from twice(mounts, "mountPath")
    for each in mounts:
        yield from each.expect("name", volumes, "a volume of the pod")
    for key in ("command", "args"):
        if any(not isinstance(word, str) for word in node.get(key, list, [])):
            yield node.at(key), f"{node.value[key]!r}: words are texts: quote numbers"
    yield from _reaches_the_program(node)
    limits, requests = (node.node("resources").node(key) for key in ("limits", "requests"))
    for chip in (TPU, GPU):
        if chip in limits.value and not re.fullmatch(r"[1-9]\d*", str(limits.value[chip])):
            yield limits.at(chip), f"{limits.value[chip]!r}, must be a whole number of 1 or more"
        if chip in requests.value and str(requests.value[chip]) != str(limits.value.get(chip)):
            yield requests.at(chip), f"{requests.value[chip]!r}, but the limit is {limits.value.get(chip)!r}"


def _reaches_the_program(container: Node) -> Found:
    """A shell with a program as its child does not pass SIGTERM on; with exec the program takes its place."""
    command = [str(word) for word in container.get("command", list, [])]
    if len(command) > 2 and command[0].rpartition("/")[2] in ("sh", "bash") and re.fullmatch(r"-\w*c", command[1]):
        lines = [line.strip() for line in re.split(r"[;\n]|&&|\|\|", command[2]) if line.strip()]
        if lines and not lines[-1].startswith("exec "):
            yield container.at("command"), f"ends with {lines[-1]!r}, must begin with exec: SIGTERM stops at the shell"


def _tpu(job: Node, pod: Node) -> Found:
    selector, names = pod.node("nodeSelector"), {chip.gke: kind for kind, chip in CHIPS.items()}
    limits = [each.node("resources").node("limits") for each in pod.nodes("containers")]
    counts = [int(each.value[TPU]) for each in limits if re.fullmatch(r"[1-9]\d*", str(each.value.get(TPU)))]
    if not counts:
        if limits and ACCELERATOR in selector.value:
            yield limits[0].at(TPU), "missing: the pod would get no chip"
        return
    where = next(each.at(TPU) for each in limits if TPU in each.value)
    yield from selector.expect(ACCELERATOR, names)
    kind, topology = names.get(str(selector.value.get(ACCELERATOR))), selector.value.get(TOPOLOGY)
    if kind is None:
        return
    try:
        slice_of(f"{kind}:{topology}")
    except ValueError as error:
        yield selector.at(TOPOLOGY), str(error)
        return
    try:
        hosts = slice_of(f"{kind}:{topology}", sum(counts)).hosts
    except ValueError as error:
        yield where, str(error)
        return
    if hosts != job.get("parallelism", int, 1):
        yield job.at("parallelism"), f"{job.get('parallelism', int, 1)} pods, but a slice {topology} has {hosts} hosts"


def _joining(name: str, spec: Node, jobs: list[Node]) -> Found:
    """Problems of JAX_NUM_PROCESSES and JAX_COORDINATOR_ADDRESS, where the manifest sets them."""
    network = spec.node("network")
    count = sum(job.get("replicas", int, 1) * _job_of(job).get("parallelism", int, 1) for job in jobs)
    hosts = [f"{name}-{job.value.get('name')}-0-0.{network.get('subdomain', str, name)}" for job in jobs]
    for each in (each for job in jobs for c in _pod_of(job).nodes("containers") for each in c.nodes("env")):
        value = each.get("value", str, "")
        if each.value.get("name") == "JAX_NUM_PROCESSES" and value != str(count):
            yield each.at("value"), f"JAX_NUM_PROCESSES is {value!r}, but there are {count} pods"
        if each.value.get("name") == "JAX_COORDINATOR_ADDRESS":
            host, _, port = value.rpartition(":")
            if host.partition(".svc")[0] not in hosts or not re.fullmatch(r"\d{2,5}", port):
                yield each.at("value"), f"the coordinator is {value!r}, must be {' or '.join(hosts)}, :PORT"
            if network.get("enableDNSHostnames", bool, True) is False:
                yield network.at("enableDNSHostnames"), f"false, must be true: {host} would not resolve"


def action_after(spec: dict[str, Any], job: dict[str, Any], exit_code: int | None) -> str:
    """What JobSet does when a pod of a replicated job ends with an exit code, None for a pod whose node is taken away.

    The pod's rules make the Job fail with a reason and a message (Kubernetes' pod_failure_policy.go), on which the
    JobSet's rules act, the first that matches; without one it restarts, and counts that.
    """
    reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    for index, rule in enumerate((job["template"]["spec"].get("podFailurePolicy") or {}).get("rules") or []):
        codes, conditions = rule.get("onExitCodes") or {}, rule.get("onPodConditions") or []
        if exit_code is None:
            matches = any(condition.get("type") == "DisruptionTarget" for condition in conditions)
            happened = "Pod default/pod has condition DisruptionTarget"
        else:
            matches = bool(codes) and (exit_code in codes.get("values", [])) == (codes.get("operator") == "In")
            happened = f"Container {codes.get('containerName')} for pod default/pod failed with exit code {exit_code}"
        if matches:
            if rule.get("action") == "FailJob":
                reason, message = "PodFailurePolicy", f"{happened} matching FailJob rule at index {index}"
            break
    for rule in (spec.get("failurePolicy") or {}).get("rules") or []:
        reasons, patterns = rule.get("onJobFailureReasons"), rule.get("onJobFailureMessagePatterns")
        if reasons and reason not in reasons or patterns and not any(re.search(each, message) for each in patterns):
            continue
        if not rule.get("targetReplicatedJobs") or job.get("name") in rule["targetReplicatedJobs"]:
            return str(rule.get("action"))
    return RESTART


def _actions(spec: Node, job: Node) -> Found:
    try:
        inside = {"name": job.value.get("name"), "template": {"spec": _job_of(job).value}}
        found = {code: action_after(spec.value, inside, code) for code in RIGHT}
    except (re.error, TypeError, AttributeError):
        return  # said already
    for code, right in RIGHT.items():
        if found[code] != right:
            what = f"exit code {code}" if code is not None else "DisruptionTarget"
            where = _job_of(job).at("podFailurePolicy")
            yield spec.at("failurePolicy.rules"), f"{what}, by {where}, leads to {found[code]}, must lead to {right}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Check a JobSet without a cluster.")
    parser.add_argument("file", help="JSON, or YAML where PyYAML is installed")
    try:
        found = problems(read(parser.parse_args().file))
    except (OSError, ValueError) as error:
        found = [str(error)]
    for line in found:
        print(f"error: {line}", file=sys.stderr)
    return 2 if found else 0


if __name__ == "__main__":
    sys.exit(main())
