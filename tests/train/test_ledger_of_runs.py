"""What runs write into their ledgers: each event in its place, all of the time, and how they ended."""

from __future__ import annotations

import itertools
import time

import pytest
from tiny_runs import run_file, tiny_run

from t5x_like.cli.main import main
from t5x_like.report.account import KEPT, account_of
from t5x_like.report.ledger import read_ledger
from t5x_like.train.loop import Loop

OPTIONS = ("data.corpus.heldout=0.3", "train.evaluate_every=2", "checkpoint.every.steps=3")


def told(folder) -> list[tuple]:
    return [(line["attempt"], line["event"], line["step"]) for line in read_ledger(folder) if line["event"] != "steps"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, quick_compiling):
    """Four steps, and four more."""
    folder = tmp_path_factory.mktemp("ledger") / "run"
    for steps in (4, 8):
        sample = f"report.sample.end={str(steps == 8).lower()}"
        config = run_file(tiny_run("llama", f"train.steps={steps}", sample, *OPTIONS))
        assert main(["train", config, "--directory", str(folder)]) == 0
    assert main(["train", config, "--directory", str(folder)]) == 0  # complete: nothing happens
    return folder


def test_every_event_is_in_its_place(folder):
    first = [("start", 0), ("data", 0), ("compile", 0), ("evaluation", 2), ("save", 3), ("save", 4), ("evaluation", 4),
             ("end", 4)]  # fmt: skip
    second = [("restore", 4), ("start", 4), ("data", 4), ("compile", 4), ("save", 6), ("evaluation", 6),
              ("save", 8), ("evaluation", 8), ("sample", 8), ("end", 8)]  # fmt: skip
    expected = [(n, *line) for n, lines in ((1, first), (2, second)) for line in lines]
    assert sorted(told(folder)) == sorted(expected)
    without = lambda lines: [line for line in lines if line[1] != "save"]  # noqa: E731, which end in the background
    assert without(told(folder)) == without(expected)
    by_event = {line["event"]: line for line in read_ledger(folder)}
    assert set(by_event["evaluation"]["values"]) >= {"loss", "targets"} and by_event["evaluation"]["name"] == "held_out"
    assert set(by_event["sample"]["text"]) == {"given", "model", "truth"}
    assert len(by_event["data"]["rows"]) == 3 and "targets: " in by_event["data"]["rows"][0]
    assert by_event["start"]["changed"]["train.steps"] == [4, 8] and by_event["end"]["complete"]


def test_the_time_of_an_attempt_is_all_accounted_for(folder):
    lines = read_ledger(folder)
    for attempt in (1, 2):
        mine = [line for line in lines if line["attempt"] == attempt]
        for before, line in itertools.pairwise(mine):
            assert sum(line["spent"].values()) == pytest.approx(line["time"] - before["time"], abs=0.02)
    account = account_of(lines)
    assert account.total == pytest.approx(lines[-1]["time"] - account.attempts[0].began, abs=0.1)
    assert 0 < account.seconds[KEPT] < account.total and account.lost_steps == 0


def test_a_run_that_fails_says_so(tmp_path, monkeypatch, capsys, quick_compiling):
    config, dispatch = run_file(tiny_run("llama", "train.steps=4")), Loop._dispatch

    def failing(loop, state, batch, step, compiles):
        if step == 3:
            time.sleep(0.05)
            raise RuntimeError("a cable was pulled")
        return dispatch(loop, state, batch, step, compiles)

    monkeypatch.setattr(Loop, "_dispatch", failing)
    assert main(["train", config, "--directory", str(tmp_path)]) == 1
    fault = read_ledger(tmp_path)[-1]
    assert (fault["event"], fault["kind"], fault["message"]) == ("fault", "RuntimeError", "a cable was pulled")
    assert sum(fault["spent"].values()) > 0.04
    assert main(["report", str(tmp_path)]) == 0
    assert "failed: RuntimeError" in (tmp_path / "report.html").read_text()
    capsys.readouterr()
