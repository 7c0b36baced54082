"""The working folder of a run at an address: what is fetched and sent, when, and what happens where that fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from buckets import BUCKET, google, google_environment
from gcs_server import Fault
from tiny_runs import ROOT, run_file, tiny_run

from t5x_like.cli.main import main
from t5x_like.core.errors import UserError
from t5x_like.core.lock import Lost
from t5x_like.core.storage import place
from t5x_like.train import working
from t5x_like.train.directory import locked
from t5x_like.train.working import Working, checkpoints_of, opened, shown

POSTS = lambda method, name: method == "POST" and "/ledger/" in name  # noqa: E731


@pytest.fixture
def address(tmp_path, monkeypatch):
    for name, value in google_environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("T5X_LIKE_CACHE", str(tmp_path / "cache"))
    google().faults.clear()
    yield f"gs://{BUCKET}/working/{time.time_ns()}"
    google().faults.clear()


def work(address: str, first: bool = True, said: list[str] | None = None, check=lambda: None) -> Working:
    return Working(place(address), first, check, (said if said is not None else []).append)


def test_what_is_fetched_and_sent(address, tmp_path, monkeypatch):
    there = place(address)
    for name in ("config.json", "code/own.py", "ledger/1-0.jsonl", "ledger/1-1.jsonl", "ledger/2-0.jsonl", ".secret",
                 "tensorboard/events", "checkpoints/5/data", ".lock/1", "a/../../escaped", "old.json"):  # fmt: skip
        there.write(name, name.encode())
    with work(address) as here, work(address, first=False) as other:
        wanted = ["config.json", "code/own.py", "ledger/1-0.jsonl", "ledger/2-0.jsonl", "old.json"]
        found = {path.relative_to(here.path).as_posix() for path in here.path.rglob("*") if path.is_file()}
        assert found == {*wanted, ".address"} and (here.path / "code/own.py").read_text() == "code/own.py"
        assert not any("escaped" in str(path) for path in tmp_path.rglob("*")) and not (other.path / "ledger").exists()
        assert checkpoints_of(here.path) == f"{address}/checkpoints" and shown(here.path) == address
        google().asked.clear()
        here.upload()
        assert not [name for method, name in google().asked if method == "POST"]  # nothing has changed
        (here.path / "metrics.jsonl").write_text("1\n")
        (here.path / "old.json").unlink()
        (here.path / "config.json").write_text("new")
        (other.path / "ledger").mkdir()
        (other.path / "ledger" / "3-1.jsonl").write_text("own")
        (other.path / "config.json").write_text("not its own")
        here.before_commit()
        assert there.read("metrics.jsonl") == b"1\n" and there.read("config.json") == b"new"
        assert not there.exists("old.json") and there.exists("tensorboard/events") and there.exists("ledger/1-1.jsonl")
    assert there.read("ledger/3-1.jsonl") == b"own" and there.read("config.json") == b"new"
    assert not here.path.exists() and not other.path.exists()
    copy = opened(address)
    assert (copy / "ledger" / "1-1.jsonl").is_file() and not (copy / "checkpoints").exists() and shown(copy) == address


def test_it_is_sent_every_few_seconds_and_trouble_is_told_once(address, monkeypatch):
    monkeypatch.setattr(working, "UPLOADED", 0.1)
    said: list[str] = []
    with work(address, said=said) as here:
        (here.path / "ledger").mkdir()
        google().faults = [Fault("403", 3, POSTS)]
        (here.path / "ledger" / "1-0.jsonl").write_text("1\n")
        deadline = time.monotonic() + 10
        while not place(address).exists("ledger/1-0.jsonl"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert google().faults[0].times == 0
    assert len(said) == 1 and "PERMISSION_DENIED" in said[0] and "is sent once it can be" in said[0]


def test_an_end_that_cannot_be_sent_is_an_error_that_says_where_it_is(address, monkeypatch):
    monkeypatch.setattr(working, "PATIENCE", (0.0, 0.1))
    google().faults = [Fault("403", 999, POSTS)]
    with pytest.raises(UserError, match="could not be sent to gs://.*PERMISSION_DENIED.*; they are in") as error:
        with work(address) as here:
            (here.path / "ledger").mkdir()
            (here.path / "ledger" / "1-0.jsonl").write_text("1\n")
    assert str(here.path) in error.value.got and (here.path / "ledger" / "1-0.jsonl").read_text() == "1\n"
    said: list[str] = []
    with pytest.raises(ZeroDivisionError), work(address, said=said) as here:  # another error is not hidden
        (here.path / "ledger").mkdir()
        (here.path / "ledger" / "1-0.jsonl").write_text("1\n")
        raise ZeroDivisionError
    assert len(said) == 1 and f"they are in {here.path}" in said[0]


def test_nothing_is_sent_once_another_has_taken_over(address):
    lost = []

    def check():
        if lost:
            raise Lost("folder", "lost")

    with pytest.raises(Lost), work(address, check=check) as here:
        (here.path / "metrics.jsonl").write_text("mine")
        lost.append(True)
    assert place(address).files() == []


def test_the_last_lines_of_a_killed_process_come_with_the_next_start(address, tmp_path):
    program = f"""
