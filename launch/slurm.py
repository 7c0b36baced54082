#!/usr/bin/env python3
"""Submits a command of t5x-like to Slurm, as one job or as an array of them over values of fields.

    python launch/slurm.py --nodes 2 --gpus 8 --time 24:00:00 train t5_1_1_base mesh.data=1 mesh.fsdp=-1      # shows
    python launch/slurm.py --nodes 2 --gpus 8 --time 24:00:00 train t5_1_1_base mesh.data=1 mesh.fsdp=-1 --go
    python launch/slurm.py --sweep optimizer.learning_rate=1e-3,2e-3 train t5_sotu --go               # an array
    python launch/slurm.py follow t5_1_1_base                                                         # status, cancel

The script (``SCRIPT``) starts ``--tasks-per-node`` processes on each node by srun, and tells each who it is by three
JAX_ variables; the coordinator's port comes from the job's number and its number of restarts. Preempted or near its
time limit, Slurm sends SIGTERM to the processes; they save, exit with 75, and the script requeues its job: the same
number, the same log, on from that step. If a process fails or is killed, srun ends the others and the script requeues
the job, up to ``--restarts`` failures in a row without a new checkpoint. A user's mistake (2) is never tried again.
Where ``t5x-like check`` is there, it is the job's first step.

The script and the log lie in DIRECTORY/launch, beside a line for each job that was submitted, by which ``follow``,
``status`` and ``cancel`` find it. Standard library only: copy it and ``job.py``, and edit.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import shlex
import sys

import job

# What each process runs in srun. The shell passes SIGTERM on, and waits: with 75 it ends as if all were well, because
# srun would kill the others, that may still be saving, after the first exit code that is not 0.
TASK = """\
export JAX_NUM_PROCESSES=$SLURM_NTASKS JAX_PROCESS_ID=$SLURM_PROCID
[ $DEVICES_EACH = 0 ] || export JAX_LOCAL_DEVICE_IDS=$(seq -s , $((SLURM_LOCALID * DEVICES_EACH)) \
    $(((SLURM_LOCALID + 1) * DEVICES_EACH - 1)))
told= child=
trap "told=yes; [ -z \\$child ] || kill -TERM \\$child 2>/dev/null" TERM
"$@" & child=$!
[ -z "$told" ] || kill -TERM $child  # told in between
wait $child; code=$?
while [ "$told" ]; do told=; stopped=yes; wait $child; code=$?; done
[ "$code" = 143 ] && [ "$stopped" ] && code=75  # told before there was anything to save
[ "$code" = 0 ] || echo "$(date +%s.%N) $code" >"$CODES.$SLURM_PROCID"
[ "$code" = 75 ] && exit 0
exit $code"""

SCRIPT = """\
#!/bin/bash
{directives}

# Made by launch/slurm.py: {made}
launch={launch}
{choose}
id=${{SLURM_ARRAY_JOB_ID:+${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID}}
id=${{id:-$SLURM_JOB_ID}}
cancelled=$launch/slurm-${{SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}}.cancelled
state=$launch/slurm-$id.state
export CODES=$launch/slurm-$id.code DEVICES_EACH={devices}
[ -e "$cancelled" ] && exit 0
{setup}{check}
node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((61440 + (SLURM_JOB_ID + 1009 * ${{SLURM_RESTART_COUNT:-0}}) % 4096))
rm -f "$CODES".*
echo "job $id, start $((${{SLURM_RESTART_COUNT:-0}} + 1)), $SLURM_NTASKS processes on $SLURM_JOB_NODELIST"
JAX_COORDINATOR_ADDRESS=$node:$port srun --kill-on-bad-exit=1 {srun}bash -c '
{task}
' bash "$@"
code=$?
codes=" $(sort -n "$CODES".* 2>/dev/null | cut -d ' ' -f 2 | tr '\\n' ' ') "  # in order of time
rm -f "$CODES".*
case $codes in
*" 2 "*) code=2 ;;                       # a mistake, which they have said
*" 75 "*) [ $code = 0 ] && code=75 ;;    # saved: run me again
*[0-9]*) read -r code _ <<<"$codes" ;;   # the cause, not how srun has ended the others
esac

