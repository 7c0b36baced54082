"""What the launchers beside this file share. Standard library only, Python 3.8 or newer: it runs on a login node where
nothing is installed, imports neither t5x_like nor the run file, and knows no cluster.

    launch/CLUSTER.py [options of the launcher] [--] [PROGRAM] COMMAND RUN [field=value ...] [--go]

``PROGRAM COMMAND ...`` is any command of t5x-like as one would type it here, ``t5x-like`` itself left out or written;
``--go`` does what is otherwise only shown. ``parse`` makes a ``Job`` of it: ``train`` gets its run's directory written
out (``--directory``, else ``runs/`` and the run file's name), so that launcher and program cannot mean two. ``decide``
reads that directory's JSON and says whether a job would start, resume, or find everything done; ``Restarts`` says
after which exit codes a job starts again; ``outside`` runs a cluster's own program. A launcher is copied together with
this file; both lie in launch/ of a checkout and in t5x_like/_shipped/launch of an installed package.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

COMPLETE, FAILED, MISTAKE, SAVED, INTERRUPTED = 0, 1, 2, 75, 130  # exit codes of t5x-like and of the launchers
COMMANDS = (
    "train", "prepare", "eval", "convert", "check", "generate", "inspect", "diff", "tokenizer", "checkpoint", "report",
    "explain",
)  # fmt: skip
ACTIONS = ("follow", "status", "cancel")  # in place of a command: what to do with a run's submitted jobs
RESUMING = ("train", "prepare")  # commands that go on where they were, so that starting them again loses nothing
BOTH = ("--directory", "--processes", "--devices", "--step", "--help")  # options that t5x-like may have too
HERE = os.path.dirname(os.path.abspath(__file__))


class LaunchError(Exception):
    """What a launcher says in place of a traceback, and the exit code that it ends with."""

    def __init__(self, said: str, code: int = MISTAKE):
        super().__init__(said)
        self.code = code


class OutsideError(LaunchError):
    """A cluster's program did not do what it was asked: ``kind`` is absent, quota, gone, slow or failed."""

    def __init__(self, kind: str, said: str):
        super().__init__(said, MISTAKE if kind in ("absent", "gone") else FAILED)
        self.kind = kind


@dataclass(frozen=True)
class Job:
    """A command of t5x-like to be run somewhere.

    Attributes:
      program: how t5x-like is called.
      command: ``train``, ``prepare``, ...; empty if the program is another one.
      arguments: what follows it.
      run: the run file, the name of a shipped one, or a run's folder among them; empty if there is none.
      directory: the run's directory, which may be an address such as gs://bucket/run; empty if there is none.
    """

    program: list[str]
    command: str
    arguments: list[str]
    run: str
    directory: str

    @property
    def words(self) -> list[str]:
        """The whole command line."""
        return [*self.program, *filter(None, [self.command]), *self.arguments]

    @property
    def name(self) -> str:
        """A name for a cluster's lists: lower-case letters, digits and single dashes, 40 at most."""
        stem = os.path.splitext(os.path.basename((self.directory or self.run).rstrip("/")))[0]
        text = stem if self.command in ("train", "") else f"{self.command}-{stem}"
        return re.sub(r"[^a-z0-9]+", "-", (text or self.command or "job").lower()).strip("-")[:40].strip("-") or "job"

    @property
    def folder(self) -> str:
        """The local folder that the launcher's own files lie in: the run's directory if that is one."""
        return self.directory if self.directory and "://" not in self.directory else os.path.join("runs", self.name)

    def at(self, directory: str, *extra: str) -> Job:
        """The same with another directory and further assignments."""
        text = "\0".join(self.words)
        words = re.sub(r"\0--directory[=\0][^\0]*", "", text).split("\0")
        return job_of([*words, *extra], directory)

    @property
    def assignments(self) -> dict[str, str]:
        return assignments(self.arguments)


def assignments(words: list[str]) -> dict[str, str]:
    """The fields that words of a command line set; they may have dashes in front."""
    found = (re.match(r"-{0,2}([A-Za-z_][\w.*]*\.[\w.*]+|name)=(.*)$", word, re.S) for word in words)
    return {match.group(1): match.group(2) for match in found if match}


