"""launch/job.py: command lines become jobs, a run's JSON becomes start, resume or complete; which exit codes start a
job again; what is said of a cluster's program that refuses. And of all launchers: they need nothing but Python 3.8."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from tiny_runs import run_file, saved_steps, tiny_run

from t5x_like.cli.arguments import parser
from t5x_like.cli.main import main

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
LAUNCHERS = sorted(LAUNCH.glob("*.py"))
PROGRAMS = [path for path in LAUNCHERS if "__main__" in path.read_text()]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, LAUNCH / f"{name}.py")
    assert spec and spec.loader
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


job = load("job")


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.name)
def test_launchers_need_the_standard_library_of_python_3_8_only(path):
    imported = set()
    for node in ast.walk(ast.parse(path.read_text(), feature_version=(3, 8))):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module)
    ours = {"yaml", *(each.stem for each in LAUNCHERS)}
    assert {name.split(".")[0] for name in imported} <= sys.stdlib_module_names | ours


def old_python() -> str:
    """A Python 3.8 of this machine, if there is one."""
    places = [Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"]
    found = [path for place in places for path in place.glob("3.8.*/bin/python")]
    return str(found[0]) if found else ""


@pytest.mark.skipif(not old_python(), reason="there is no Python 3.8")
@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_launchers_run_on_python_3_8(path):
    done = subprocess.run([old_python(), str(path), "--help"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0 and "usage" in done.stdout, done.stderr


def test_every_command_of_the_program_is_known():
    commands = next(action for action in parser()._actions if action.dest == "command")
    assert set(commands.choices or ()) <= set(job.COMMANDS)


@pytest.mark.parametrize(("given", "words", "directory", "name"), [
    ("train t5_sotu a.b=1", "t5x-like train t5_sotu a.b=1 --directory runs/t5_sotu", "runs/t5_sotu", "t5-sotu"),
    ("train my/Own_1.py", "t5x-like train my/Own_1.py --directory runs/Own_1", "runs/Own_1", "own-1"),
    ("t5x-like train x name=a/b", "t5x-like train x name=a/b --directory runs/a/b", "runs/a/b", "b"),
    ("python -m t5x_like train x --directory d/e", "python -m t5x_like train x --directory d/e", "d/e", "e"),
    ("bin/t5x-like train x --directory=gs://b/c", "bin/t5x-like train x --directory=gs://b/c", "gs://b/c", "c"),
    ("prepare t5_sotu --processes 2", "t5x-like prepare t5_sotu --processes 2", "", "prepare-t5-sotu"),
    ("convert hub/model", "t5x-like convert hub/model", "", "convert-model"),
    ("python own.py --directory d", "python own.py --directory d", "d", "d"),
])  # fmt: skip
def test_a_command_line_becomes_a_job(given, words, directory, name):
    made = job.job_of(given.split())
    assert " ".join(made.words) == words and made.directory == directory and made.name == name
    again = job.job_of(made.words)
    assert again.words == made.words and again.directory == directory


def test_a_job_without_its_run_or_with_two_directories_is_refused():
    for wrong in ("train", "train a.b=1", "train --directory d x", "t5x-like"):
        with pytest.raises(job.LaunchError, match="train RUN|no such command"):
            job.job_of(wrong.split())
    with pytest.raises(job.LaunchError, match="one of the two"):
        job.job_of("train x --directory d".split(), "e")
    with pytest.raises(job.LaunchError, match="no run file 'nowhere'.*t5_sotu"):
        job.require_run(job.job_of(["train", "nowhere"]))
    job.require_run(job.job_of(["train", "t5_sotu"]))


@pytest.mark.slow
def test_decisions_follow_a_run_that_trained(tmp_path, monkeypatch):
    """A run as the program leaves it: its files say how far it came, and whether it is complete."""
    file, folder = run_file(tiny_run("llama")), str(tmp_path / "run")

    def decide(*words: str) -> str:
        plan = job.decide(job.job_of(["train", *words, "--directory", folder]))
        return f"{plan.action}: {plan.said}"

    assert decide(file) == f"start: start {folder}"
    words = ["train", file, "train.steps=2", "--directory", folder]
    monkeypatch.setattr(sys, "argv", ["t5x-like", *words])  # which the run notes
    assert main(words) == 0
    assert saved_steps(Path(folder)) == [2] and job.latest_step(folder) == 2
    assert decide(file, "train.steps=2").startswith("complete: ") and decide(folder).startswith("complete: ")
    assert f"resume: resume {folder} from step 2 of 1,000" in decide(file, "train.steps=1_000")
    assert decide(file).startswith("resume: ")  # the run file's own number of steps is not known here
    assert "started once" in decide(file)
    (Path(folder) / "config.json").write_text('{"train": {"st')
    assert decide(folder).startswith("resume: ")
    assert job.decide(job.job_of(["train", file, "--directory", "s3://b/run"])).action == "run"


def test_an_unchanged_file_started_with_the_same_words_is_known_to_be_complete(tmp_path):
    file, folder = tmp_path / "own.py", tmp_path / "run"
    file.write_text("")
    (folder / "checkpoints" / "5").mkdir(parents=True)
    (folder / "checkpoints" / "7.orbax-checkpoint-tmp").mkdir()
    (folder / "ledger").mkdir()
    start = {"time": 1, "event": "start", "command": ["t5x-like", "train", str(file)]}
    (folder / "ledger" / "1-0.jsonl").write_text(json.dumps(start) + '\n{"event": "start", "ti')
    (folder / "config.json").write_text('{"train": {"steps": 5}}')
    work = job.job_of(["train", str(file), "--directory", str(folder)])
    assert job.decide(work).action == "complete"
    os.utime(folder / "config.json", (1, 1))  # the file has changed since
    assert job.decide(work).action == "resume"


def test_restarts():
    restarts = job.Restarts(3, first=1, longest=3)
    assert [restarts.wait(code, 5) for code in (0, 2, 130)] == [None] * 3
    assert [restarts.wait(75, 5) for _ in range(9)] == [0] * 9
    assert [restarts.wait(1, 5) for _ in range(4)] == [1, 2, 3, None]
    assert restarts.wait(137, 6) == 1  # a new checkpoint: counted anew
    assert job.Restarts(0).wait(75, None) is None
    assert [job.Restarts(1).wait(1, None) for _ in range(2)] == [1, 1]


@pytest.mark.parametrize(("program", "kind", "said"), [
    ("echo sbatch: error: Invalid job id specified >&2; exit 1", "gone", "not found"),
    ("echo ERROR: Quota limit exceeded; exit 7", "quota", "Quota limit exceeded"),
    ("exit 3", "failed", "failed with 3"),
    ("sleep 9", "slow", "no answer"),
])  # fmt: skip
def test_what_an_outside_program_refuses_is_said(program, kind, said):
    with pytest.raises(job.OutsideError, match=said) as refused:
        job.outside(["sh", "-c", program], seconds=0.3)
    assert refused.value.kind == kind


def test_an_outside_program_that_is_not_there_is_said():
    with pytest.raises(job.OutsideError, match="no such command on this machine") as refused:
        job.outside(["sbatch_of_nowhere"])
    assert refused.value.kind == "absent" and refused.value.code == 2
    assert job.outside(["cat"], "text") == "text"


def test_a_log_is_followed_to_its_end(tmp_path):
    log, turns = tmp_path / "log", iter([True, True, False])

    def running() -> bool:
        with log.open("a") as file:
            file.write("line\n")
        return next(turns)

    assert list(job.new_lines(str(log), running, 0)) == ["line\n"] * 3


def documented() -> list[str]:
    """The commands of the launchers' pages that start something."""
    pages = [LAUNCH.parent / "docs" / f"launch_{name}.md" for name in ("local", "slurm")]
    lines = [line for page in pages for line in page.read_text().replace("`", "\n").splitlines()]
    lines = [line.split("  #")[0].strip() for line in lines if line.startswith("python launch/")]
    return [line for line in lines if line.split()[2] not in job.ACTIONS]


@pytest.mark.parametrize("line", [line for line in documented() if "--gpus all" not in line])
def test_commands_of_the_pages_are_accepted(tmp_path, line):
    """Nothing is started."""
    command = shlex.split(line.replace(" --go", "").replace("local.py", "local.py --dry-run"))
    command[:2] = [sys.executable, str(LAUNCH.parent / command[1])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=30)
    assert done.returncode == 0 and not done.stderr and "t5x" in done.stdout, done.stderr
    assert not list(tmp_path.iterdir())