failures=0 best=-1
[ -e "$state" ] && read -r failures best <"$state"
step=$(ls "$directory/checkpoints" 2>/dev/null | grep -x '[0-9]*' | sort -n | tail -n 1)
step=${{step:--1}}
[ "$step" -gt "$best" ] && failures=0
case $code in
0 | 2 | 130) rm -f "$state"; exit $code ;;
75) again="saved" ;;
*)
    failures=$((failures + 1))
    again="ended with $code, failure $failures of at most {restarts} without a new checkpoint"
    ;;
esac
echo "$failures $step" >"$state"
echo "job $id: $again"
[ -e "$cancelled" ] && exit $code
[ $failures -gt {restarts} ] && exit $code
scontrol requeue "$id" || exit $code
"""

CHECK = """\
if [ "${{SLURM_RESTART_COUNT:-0}}" = 0 ] && {program} check --help >/dev/null 2>&1; then
    {check} || {{ [ $? = 2 ] && exit 2; }}
fi
"""


def sweep(work: job.Job, fields: list[str]) -> list[job.Job]:
    """The jobs of all combinations of values, each with a directory of its own below that of ``work``.

    Args:
      work: the job without them.
      fields: ``name=value,value,...`` each.

    Raises:
      LaunchError: no name, or no values.
    """
    if not fields:
        return [work]
    choices = []
    for field in fields:
        name, _, values = field.partition("=")
        if not name or not all(values.split(",")):
            raise job.LaunchError(f"--sweep {field}: a field and its values: name=value,value,...")
        choices.append([f"{name}={value}" for value in values.split(",")])
    if work.command != "train":
        raise job.LaunchError(f"--sweep: for train, not {work.command or work.words[0]}")
    points = []
    for chosen in itertools.product(*choices):
        label = ",".join(re.sub(r"[^\w.=+-]", "_", each.split(".")[-1] if "." in each.split("=")[0] else each)
                         for each in chosen)  # fmt: skip
        points.append(work.at(os.path.join(work.directory, label), *chosen))
    if len({point.directory for point in points}) < len(points):
        raise job.LaunchError("--sweep: two combinations have the same directory; fields that end in different names")
    return points


def directives(options: argparse.Namespace, work: job.Job, array: str) -> str:
    """The #SBATCH lines."""
    log = os.path.join(work.folder, "launch", "slurm-%A_%a.log" if array else "slurm-%j.log")
    found = {
        "job-name": work.name, "output": log, "open-mode": "append", "requeue": None,
        "signal": f"TERM@{options.grace}", "nodes": options.nodes, "ntasks-per-node": options.tasks_per_node,
        "gpus-per-node": options.gpus, "time": options.time, "partition": options.partition,
        "account": options.account, "array": array,
    }  # fmt: skip
    lines = [f"--{name}" + ("" if value is None else f"={shlex.quote(str(value))}")
             for name, value in found.items() if value is None or value]  # fmt: skip
    return "\n".join(f"#SBATCH {line}" for line in [*lines, *options.sbatch])


def for_check(options: argparse.Namespace) -> list[str]:
    """What the check is told of the cluster."""
    gpus = options.nodes * options.gpus
    return ["--cluster", "slurm", *(["--topology", f"gpu:{gpus}"] if gpus else [])]


def quoted_directory(point: job.Job) -> str:
    return f"directory={shlex.quote(point.directory or point.folder)}"