def add_options(parser: argparse.ArgumentParser, go: str = "submit it; without, it is only shown") -> None:
    """Adds what all launchers take: ``--directory``, the command, and ``--go`` unless its meaning ``go`` is empty."""
    parser.add_argument("--directory", metavar="DIR", help="the run's directory (default: runs/ and the run's name)")
    if go:
        parser.add_argument("--go", action="store_true", help=go)
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="[--] COMMAND RUN [field=value ...]",
                        help="a command of t5x-like, such as: train t5_sotu train.steps=1_000")  # fmt: skip


def parse(parser: argparse.ArgumentParser, options: argparse.Namespace, program: str = "t5x-like") -> Job:
    """The job that parsed options describe; ``options.go`` may have stood last too. Ends with code 2 and a usage line
    if there is none, or if another of the launcher's options stands behind the command."""
    words = list(options.command)
    exact = words[:1] == ["--"]  # what follows is the command's alone
    words = words[exact:]
    if not exact and words[-1:] == ["--go"]:
        words, options.go = words[:-1], True
    mine = {*re.findall(r"--[\w-]+", parser.format_usage())} - {*BOTH}
    misplaced = [] if exact else [word for word in words if word.split("=")[0] in mine]
    if misplaced:
        parser.error(f"{misplaced[0]}: an option of the launcher stands before the command")
    if not words:
        parser.error("no command: end with train RUN [field=value ...]")
    return job_of(words, options.directory or "", program)


def action_of(options: argparse.Namespace) -> tuple[str, str]:
    """What to do with jobs already submitted, if the command is one of ``ACTIONS`` and a run: the action, and the
    local folder (``Job.folder``) of that run; two empty strings otherwise."""
    words = list(options.command)
    if not words or words[0] not in ACTIONS:
        return "", ""
    if len(words) != 2:
        raise LaunchError(f"{words[0]}: a run comes behind it, by its file, its name or its directory")
    return words[0], job_of(["train", words[1]], options.directory or "").folder


def job_of(words: list[str], directory: str = "", program: str = "t5x-like") -> Job:
    """The job of a command line, whether or not it begins with the program.

    Raises:
      LaunchError: a command without its run, or two directories.
    """
    if words[0] in COMMANDS:
        words = [*shlex.split(program), *words]
    count = 1 if os.path.basename(words[0]) == "t5x-like" else words.index("t5x_like") + 1 if "t5x_like" in words else 0
    given = _option(words, "--directory")
    if given and directory and given != directory:
        raise LaunchError(f"--directory {directory} and --directory {given}: one of the two")
    directory = directory or given
    if not count or words[count - 2 : count] != ["-m", "t5x_like"] and count != 1:
        return Job(words, "", [], "", directory)
    command, rest = (words[count:] or [""])[0], words[count + 1 :]
    if command not in COMMANDS:
        raise LaunchError(f"{shlex.join(words[:count])} {command}: no such command; there are {', '.join(COMMANDS)}")
    if command == "train" and (not rest or rest[0].startswith("-") or "=" in rest[0]):
        raise LaunchError("train: the run comes right behind it: train RUN [field=value ...]")
    if command != "train":
        run = next((word for word in rest if os.path.isdir(word) or find_run(word)), (rest or [""])[0])
        return Job(words[:count], command, rest, run, directory or (run if os.path.isdir(run) else ""))
    run, name = rest[0], os.path.splitext(os.path.basename(rest[0]))[0]
    directory = directory or (run if os.path.isdir(run) else os.path.join("runs", assignments(rest).get("name", name)))
    return Job(words[:count], command, rest if given else [*rest, "--directory", directory], run, directory)


def _option(words: list[str], name: str) -> str:
    """The value of an option in a command line; empty if it is not there."""
    for index, word in enumerate(words):
        if word.startswith(name + "="):
            return word[len(name) + 1 :]
        if word == name:
            return "".join(words[index + 1 : index + 2])
    return ""


def find_run(name: str) -> str:
    """The path of a run file given by path or, if it is shipped, by name; empty if there is none."""
    places = (name, os.path.join(os.path.dirname(HERE), "configs", name + ".py"))
    return next((path for path in places if path.endswith(".py") and os.path.isfile(path)), "")


