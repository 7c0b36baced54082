#!/usr/bin/env python3
"""Submits a job to any cloud that SkyPilot knows, as a managed job, which SkyPilot moves when machines are taken away.

    python launch/skypilot.py --accelerators H100:8 --nodes 4 --spot --mount /mnt=runs \\
        --directory /mnt/runs/t5_sotu train t5_sotu mesh.fsdp=32 --go
    python launch/skypilot.py status | follow | cancel /mnt/runs/t5_sotu

Without ``--go`` it writes SkyPilot's YAML and says what it would do. A node is a process of the job and sees all of its
accelerators. Exit code 75 (saved) and machines taken away start it anew, uncounted; exit code 2 (a user's mistake) ends
it; other failures restart it on the same machines, ``--restarts`` times. Standard library only; copy it with
elsewhere.py, job.py and manifest.py.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
from typing import Any

import job as jobs
from elsewhere import ENDS, State, command_line, folder_here, in_source, pairs, plan_of, script_of, states
from manifest import to_yaml

PORT = 8476
SETUP = """\
set -e
command -v uv || curl -LsSf https://astral.sh/uv/install.sh | sh
PATH=$HOME/.local/bin:$PATH
uv venv --clear --python 3.12 ~/env
uv pip install --quiet --python ~/env/bin/python '.{extra}'"""
# SIGTERM is passed on to the program; a signal ends only the wait for it.
RUN = """\
PATH=$HOME/env/bin:$PATH
head=$(echo "$SKYPILOT_NODE_IPS" | head -n 1)
export JAX_COORDINATOR_ADDRESS=$head:{port} JAX_COORDINATOR_BIND_ADDRESS=$head:{port}
export JAX_NUM_PROCESSES=$SKYPILOT_NUM_NODES
trap 'kill -s TERM $child 2>/dev/null' TERM
failures=0
while :; do
sh -c {script} job {words} &
child=$!
wait $child; code=$?
while kill -s 0 $child 2>/dev/null; do wait $child; code=$?; done
case $code in 0|{final}) exit $code;; esac
failures=$((failures + 1))
[ $failures -le {restarts} ] || exit $code
echo "exit code $code; again in $((failures * {pause})) s, time $failures of {restarts}"
sleep $((failures * {pause}))
done"""
KINDS = {
    "PENDING": "queued", "SUBMITTED": "queued", "STARTING": "pending", "RECOVERING": "pending", "RUNNING": "running",
    "WINDING_DOWN": "running", "SUCCEEDED": "complete", "CANCELLING": "gone", "CANCELLED": "gone",
}  # fmt: skip


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description="Submit a job to any cloud by SkyPilot.")
    add = top.add_argument
    add("--accelerators", default="", metavar="NAME:COUNT", help="of each node: H100:8, tpu-v6e-8, ...; empty: none")
    add("--nodes", type=int, default=1, help="number of nodes (default 1)")
    add("--infra", default="", help="cloud/region/zone, such as gcp/us-east5 (default: the cheapest)")
    add("--spot", action="store_true", help="cheaper, and taken away when others pay more")
    add("--resource", action="append", default=[], metavar="NAME=VALUE", help="cpus=16+, memory=64+, ...; repeatable")
    add("--mount", action="append", default=[], metavar="PATH=SOURCE", help="a volume of SkyPilot, or a bucket such as "
        "gs://runs, in which runs and caches outlive the machines; repeatable")  # fmt: skip
    add("--source", default=os.path.dirname(jobs.HERE), help="folder to install (default: this)")
    add("--setup", default="", metavar="COMMAND", help="how it is installed into ~/env (default: with uv)")
    add("--env", action="append", default=[], metavar="NAME=VALUE", help="variable of the job; repeatable")
    add("--restarts", type=int, default=10, help="restarts after failures (default 10)")
    add("--name", default="", help="name of the managed job (default: the run's)")
    add("--poll", type=float, default=30.0, help="seconds between questions of follow (default 30)")
    jobs.add_options(top, "submit it with sky; without, the YAML is only written")
    return top


def task(options: argparse.Namespace, job: jobs.Job, name: str) -> dict[str, Any]:
    """SkyPilot's YAML of a job."""
    kind = "tpu" if options.accelerators.startswith("tpu") else "cuda" if options.accelerators else ""
    count = re.search(r"\d+$", options.accelerators)  # of a node
    devices = f"{'tpu' if kind == 'tpu' else 'gpu'}:{int(count[0]) * options.nodes if count else options.nodes}"
    mounts = pairs(options.mount, "--mount")
    buckets = {path: {"source": source, "mode": "MOUNT"} for path, source in mounts.items() if "://" in source}
    volumes = {path: source for path, source in mounts.items() if "://" not in source}
    variables = {
        **({"JAX_PLATFORMS": f"{kind},cpu"} if kind else {}),
        **({"T5X_LIKE_CACHE": f"{next(iter(mounts))}/cache"} if mounts else {}),
        **pairs(options.env, "--env"),
    }
    run = RUN.format(
        port=PORT, restarts=options.restarts, pause=10, final=f"{jobs.MISTAKE}|{jobs.SAVED}|{jobs.INTERRUPTED}",
        script=shlex.quote(script_of(job, "$SKYPILOT_NODE_RANK", devices if kind else "")), words=shlex.join(job.words),
    )  # fmt: skip
    return {
        "name": name,
        "workdir": os.path.abspath(options.source),
        "num_nodes": options.nodes,
        "resources": {
            **({"infra": options.infra} if options.infra else {}),
            **({"accelerators": options.accelerators} if kind else {}),
            **pairs(options.resource, "--resource"),
            "use_spot": options.spot,
            "job_recovery": {"max_restarts_on_errors": 0, "recover_on_exit_codes": [jobs.SAVED]},
        },
        **({"envs": variables} if variables else {}),
        **({"file_mounts": buckets} if buckets else {}),
        **({"volumes": volumes} if volumes else {}),
        "setup": options.setup or SETUP.format(extra=f"[{kind}]" if kind else ""),
        "run": run,
    }