def script(options: argparse.Namespace, work: job.Job, points: list[job.Job], wanted: list[int]) -> str:
    """The batch script: of one job, or of an array of those ``points`` whose numbers are ``wanted``."""
    array = ",".join(map(str, wanted)) if options.sweep else ""
    if array and options.at_once:
        array += f"%{options.at_once}"
    if array:
        cases = [f"{n}) {quoted_directory(points[n])}; set -- {shlex.join(points[n].words)} ;;" for n in wanted]
        choose = "\n".join(["case $SLURM_ARRAY_TASK_ID in", *cases, "esac"])
    else:
        choose = f"{quoted_directory(work)}\nset -- {shlex.join(work.words)}"
    program = shlex.join(work.program)
    rest = f'"${{@:{len(work.program) + 2}}}"'  # the run and what follows it
    call = f"{program} check {rest} {shlex.join(for_check(options))}"
    check = CHECK.format(program=program, check=call) if options.check else ""
    many = options.nodes * options.tasks_per_node > 1
    return SCRIPT.format(
        directives=directives(options, work, array), made=shlex.join(work.words), launch=launch_folder(work),
        choose=choose, setup="".join(line + "\n" for line in options.setup), check=check,
        srun="--label " if many else "", task=TASK, restarts=options.restarts,
        devices=options.gpus // options.tasks_per_node if options.tasks_per_node > 1 else 0,
    )  # fmt: skip


def launch_folder(work: job.Job) -> str:
    return shlex.quote(os.path.join(work.folder, "launch"))


def queued(number: str) -> list[list[str]]:
    """State, elapsed time and reason or nodes of each part of a job that waits or runs; none if it has left the
    queue."""
    try:
        lines = job.outside(["squeue", "--noheader", "--array", "--jobs", number, "--format", "%i|%T|%M|%R"])
    except job.OutsideError as error:
        if error.kind == "gone":
            return []
        raise
    return [line.strip().split("|") for line in lines.splitlines() if "|" in line]


def last_words(number: str) -> str:
    """How a job that has left the queue ended; Slurm forgets it after some minutes."""
    try:
        found = job.outside(["scontrol", "show", "job", number])
    except job.OutsideError as error:
        if error.kind == "gone":
            return "gone"
        raise
    states, codes = re.findall(r"JobState=(\w+)", found), re.findall(r"ExitCode=(\d+):", found)
    return ", ".join(f"{state} ({code})" for state, code in zip(states, codes)) or "gone"  # noqa: B905, Python 3.8


def submitted(folder: str) -> dict[str, str]:
    """The number and the log of the last job submitted for the run in ``folder``."""
    jobs = job.remembered(folder, "slurm")
    if not jobs:
        raise job.LaunchError(f"no job was submitted to Slurm for {folder} from this folder")
    return {name: str(jobs[-1].get(name, "")) for name in ("number", "log", "directory")}


def submit(options: argparse.Namespace, work: job.Job, text: str) -> str:
    """Writes the script and submits it; returns the job's number."""
    for before in job.remembered(work.folder, "slurm")[-1:]:
        if found := queued(str(before["number"])):
            raise job.LaunchError(f"job {before['number']} is in the queue for {work.folder} already ({found[0][1]}); "
                                  f"{os.path.basename(sys.argv[0])} cancel {work.folder} takes it out")  # fmt: skip
    path = os.path.join(work.folder, "launch", "slurm.sh")
    made = not os.path.isdir(os.path.dirname(path))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    try:
        number = job.outside(["sbatch", "--parsable", path]).strip().split(";")[0]
    except job.OutsideError:
        os.unlink(path)
        if made:
            os.removedirs(os.path.dirname(path))  # those that are empty
        raise
    log = os.path.join(work.folder, "launch", f"slurm-{number}" + ("_0.log" if options.sweep else ".log"))
    job.remember(work, "slurm", number=number, log=log, directory=work.directory)
    print(f"submitted job {number}; its log: {log}", flush=True)
    return number


def follow(folder: str) -> int:
    """Prints the log of the last job until it has left the queue: 0 if it is complete then, else 1."""
    last = submitted(folder)
    for line in job.new_lines(last["log"], lambda: bool(queued(last["number"])), pause=2.0):
        print(line, end="", flush=True)
    words = last_words(last["number"])
    print(f"job {last['number']}: {words}", flush=True)
    return job.FAILED if re.search(r"FAILED|CANCELLED|TIMEOUT|NODE_FAIL|OUT_OF_MEMORY|gone", words) else job.COMPLETE