def require_run(job: Job) -> None:
    """Raises LaunchError if the run of ``train`` is neither a file nor a shipped name nor a run's folder here."""
    if job.command == "train" and not os.path.isdir(job.run) and not find_run(job.run):
        folder = os.path.join(os.path.dirname(HERE), "configs")
        names = sorted(n[:-3] for n in os.listdir(folder) if n.endswith(".py")) if os.path.isdir(folder) else []
        raise LaunchError(f"no run file {job.run!r}; a path to one, or one of {', '.join(names)}")


def preflight(work: Job, *options: str) -> None:
    """Runs the program's ``check`` of a run to be trained, if it is installed here and has one; ``options`` name the
    cluster.

    Raises:
      LaunchError: it has found something that would stop the run, and has said what.
    """
    if work.command != "train" or not shutil.which(work.program[0]):
        return
    with contextlib.suppress(OutsideError):  # an older program, or one that does not start here
        outside([*work.program, "check", "--help"])
        sys.stdout.flush()
        if subprocess.call([*work.program, "check", *work.arguments, *options]) == MISTAKE:
            raise LaunchError("not submitted: the check has found what would stop the run; --no-check submits it")


@dataclass(frozen=True)
class Plan:
    """What a job would find: ``action`` is start, resume, complete or run (a command that does not train, or a
    directory that cannot be read from here); ``said`` is a line for people."""

    action: str
    said: str


def decide(job: Job) -> Plan:
    """Whether a job starts or resumes its run or finds it complete, from the JSON and the names of checkpoints in the
    run's directory. ``complete`` only where the number of steps is sure: given with the job, or that of a run file that
    has not changed since and was started with the same assignments."""
    if job.command != "train" or not job.directory:
        return Plan("run", shlex.join(job.words))
    if "://" in job.directory:
        return Plan("run", f"start or resume, as {job.directory} is found by the job")
    step, starts, config = latest_step(job.directory), read_starts(job.directory), _config(job.directory)
    if step is None:
        before = f": started {len(starts)} times, no checkpoint yet" if starts else ""
        return Plan("start", f"start {job.directory}{before}")
    total, given = (config.get("train") or {}).get("steps"), job.assignments.get("train.steps", "").replace("_", "")
    sure = isinstance(total, int) and (os.path.isdir(job.run) or _same_steps(job, starts))
    if given.isdigit():
        total, sure = int(given), True
    total = total if sure else None
    of = f" of {total:,}" if total is not None else ""
    if total is not None and step >= total:
        return Plan("complete", f"{job.directory} is complete: {step:,}{of} steps; train.steps=N trains on to N")
    times = "once" if len(starts) == 1 else f"{len(starts)} times"
    return Plan("resume", f"resume {job.directory} from step {step:,}{of}" + f"; started {times} before" * bool(starts))


def latest_step(directory: str) -> int | None:
    """The step of the latest checkpoint in a run's directory: what is not lost, whatever happens."""
    with contextlib.suppress(OSError):
        names = os.listdir(os.path.join(directory, "checkpoints"))
        return max((int(name) for name in names if name.isdigit()), default=None)
    return None


def _same_steps(job: Job, starts: list[dict[str, Any]]) -> bool:
    """Whether the last start was of the same run file, unchanged, with the same assignments below ``train``."""
    last = starts[-1].get("command") if starts else None
    file, config = find_run(job.run), os.path.join(job.directory, "config.json")
    with contextlib.suppress(OSError):
        if isinstance(last, list) and file and os.path.getmtime(file) <= os.path.getmtime(config):
            before, now = (assignments(list(map(str, words))) for words in (last, job.arguments))
            names = [name for name in {*before, *now} if name.startswith("train.")]
            return all(before.get(name) == now.get(name) for name in names)
    return False


def _config(directory: str) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        with open(os.path.join(directory, "config.json"), encoding="utf-8") as file:
            found = json.load(file)
            return found if isinstance(found, dict) else {}
    return {}


def read_lines(path: str) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; torn ones are left out, and a file that is not there has none."""
    found = []
    with contextlib.suppress(OSError):
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                with contextlib.suppress(ValueError):
                    found.append(json.loads(line))
    return [each for each in found if isinstance(each, dict)]


def read_starts(directory: str) -> list[dict[str, Any]]:
    """The starts that a run's ledger records, one of each attempt, in order."""
    folder = os.path.join(directory, "ledger")
    found: list[dict[str, Any]] = []
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(folder)):
            if re.search(r"-0+\.jsonl$", name):  # process 0
                found += [each for each in read_lines(os.path.join(folder, name)) if each.get("event") == "start"]
    return sorted(found, key=lambda start: str(start.get("time", "")))


