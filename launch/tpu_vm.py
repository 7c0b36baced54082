#!/usr/bin/env python3
"""Runs a job on TPU VMs of Google Cloud, by queued resources: creates them, installs this source, starts the job on
all hosts, restarts it, and creates them anew when they were taken away.

    python launch/tpu_vm.py --zone us-east5-b --topology v6e:4x4 --spot --setup 'sudo mount ADDRESS:/share /mnt' \\
        --directory /mnt/runs/t5_sotu train t5_sotu mesh.fsdp=16 --go
    python launch/tpu_vm.py status | follow | cancel /mnt/runs/t5_sotu

Without ``--go`` it prints the command lines of gcloud. With it, it stays and watches until the job ends (let it run in
tmux or on a small machine); the job itself runs on without it, and the same command watches on. Exit code 75 (saved)
and TPUs taken away restart it, uncounted; exit code 2 ends it; other failures restart it ``--restarts`` times in a row.
At the end the log is fetched and the TPUs are deleted. Standard library only; copy it with elsewhere.py, job.py and
slices.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import os
import shlex
import subprocess
import sys
import tarfile
import tempfile
import time
import uuid
from typing import Any

import job as jobs
from elsewhere import ENDS, State, check_line, command_line, folder_here, in_source, pairs, plan_of, script_of, states
from slices import CHIPS, Slice, slice_of

PORT = 8476
FOLDER = "t5x_like_job"  # in the home folder of every host
WAITING = ("CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING")
INSTALL = (
    "curl -LsSf https://astral.sh/uv/install.sh | sh && ~/.local/bin/uv venv --clear --python 3.12 env && "
    "~/.local/bin/uv pip install --quiet --python env/bin/python './source[tpu]'"
)
# Scripts that lie in FOLDER on every host. start.sh gets the slice's number and the first host's address; the program
# runs in a session of its own, which outlives ssh, and of one that ran before nothing is left.
START = """\
cd ~/{folder} || exit
[ ! -f job.pid ] || kill -s KILL -- -$(cat job.pid) 2>/dev/null
rm -f job.exit job.pid job.cancelled
WORKER=$(curl -sf -H 'Metadata-Flavor: Google' \\
    http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number) || exit