def sky(*words: str) -> list[str]:
    return ["sky", "jobs", *words]


def state_of(name: str) -> State:
    """What SkyPilot's table of managed jobs says of the newest of a name.

    Raises:
      job.OutsideError: it says nothing.
    """
    for line in jobs.outside(sky("queue", "--verbose"), seconds=300).splitlines():
        words = re.sub(r"\x1b\[[0-9;]*m", "", line).split()
        if name in words[:4]:
            status = next((word for word in words if word in KINDS or word.startswith("FAILED")), "")
            if status:
                return State(KINDS.get(status, "failed"), f"{name}: {status}: job {words[0]}")
    return State("gone", f"{name}: no such managed job: never submitted, or long ago")


def follow(name: str, poll: float) -> int:
    """Prints the job's log and every change of its state until it ends; the job's exit code."""
    state = None
    for state in states(lambda: state_of(name), poll):
        if state.kind == "running":
            subprocess.run(sky("logs", "--name", name, "--follow"))
    return ENDS[state.kind] if state else jobs.FAILED


def act(action: str, options: argparse.Namespace, folder: str) -> int:
    """``status``, ``follow`` or ``cancel`` of the job last submitted for the run in ``folder``."""
    name = options.name or (jobs.remembered(folder, "skypilot") or [{}])[-1].get("name")
    if not name:
        raise jobs.LaunchError(f"{folder}: no job was submitted for it from here; --name NAME asks for one by name")
    if action == "follow":
        return follow(name, options.poll)
    if action == "cancel":
        print(jobs.outside(sky("cancel", "--name", name, "--yes"), seconds=300), end="")
        return 0
    state = state_of(name)
    print(state.said)
    return ENDS.get(state.kind, 0)


def require_kept(options: argparse.Namespace, job: jobs.Job) -> None:
    """Raises LaunchError if a run's directory would be lost with its machine."""
    mounts = pairs(options.mount, "--mount")
    inside = any(job.directory.startswith(path.rstrip("/") + "/") for path in mounts)
    if job.command == "train" and "://" not in job.directory and not inside:
        raise jobs.LaunchError(f"--directory: {job.directory} is below no --mount ({', '.join(mounts) or 'none'}), and "
                               "would be lost with its machine")  # fmt: skip


def launch(top: argparse.ArgumentParser, options: argparse.Namespace, job: jobs.Job) -> int:
    require_kept(options, job)
    plan, here = plan_of(job), folder_here(job.folder)
    print(plan.said)
    if plan.action == "complete":
        return 0
    name = options.name or job.name
    path = os.path.join(here, "launch", f"{name}.sky.yaml")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(to_yaml(task(options, in_source(job, options.source), name)) + "\n")
    submit = sky("launch", "--name", name, "--yes", "--detach-run", path)
    print(f"task: {path}")
    if not options.go:
        print(f"not submitted; --go does: {shlex.join(submit)}")
        return 0
    state = state_of(name)
    if state.kind not in ENDS:
        raise jobs.LaunchError(f"{state.said}\n  follow or cancel it, or give this one another --name")
    print(jobs.outside(submit, seconds=3600), end="")
    jobs.remember(jobs.job_of(["train", here]), "skypilot", name=name)
    print(f"next: python {sys.argv[0]} follow {here}")
    return 0


if __name__ == "__main__":
    jobs.leave(lambda: command_line(parser(), act, launch))