class Restarts:
    """After which exit codes a job starts again: at once and uncounted after 75; after a failure later each time, until
    ``limit`` in a row without a new checkpoint; never once it is complete, was interrupted, or has a mistake in it.

    Args:
      limit: failures in a row after which to give up; 0: never start again.
      first, longest: seconds to wait after the first failure, doubled each time, and at most.
    """

    def __init__(self, limit: int, first: float = 1.0, longest: float = 300.0):
        self.limit, self.first, self.longest = limit, first, longest
        self.failures, self.best = 0, -1

    def wait(self, code: int, step: int | None) -> float | None:
        """Seconds until the next start of a job that ended with ``code``, its latest checkpoint at ``step``; None: it
        does not start again."""
        if not self.limit or code in (COMPLETE, MISTAKE, INTERRUPTED):
            return None
        progress = step is not None and step > self.best
        if progress:
            self.failures, self.best = 0, step or 0
        if code == SAVED:
            return 0.0
        self.failures += 1
        return min(self.longest, self.first * 2 ** (self.failures - 1)) if self.failures <= self.limit else None


QUOTA = re.compile(r"quota|exceed|exhausted|(QOS|Assoc)\w*Limit|limit reached|violates|no capacity|stockout", re.I)
GONE = re.compile(r"not[ _]?found|does not exist|invalid job id|no such (job|resource)|unknown job", re.I)


def outside(words: list[str], text: str | None = None, seconds: float = 120.0) -> str:
    """What a cluster's own program prints.

    Args:
      words: its command line.
      text: its standard input.
      seconds: how long it may take.

    Raises:
      OutsideError: it is not there (absent), refused for a quota (quota), does not know what it was asked about (gone),
        does not answer (slow), or failed otherwise.
    """
    shown = shlex.join(words)
    try:
        done = subprocess.run(words, input=text, capture_output=True, text=True, timeout=seconds, errors="replace")
    except FileNotFoundError:
        raise OutsideError("absent", f"{words[0]}: no such command on this machine; run this where it is installed, or "
                           f"leave --go out to see what would be done") from None  # fmt: skip
    except OSError as error:
        raise OutsideError("failed", f"{words[0]}: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise OutsideError("slow", f"{shown}: no answer in {seconds:.0f} s") from None
    if done.returncode == 0:
        return done.stdout
    answer = (done.stderr.strip() or done.stdout.strip() or "it said nothing").replace("\n", "\n  ")
    kind = "quota" if QUOTA.search(answer) else "gone" if GONE.search(answer) else "failed"
    meant = {"quota": "refused for a quota or limit", "gone": "not found", "failed": f"failed with {done.returncode}"}
    raise OutsideError(kind, f"{meant[kind]}: {shown}\n  {answer}")


def remember(job: Job, cluster: str, **values: Any) -> None:
    """Notes a submitted job beside its run, for ``remembered``."""
    os.makedirs(os.path.join(job.folder, "launch"), exist_ok=True)
    line = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "cluster": cluster, "command": job.words, **values}
    with open(os.path.join(job.folder, "launch", "jobs.jsonl"), "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def remembered(folder: str, cluster: str) -> list[dict[str, Any]]:
    """The jobs that were submitted to a cluster from here for the run in ``folder``, in order."""
    return [line for line in read_lines(os.path.join(folder, "launch", "jobs.jsonl")) if line.get("cluster") == cluster]


def new_lines(path: str, running: Callable[[], bool], pause: float = 1.0) -> Iterator[str]:
    """Lines of a log that is being written, from its beginning until nothing is added and ``running`` says no."""
    while not os.path.exists(path):
        if not running():
            return
        time.sleep(pause)
    with open(path, encoding="utf-8", errors="replace") as file:
        alive = True
        while alive:
            alive = running()
            yield from file
            time.sleep(pause if alive else 0)


def leave(main: Callable[[], int]) -> NoReturn:
    """Ends this process as ``main`` says; what is a ``LaunchError`` is one message and its code."""
    try:
        sys.exit(main())
    except LaunchError as error:
        sys.stdout.flush()
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(error.code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
