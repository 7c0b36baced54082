"""What launchers share whose jobs run on machines without this one's disks. Standard library only, Python 3.8."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace

import job as jobs

TRIES = 5  # questions in a row without an answer, before it is an error
# The check, where the installed t5x-like has it, by the first process alone: for a number of chips, so that nothing is
# compiled while the others wait. A shell that is process 1 of a container ignores SIGTERM unless it is told otherwise.
CHECK = """\
trap 'exit 75' TERM
if [ $JAX_PROCESS_ID = 0 ] && {program} check --help >/dev/null 2>&1; then
JAX_PLATFORMS=cpu JAX_NUM_PROCESSES=1 env -u JAX_COORDINATOR_ADDRESS -u JAX_PROCESS_ID {check} || [ $? != 2 ] || exit 2
fi"""


def command_line(
    top: argparse.ArgumentParser,
    act: Callable[[str, argparse.Namespace, str], int],
    launch: Callable[[argparse.ArgumentParser, argparse.Namespace, jobs.Job], int],
) -> int:
    """Does what the command line asks for, and returns the exit code.

    Args:
      top: the launcher's parser.
      act: function of an action (``job.ACTIONS``), the options and the local folder of the run.
      launch: function of the parser, the options and the job.
    """
    options = top.parse_args()
    action, folder = jobs.action_of(options)
    if action:
        return act(action, options, folder_here(folder))
    job = jobs.parse(top, options)
    jobs.require_run(job)
    return launch(top, options, job)


def folder_here(folder: str) -> str:
    """The local folder for a launcher's own files of a run whose directory is ``folder``, here or there."""
    if os.path.isdir(folder) or not os.path.isabs(folder):
        return folder
    return os.path.join("runs", os.path.basename(folder.rstrip("/")))


def plan_of(job: jobs.Job) -> jobs.Plan:
    """``job.decide``, which cannot know what the run's directory holds if it is not on this machine."""
    if job.command == "train" and not os.path.isdir(job.directory):
        return jobs.Plan("run", f"start or resume, as {job.directory} is found by the job")
    return jobs.decide(job)


def pairs(words: list[str], option: str) -> dict[str, str]:
    """NAME=VALUE words of an option."""
    for word in words:
        if "=" not in word[1:]:
            raise jobs.LaunchError(f"{option} {word}: NAME=VALUE")
    return dict(word.split("=", 1) for word in words)


def in_source(job: jobs.Job, source: str) -> jobs.Job:
    """The job with its run file's path as it is on the hosts, below ``source``."""
    if not os.path.isfile(job.run):
        return job
    path = os.path.relpath(os.path.realpath(job.run), os.path.realpath(source))
    if path.startswith(os.pardir):
        raise jobs.LaunchError(f"{job.run}: not in {source}, which the hosts get; --source FOLDER names another")
    words = [path if word == job.run else word for word in job.arguments]
    return replace(job, run=path, arguments=words)


def script_of(job: jobs.Job, number: str, devices: str) -> str:
    """A shell script for each process of a job, whose arguments are the job's command line. It has the run checked and
    gives its place to the program, so that SIGTERM reaches it.

    Args:
      job: the job.
      number: shell expression for the process's number.
      devices: kind and number of all chips, such as tpu:32; empty: none.
    """
    lines = [f"JAX_PROCESS_ID={number}"]
    if job.command == "train":
        check = shlex.join([*job.program, "check", *job.arguments, *(["--topology", devices] if devices else [])])
        lines.append(CHECK.format(program=shlex.join(job.program), check=check))
    return "\n".join([*lines, "export JAX_PROCESS_ID", 'exec "$@"'])


def check_line(job: jobs.Job, cluster: str, topology: str) -> str:
    """The command that finds what would stop a run, and compiles its step for the topology, before it is submitted."""
    words = list(job.arguments)
    if "--directory" in words:  # which is not here
        at = words.index("--directory")
        words[at : at + 2] = []
    more = ["--cluster", cluster, *(["--topology", topology] if topology else [])]
    return shlex.join([*job.program, "check", *words, *more])


@dataclass(frozen=True)
class State:
    """Of a submitted job.

    Attributes:
      kind: one of ``ENDS``, or how far it is: queued, pending, running, ...
      said: a line for people.
      restarts: of all its processes.
    """

    kind: str
    said: str
    restarts: int = 0


ENDS = {"complete": jobs.COMPLETE, "failed": jobs.FAILED, "mistake": jobs.MISTAKE, "gone": jobs.MISTAKE}  # exit codes


def states(ask: Callable[[], State], poll: float, ends: Collection[str] = tuple(ENDS)) -> Iterator[State]:
    """A job's state every ``poll`` seconds until it is one of ``ends``; each that is new is printed. A cluster that
    does not answer is asked again, ``TRIES`` times.

    Raises:
      job.OutsideError: it refuses to answer.
    """
    before, failures = None, 0
    while True:
        try:
            state = ask()
        except jobs.OutsideError as error:
            failures += 1
            if error.kind not in ("slow", "failed") or failures >= TRIES:
                raise
            if failures == 1:
                print(f"note: asking again: {error}", file=sys.stderr, flush=True)
        else:
            if state != before:
                print(state.said, file=sys.stderr, flush=True)
            before, failures = state, 0
            yield state
            if state.kind in ends:
                return
        time.sleep(poll)
