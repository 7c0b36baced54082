"""A run with frequent local saves and rare permanent ones, killed."""

from __future__ import annotations

import shutil

import pytest
from tiny_runs import checkpoint, tiny_run

from t5x_like.report.ledger import read_ledger
from t5x_like.train import run as running


class Killed(Exception):
    pass


@pytest.mark.slow
def test_a_killed_run_loses_no_more_than_the_interval(tmp_path, monkeypatch, quick_compiling):
    """Local saves every 2 steps, permanent ones every 4 of 8: killed in step 7, resumed from 6, and from 4 without."""
    options = ["checkpoint.every.steps=4", f"checkpoint.local.directory={tmp_path / 'local'}",
               "checkpoint.local.every.steps=2"]  # fmt: skip
    run = tiny_run("llama", *options)
    straight = tmp_path / "straight"
    running.train(tiny_run("llama"), straight)
    feed = running.Feed.__iter__

    def killed(self):
        for number, batch in enumerate(feed(self)):
            if number == 6:
                raise Killed
            yield batch

    for lost, step in ((False, 6), (True, 4)):
        directory = tmp_path / f"run{step}"
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(running.Feed, "__iter__", killed)
            running.train(run, directory)
        if lost:
            shutil.rmtree(tmp_path / "local")
        running.train(run, directory)
        restored = read_ledger(directory, "restore")[-1]
        assert restored["step"] == step and restored["bytes"] > 0
        saves = [line for line in read_ledger(directory, "save") if line["attempt"] == 1]
        assert [(line["step"], line.get("local", False)) for line in saves] == [(2, True), (4, False), (6, True)]
        for path, array in checkpoint(directory).items():
            assert array.tobytes() == checkpoint(straight)[path].tobytes(), path
