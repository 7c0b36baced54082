"""Profiles: of the steps that were asked for, whole, and of the memory; by the config and by a signal."""

from __future__ import annotations

import gzip
import os
import signal
import warnings
from pathlib import Path

import jax
from tiny_runs import tiny_run

from t5x_like.report.ledger import read_ledger
from t5x_like.train.loop import Loop
from t5x_like.train.profile import Asked
from t5x_like.train.run import train


def traced(folder: Path) -> list[list[tuple[int, bool]]]:
    """Of each profile: number of each traced step, and whether the train step was called in it."""
    found = []
    for path in sorted((folder / "profile").rglob("*.xplane.pb")):
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of the reader's own types
            lines = [line for plane in jax.profiler.ProfileData.from_file(str(path)).planes for line in plane.lines]
            events = [event for line in lines for event in line.events]
            calls = [event for event in events if event.name.startswith("PjitFunction(")]
            steps = [(dict(event.stats)["step_num"], event) for event in events if event.name == "train"]
        found.append(sorted((number, any(step.start_ns <= call.start_ns <= step.start_ns + step.duration_ns
                                         for call in calls)) for number, step in steps))  # fmt: skip
    return found


def test_a_profile_holds_the_steps_that_the_config_names(tmp_path, capsys):
    train(tiny_run("llama", "train.steps=7", "report.profile.steps=4", "report.profile_steps=2"), tmp_path / "run")
    assert traced(tmp_path / "run") == [[(5, True), (6, True)]]
    (memory,) = (tmp_path / "run" / "profile").glob("memory_6_process_0.prof")
    assert b"t5x_like" in gzip.decompress(memory.read_bytes())  # where its arrays were made
    assert "profile of steps 5 to 6, and of memory, in" in capsys.readouterr().out
    assert [(line["first"], line["step"]) for line in read_ledger(tmp_path / "run", "profile")] == [(5, 6)]


def test_a_signal_asks_for_a_profile_of_the_next_steps(tmp_path, monkeypatch):
    dispatch = Loop._dispatch

    def signalled(loop, state, batch, step, compiles):
        if step == 3:
            os.kill(os.getpid(), signal.SIGUSR1)
        return dispatch(loop, state, batch, step, compiles)

    monkeypatch.setattr(Loop, "_dispatch", signalled)
    train(tiny_run("llama", "train.steps=8", "report.profile_steps=2"), tmp_path / "run")
    assert traced(tmp_path / "run") == [[(4, True), (5, True)]]
    assert list((tmp_path / "run" / "profile").glob("memory_5_*.prof"))


def test_a_signal_before_the_first_step_ends_nothing():
    before = signal.getsignal(signal.SIGUSR1)
    with Asked() as asked:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert asked.now
    assert signal.getsignal(signal.SIGUSR1) == before


def test_a_profile_ends_with_the_run(tmp_path):
    train(tiny_run("llama", "train.steps=3", "report.profile.steps=1", "report.profile_steps=9"), tmp_path / "run")
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))
    jax.profiler.start_trace(str(tmp_path / "other"))  # refused while one is on
    jax.profiler.stop_trace()