export WORKER SLICE=$1 JAX_COORDINATOR_ADDRESS=$2:{port} JAX_COORDINATOR_BIND_ADDRESS=$2:{port}
export JAX_NUM_PROCESSES={processes} {variables}
PATH=$PWD/env/bin:$PATH
setsid nohup sh -c 'cd source; sh ../process.sh; echo $? > ../job.exit' >> job.log 2>&1 < /dev/null &
echo $! > job.pid
"""
ASK = """\
cd ~/{folder} || exit
if [ -f job.cancelled ]; then echo cancelled
elif [ ! -f job.pid ]; then echo new
elif kill -s 0 $(cat job.pid) 2>/dev/null || kill -s 0 -- -$(cat job.pid) 2>/dev/null; then echo running
elif [ -f job.exit ]; then cat job.exit
else echo lost; fi
"""
CANCEL = """\
cd ~/{folder} || exit 0
touch job.cancelled
[ -f job.pid ] || exit 0
kill -s TERM -- -$(cat job.pid) 2>/dev/null
for second in $(seq {grace}); do kill -s 0 -- -$(cat job.pid) 2>/dev/null || break; sleep 1; done
"""


def scripts(options: Any, job: jobs.Job, tpu: Slice, submission: str) -> dict[str, str]:
    """The scripts of a job, by their names; ``submission`` tells its starts from those of the next."""
    variables = {"JAX_PLATFORMS": "tpu,cpu", "T5X_LIKE_JOB": submission, **pairs(options.env, "--env")}
    start = START.format(
        folder=FOLDER, port=PORT, processes=tpu.hosts * options.slices,
        variables=" ".join(f"{key}={shlex.quote(value)}" for key, value in variables.items()),
    )  # fmt: skip
    number, devices = f"$(($SLICE * {tpu.hosts} + $WORKER))", f"tpu:{options.slices * tpu.hosts * tpu.chips}"
    process = f"set -- {shlex.join(job.words)}\n" + script_of(job, number, devices) + "\n"
    cancel = CANCEL.format(folder=FOLDER, grace=options.grace)
    return {"start.sh": start, "process.sh": process, "ask.sh": ASK.format(folder=FOLDER), "cancel.sh": cancel}


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description="Run a job on TPU VMs of Google Cloud.")
    add = top.add_argument
    add("--zone", default="", help="such as us-east5-b (required)")
    add("--project", default="", help="gcloud's (default: the configured one)")
    add("--topology", default="", metavar="CHIP:SIDES", help="v5e:4x4, v5p:2x2x4, v6e:8x8, ... (required)")
    add("--slices", type=int, default=1, help="number of slices (default 1)")
    add("--spot", action="store_true", help="cheaper, and taken away when others pay more")
    add("--reserved", action="store_true", help="from a reservation")
    add("--runtime", default="", help="TPU software version (default: that of the chip)")
    add("--source", default=os.path.dirname(jobs.HERE), help="folder to install; git says which files (default: this)")
    add("--setup", action="append", default=[], metavar="COMMAND", help="run first on every host; repeatable")
    add("--install", default=INSTALL, metavar="COMMAND", help="how ./source gets into ./env (default: with uv)")
    add("--env", action="append", default=[], metavar="NAME=VALUE", help="variable of the job; repeatable")
    add("--grace", type=int, default=300, help="seconds to save in when it is cancelled (default 300)")
    add("--restarts", type=int, default=10, help="failures in a row after which to give up (default 10)")
    add("--keep", action="store_true", help="keep the TPUs at the end, which costs money")
    add("--name", default="", help="name of the queued resource (default: the run's)")
    add("--poll", type=float, default=30.0, help="seconds between questions (default 30)")
    jobs.add_options(top, "do it and watch; without, the command lines are only printed")
    return top


class Tpus:
    """The TPU VMs of a job: command lines of gcloud, and what it answers.

    Args:
      options: parsed options.
      name: the queued resource.
    """

    def __init__(self, options: Any, name: str):
        self.options, self.name = options, name

    def words(self, group: str, verb: str, *more: str) -> list[str]:
        project = [f"--project={self.options.project}"] if self.options.project else []
        where = [f"--zone={self.options.zone}", *project, "--quiet"]
        return ["gcloud", "compute", "tpus", group, verb, *more, *where]

    def queued(self, verb: str, *more: str) -> list[str]:
        return self.words("queued-resources", verb, self.name, *more)

    def create(self, tpu: Slice) -> list[str]:
        one = self.options.slices == 1
        nodes = [f"--node-id={self.name}"] if one else [
            f"--node-count={self.options.slices}", f"--node-prefix={self.name}"]  # fmt: skip
        kind = [f"--{kind}" for kind in ("spot", "reserved") if getattr(self.options, kind)]
        runtime = self.options.runtime or CHIPS[tpu.kind].runtime
        shape = [f"--accelerator-type={tpu.accelerator_type}", f"--runtime-version={runtime}"]
        return self.queued("create", *shape, *nodes, *kind)

    def delete(self) -> list[str]:
        return self.queued("delete", "--force")

    def ssh(self, command: str, node: str = "all", worker: str = "all") -> list[str]:
        return self.queued("ssh", f"--node={node}", f"--worker={worker}", f"--command={command}")

    def copy(self, archive: str) -> list[str]:
        target = f"{self.name}:{FOLDER}.tar.gz"
        return self.words("queued-resources", "scp", archive, target, "--node=all", "--worker=all")

    def address(self) -> list[str]:
        """Asks for the address of the first host in the TPUs' own network."""
        node = self.name if self.options.slices == 1 else f"{self.name}-0"
        return self.words("tpu-vm", "describe", node, "--format=value(networkEndpoints[0].ipAddress)")

    def install(self) -> list[str]:
        steps = [f"rm -rf {FOLDER}", f"mkdir {FOLDER}", f"tar -xzf {FOLDER}.tar.gz -C {FOLDER}", f"cd {FOLDER}",
                 *self.options.setup, self.options.install]  # fmt: skip
        return self.ssh("set -e; " + "; ".join(steps))

    def start(self, node: int, address: str) -> list[str]:
        """Starts the processes of one slice."""
        return self.ssh(f"sh {FOLDER}/start.sh {node} {address}", node=str(node))

    def state(self) -> str:
        """The queued resource's state; empty if there is none."""
        try:
            return jobs.outside(self.queued("describe", "--format=value(state.state)")).strip()
        except jobs.OutsideError as error:
            if error.kind == "gone":
                return ""
            raise

    def ask(self) -> str:
        """What the first host says of the job: new, running, lost, cancelled or its exit code."""
        said = jobs.outside(self.ssh(f"sh {FOLDER}/ask.sh || echo new", node="0", worker="0"), seconds=300).split()
        return said[-1] if said else "lost"

    def look(self) -> State:
        """The state of the queued resource and, if it is there, of the job on it."""
        state = self.state()
        if state != "ACTIVE":
            if not state:
                return State("gone", f"{self.name}: no queued resource: never created here, cancelled, or at its end")
            kind = "queued" if state in WAITING else "refused" if state == "FAILED" else "taken"
            return State(kind, f"{self.name}: {state}")
        said = self.ask()
        kinds = {"0": "complete", str(jobs.MISTAKE): "mistake", str(jobs.SAVED): "saved"}
        kind = kinds.get(said, "failed" if said.isdigit() or said == "lost" else said)
        return State(kind, f"{self.name}: " + (f"exit code {said}" if said.isdigit() else f"ACTIVE, job {said}"))