def status(folder: str) -> int:
    last = submitted(folder)
    parts = queued(last["number"])
    for part in parts or [[last["number"], last_words(last["number"])]]:
        print(f"job {part[0]}: " + ", ".join(filter(None, part[1:])))
    step = job.latest_step(folder)
    print(f"{folder}: " + ("no checkpoint yet" if step is None else f"latest checkpoint {step:,}"))
    print(f"log: {last['log']}")
    return job.COMPLETE


def cancel(folder: str) -> int:
    """Takes the last job out of the queue; one that runs saves first, unless it has been told so before."""
    last = submitted(folder)
    number, mark = last["number"], os.path.join(folder, "launch", f"slurm-{last['number']}.cancelled")
    parts, again = queued(number), os.path.exists(mark)
    if not parts:
        print(f"job {number} has left the queue: {last_words(number)}")
        return job.COMPLETE
    with open(mark, "w", encoding="utf-8"):
        pass
    runs = any(part[1] == "RUNNING" for part in parts)
    if runs and not again:
        job.outside(["scancel", "--state=PENDING", number])
        job.outside(["scancel", "--signal=TERM", number])
        print(f"job {number} saves and ends; again, to end it at once")
    else:
        job.outside(["scancel", number])
        print(f"job {number} is cancelled")
    return job.COMPLETE


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description="Submit a command of t5x-like to Slurm; or follow, status, cancel RUN.")
    top.add_argument("--nodes", type=int, default=1)
    top.add_argument("--tasks-per-node", type=int, default=1, help="processes on each node, which share its GPUs")
    top.add_argument("--gpus", type=int, default=0, help="GPUs of each node")
    top.add_argument("--time", default="", help="limit, such as 24:00:00; requeued before it is reached")
    top.add_argument("--partition", default="")
    top.add_argument("--account", default="")
    top.add_argument("--sbatch", action="append", default=[], metavar="OPTION",
                     help="a further option of sbatch, such as --sbatch=--mem=64G; repeatable")
    top.add_argument("--setup", action="append", default=[], metavar="LINE",
                     help="a line of shell before the program, such as 'source .venv/bin/activate'; repeatable")
    top.add_argument("--sweep", action="append", default=[], metavar="NAME=V,V",
                     help="a job for each value; repeated: for each combination")
    top.add_argument("--at-once", type=int, default=0, help="of a sweep: jobs that run at one time")
    top.add_argument("--grace", type=int, default=60, help="seconds to save in before the time limit (default 60)")
    top.add_argument("--restarts", type=int, help="failures in a row without a new checkpoint, after which to give up "
                     "(default 3 for train and prepare, else 0)")
    top.add_argument("--no-check", dest="check", action="store_false", help="without t5x-like check as the first step")
    top.add_argument("--again", action="store_true", help="submit a run that is complete too")
    top.add_argument("--follow", action="store_true", help="print the log of the job that was submitted")
    job.add_options(top)
    return top


def main() -> int:
    top = parser()
    options = top.parse_args()
    action, folder = job.action_of(options)
    if action:
        return {"follow": follow, "status": status, "cancel": cancel}[action](folder)
    work = job.parse(top, options)
    job.require_run(work)
    for name in ("nodes", "tasks_per_node"):
        if getattr(options, name) < 1:
            top.error(f"--{name.replace('_', '-')} {getattr(options, name)}: at least 1")
    if options.gpus % options.tasks_per_node:
        top.error(f"--gpus {options.gpus}: a multiple of --tasks-per-node {options.tasks_per_node}")
    if options.restarts is None:
        options.restarts = 3 if work.command in job.RESUMING else 0
    options.check = options.check and work.command == "train"
    points = sweep(work, options.sweep)
    plans = [job.decide(point) for point in points]
    for plan in plans:
        print(plan.said, flush=True)
    wanted = [n for n, plan in enumerate(plans) if options.again or plan.action != "complete"]
    if not wanted:
        return job.COMPLETE
    text = script(options, work, points, wanted)
    if not options.go:
        print(f"\n{text}\nnot submitted: --go submits it")
        return job.COMPLETE
    if options.check:
        job.preflight(points[wanted[0]], *for_check(options))
    submit(options, work, text)
    return follow(work.folder) if options.follow else job.COMPLETE


if __name__ == "__main__":
    job.leave(main)