import os, signal
from t5x_like.core.storage import place
from t5x_like.train.working import Working
here = Working(place({address!r}), True, lambda: None, print).__enter__()
(here.path / "ledger").mkdir()
(here.path / "ledger" / "1-0.jsonl").write_text("one line\\n")
(here.path / "metrics.jsonl").write_text("sent never\\n")
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == -signal.SIGKILL
    (left,) = (tmp_path / "cache" / "runs").iterdir()
    assert (left / "ledger/1-0.jsonl").is_file() and place(address).files() == []
    with work(address) as here:
        assert (here.path / "ledger/1-0.jsonl").read_text() == "one line\n" and not left.exists()
    assert place(address).files() == ["ledger/1-0.jsonl"]


STOPPED = """
import os, signal, sys
from t5x_like.core import lock
lock.RENEWED, lock.EXPIRES = 0.3, 2.0
lock.machine = lambda: "far"
lock.platform.node = lambda: "far"
from t5x_like.train import run
from t5x_like.cli.main import main
compiling = run.compile_step
def compile_step(setup, placement):
    step, made = compiling(setup, placement), []
    def stepped(state, batch):
        made.append(1)
        if len(made) == 2:
            print("stopping", flush=True)
            os.kill(os.getpid(), signal.SIGSTOP)
        return step(state, batch)
    return stepped
run.compile_step = compile_step
sys.exit(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["disk", "gs"])
def test_a_training_stopped_for_long_ends_once_another_has_gone_on(kind, address, tmp_path, monkeypatch):
    from t5x_like.core import lock

    where = address if kind == "gs" else str(tmp_path / "run")
    config = run_file(tiny_run("llama", "train.steps=6", "mesh.data=1", "checkpoint.every.steps=2"))
    command = [sys.executable, "-c", STOPPED, "train", config, "--directory", where]
    more = {"JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT)}
    first = subprocess.Popen(command, env=os.environ | more, text=True, stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, cwd=ROOT)  # fmt: skip
    try:
        assert first.stdout is not None and any(line == "stopping\n" for line in first.stdout)
        monkeypatch.setattr(lock, "RENEWED", 0.3)
        monkeypatch.setattr(lock, "EXPIRES", 2.0)
        assert main(["train", config, "--directory", where, "mesh.data=8", "train.steps=4"]) == 0
        before = {name: place(where).read(name) for name in place(where).files()}
        os.kill(first.pid, signal.SIGCONT)
        said = first.communicate(timeout=60)[0]
    finally:
        first.kill()
        first.communicate()
    assert first.returncode == 2 and "this training has lost the folder: another took it over" in said, said
    after = {name: place(where).read(name) for name in place(where).files()}
    if kind == "gs":  # on a disk it has added the end to its own ledger and metrics
        assert after == before
    assert {name for name in after if name.startswith("checkpoints/")} == {
        name for name in before if name.startswith("checkpoints/")
    }
    assert json.loads(place(where).read("config.json"))["train"]["steps"] == 4


def test_a_run_folder_at_an_address_leaves_nothing_where_its_start_fails(address, tmp_path, capsys):
    config = run_file(tiny_run("llama", "data.corpus.source.paths=/no/such/text"))
    assert main(["train", config, "--directory", address]) == 2
    assert "nothing at" in capsys.readouterr().err and place(address).files() == []
    assert not list((tmp_path / "cache" / "runs").iterdir())
    with locked(address), pytest.raises(UserError, match="another training is running"), locked(address):
        pass
    assert Path(address).name and place(address).files() == []