def archive(path: str, source: str, more: dict[str, str]) -> None:
    """Packs the files of a folder that git knows or does not ignore, changed ones as they are, under source/, and
    ``more`` files by name."""
    words = ["git", "-C", source, "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = [name for name in jobs.outside(words).split("\0") if os.path.isfile(os.path.join(source, name))]
    with tarfile.open(path, "w:gz") as tar:
        for name in sorted(names):
            tar.add(os.path.join(source, name), f"source/{name}")
        for name, text in more.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            tar.addfile(entry, io.BytesIO(text.encode()))


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


class Watch:
    """Brings a job to its end.

    Args:
      tpus: its TPU VMs.
      job: what to run.
      tpu: the slice.
      here: the local folder for its logs.
    """

    def __init__(self, tpus: Tpus, job: jobs.Job, tpu: Slice, here: str):
        self.tpus, self.job, self.tpu, self.here = tpus, job, tpu, here
        self.restarts = jobs.Restarts(tpus.options.restarts)
        self.seen = False  # the job has run since this began to watch: what it left before does not count
        last = (jobs.remembered(here, "tpu-vm") or [{}])[-1]
        same = [last.get(key) for key in ("name", "zone", "command")] == [tpus.name, tpus.options.zone, job.words]
        self.submission = str(last.get("submission", "")) if same else ""  # none where its end was noted
        self.watched_before = bool(self.submission)
        if not self.submission:
            self.submit()

    def submit(self) -> None:
        """Takes a new name for this submission, by which its starts know that they are of one job."""
        self.submission = uuid.uuid4().hex
        self.note(submission=self.submission)

    def note(self, **values: Any) -> None:
        """Notes the submission, or its end, beside the run."""
        options, job = self.tpus.options, dataclasses.replace(self.job, directory=self.here)
        jobs.remember(job, "tpu-vm", name=self.tpus.name, zone=options.zone, project=options.project, **values)

    def run(self) -> int:
        """The job's exit code, once it has ended for good."""
        for state in states(self.tpus.look, self.tpus.options.poll, ends=()):
            code = self.react(state.kind)
            if code is not None:
                return code
        return jobs.FAILED  # never: there is no last state

    def react(self, kind: str) -> int | None:
        """Does what a state asks for; an exit code if that was the end."""
        if kind in ("gone", "cancelled") and self.seen:
            say("cancelled")
            self.note(exit_code=jobs.INTERRUPTED)
            return jobs.INTERRUPTED
        if kind == "gone":
            if self.watched_before:  # cancelled elsewhere
                self.submit()
            self.call("create", self.tpus.create(self.tpu), 600)
        elif kind in ("refused", "taken"):
            if kind == "refused" and not self.again(jobs.FAILED):
                return jobs.FAILED
            self.call("delete", self.tpus.delete(), 1200)
            self.call("create", self.tpus.create(self.tpu), 600)
        elif kind == "running":
            self.seen = True
        elif kind == "new" or (kind != "queued" and not self.seen):
            self.install()
            self.start()
        elif kind in ENDS or kind == "saved":
            code = ENDS.get(kind, jobs.SAVED)
            if code == jobs.COMPLETE or not self.again(code):
                return self.end(code)
            self.start()
        return None

    def again(self, code: int) -> bool:
        """Whether the job starts again; waits until then."""
        wait = self.restarts.wait(code, jobs.latest_step(self.job.directory))
        if wait is not None:
            say(f"again in {wait:.0f} s")
            time.sleep(wait)
        return wait is not None

    def call(self, what: str, words: list[str], seconds: float) -> str:
        say(what)
        return jobs.outside(words, seconds=seconds)

    def install(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "source.tar.gz")
            archive(path, self.tpus.options.source, scripts(self.tpus.options, self.job, self.tpu, self.submission))
            self.call("copy the source", self.tpus.copy(path), 600)
        self.call("install", self.tpus.install(), 1800)

    def start(self) -> None:
        address = self.call("ask for the first host's address", self.tpus.address(), 120).strip()
        for node in range(self.tpus.options.slices):
            self.call(f"start slice {node}", self.tpus.start(node, address), 300)
        self.seen = True

    def end(self, code: int) -> int:
        """Fetches the log and deletes the TPUs."""
        self.note(exit_code=code)
        path = os.path.join(self.here, "launch", f"{self.tpus.name}.log")
        log = self.call("fetch the log", self.tpus.ssh(f"cat {FOLDER}/job.log", node="0", worker="0"), 600)
        with open(path, "a", encoding="utf-8") as file:
            file.write(log)
        print("".join(log.splitlines(keepends=True)[-20:]), end="")
        print(f"exit code {code}; the log: {path}")
        if not self.tpus.options.keep:
            self.call("delete", self.tpus.delete(), 1200)
        return code


def act(action: str, options: argparse.Namespace, folder: str) -> int:
    """``status``, ``follow`` or ``cancel`` of the job last started for the run in ``folder``."""
    last = (jobs.remembered(folder, "tpu-vm") or [{}])[-1]
    for key in ("zone", "project"):
        setattr(options, key, getattr(options, key) or last.get(key, ""))
    name = options.name or last.get("name")
    if not name or not options.zone:
        raise jobs.LaunchError(f"{folder}: no job was started for it from here; --name NAME --zone ZONE asks for one")
    tpus = Tpus(options, name)
    if action == "cancel":
        jobs.outside(tpus.ssh(f"sh {FOLDER}/cancel.sh || true"), seconds=3600)
        jobs.outside(tpus.delete(), seconds=1200)
        if last:
            work = jobs.job_of(["train", folder])
            jobs.remember(work, "tpu-vm", name=name, zone=options.zone, project=options.project, exit_code=None)
        print(f"{name}: stopped and deleted")
        return 0
    if action == "follow":
        log = f"cd {FOLDER} && tail --pid=$(cat job.pid) --lines=+1 --follow=name job.log"
        subprocess.run(tpus.ssh(log, node="0", worker="0"))
    state = tpus.look()
    print(state.said)
    return ENDS.get(state.kind, 0)


def show(tpus: Tpus, job: jobs.Job, tpu: Slice) -> None:
    """Prints the command lines that bring a job to its start."""
    lines = [tpus.create(tpu), tpus.copy("SOURCE.tar.gz"), tpus.install(), tpus.address()]
    lines += [tpus.start(node, "ADDRESS") for node in range(tpus.options.slices)]
    if job.command == "train":
        topology = tpus.options.topology + f" x{tpus.options.slices}" * (tpus.options.slices > 1)
        print(f"where it is installed: {check_line(job, 'tpu-vm', topology)}")
    print("not started; --go runs, each when the one before it has succeeded:")
    for words in lines:
        print("  " + shlex.join(words))
    for name, text in scripts(tpus.options, job, tpu, "SUBMISSION").items():
        print(f"{name}, on every host:\n  " + text.rstrip().replace("\n", "\n  "))


def launch(top: argparse.ArgumentParser, options: argparse.Namespace, job: jobs.Job) -> int:
    for key in ("zone", "topology"):
        if not getattr(options, key):
            top.error(f"--{key}: missing")
    try:
        tpu = slice_of(options.topology)
    except ValueError as error:
        raise jobs.LaunchError(f"--topology: {error}") from None
    if job.command == "train" and "://" not in job.directory and not os.path.isabs(job.directory):
        raise jobs.LaunchError(f"--directory: {job.directory} would lie on each host's own disk, and be lost with it; "
                               "mount one that all share with --setup, and name a folder below it")  # fmt: skip
    plan, here = plan_of(job), folder_here(job.folder)
    print(plan.said)
    if plan.action == "complete":
        return 0
    tpus, job = Tpus(options, options.name or job.name), in_source(job, options.source)
    if not options.go:
        show(tpus, job, tpu)
        return 0
    try:
        return Watch(tpus, job, tpu, here).run()
    except KeyboardInterrupt:
        say("no longer watching; the job runs on, and the same command watches it again; to end it: "
            f"python {sys.argv[0]} cancel {here}")  # fmt: skip
        return jobs.INTERRUPTED
    except jobs.LaunchError:
        say(f"no longer watching; what was created is still there, and costs money: python {sys.argv[0]} cancel {here}")
        raise


if __name__ == "__main__":
    jobs.leave(lambda: command_line(parser(), act, launch))
