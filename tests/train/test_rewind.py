"""Going back, and passing over batches: the same bits as a run that never saw them, on every later start too."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import jax
import pytest
from tiny_runs import (
    ROOT,
    assert_same_bits,
    checkpoint,
    digests,
    losses,
    record_batches,
    recorded,
    recorder,
    rows,
    run_file,
    saved_steps,
    start,
    tiny_run,
)

from t5x_like.checkpoint.checkpoints import Checkpoints
from t5x_like.cli.main import main
from t5x_like.report.ledger import read_ledger
from t5x_like.report.metrics import changes, read_metrics
from t5x_like.train.data import data_step
from t5x_like.train.loop import Loop

STEPS = 60


@pytest.fixture(scope="module")
def config() -> str:
    return run_file(tiny_run("llama", f"train.steps={STEPS}", "checkpoint.every.steps=15"), "rewinding")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, config, quick_compiling) -> Path:
    folder = tmp_path_factory.mktemp("rewind") / "run"
    assert main(["train", config, "--directory", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def straight(tmp_path_factory, config, quick_compiling) -> Path:
    """The run that passes over batches 40 to 44 from its start."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    assert main(["train", config, "--directory", str(folder), "data.skip=40:45"]) == 0
    return folder


@pytest.fixture
def folder(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def metadata(folder: Path) -> dict:
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        return checkpoints.metadata()


def test_a_rewound_run_is_the_straight_one_that_passes_over_these_batches(
    folder, straight, config, monkeypatch, capsys, tmp_path
):
    """From step 60 back to 40: the checkpoint of step 30 is read, its next ten batches trained on, five passed over."""
    command, before = ["train", config, "--directory", str(folder)], losses(folder)
    fed = record_batches(monkeypatch)
    assert main([*command, "--rewind", "20", "--skip", "5"]) == 0
    said = capsys.readouterr()
    assert "going back from step 60 to the checkpoint of step 30; from step 40 on batches 40:45" in said.out
    assert all(f"left behind by --rewind; it is renamed to {step}.aside-1" in said.err for step in (45, 60))
    assert len(fed) == 30
    assert_same_bits(checkpoint(folder), checkpoint(straight))
    assert rows(folder) == rows(straight)
    aside = {path.name for path in (folder / "checkpoints").glob("*.aside-*")}  # gone with the checkpoint of step 60
    assert not aside and saved_steps(folder) == [15, 30, 45, 60]

    # recorded, and marked
    assert changes(read_metrics(folder)) == {30: ["data.skip", "rewind"]}
    assert [row["train/loss"] for row in read_metrics(folder / "metrics.aside-1.jsonl") if "train/loss" in row] == [
        *before.values()
    ]
    record = next(line for line in read_ledger(folder) if line["event"] == "rewind")
    kept = dict(latest=60, to=40, restored=30, skip="40:45", steps=20, batches=5)
    assert kept.items() <= record.items() and kept.items() <= metadata(folder)["history"][0].items()

    # from the run file, which knows nothing of it, it goes on past these batches
    for more in (["train.steps=61"], ["train.steps=62", "data.skip=90:91"]):
        assert main([*command, *more]) == 0
        (folder / "history.json").unlink()  # the checkpoints have it too
    assert main(["train", config, "--directory", str(straight.parent / "longer"), "data.skip=40:45,90:91",
                 "train.steps=62"]) == 0  # fmt: skip
    assert_same_bits(checkpoint(folder), checkpoint(straight.parent / "longer"))


def test_killed_just_after_it_has_gone_back_it_goes_on_from_there(folder, straight, config, monkeypatch):
    """Before a checkpoint was set aside, and before any was saved."""

    def kill(*_):
        raise KeyboardInterrupt

    for where, name in ((Checkpoints, "set_aside"), (Loop, "__call__")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(where, name, kill)
            back = ["--rewind", "20", "--skip", "5"] if name == "set_aside" else []
            assert main(["train", config, "--directory", str(folder), *back]) == 130
    assert main(["train", config, "--directory", str(folder)]) == 0
    assert_same_bits(checkpoint(folder), checkpoint(straight))


def test_a_job_started_again_with_its_command_goes_back_once(folder, straight, config, monkeypatch, capsys):
    command = ["train", config, "--directory", str(folder), "--rewind", "20", "--skip", "5"]
    monkeypatch.setenv("T5X_LIKE_JOB", "7")
    assert main([*command, "train.steps=55"]) == 0
    assert main(command) == 0
    assert "was made by an earlier start of this job" in capsys.readouterr().out
    assert_same_bits(checkpoint(folder), checkpoint(straight))
    monkeypatch.setenv("T5X_LIKE_JOB", "8")  # another is meant anew: from step 40 the next five
    assert main(command) == 0
    assert [record["skip"] for record in metadata(folder)["history"]] == ["40:45", "45:50"]
    assert metadata(folder)["config"]["data"]["skip"] == ["40:45", "45:50"]


@pytest.mark.slow
@pytest.mark.skipif(len(jax.devices()) < 8, reason="needs 8 devices")
def test_two_processes_go_back_and_pass_over_the_same_batches(folder, straight, config, tmp_path, monkeypatch):
    fed = record_batches(monkeypatch)
    assert main(["train", config, "--directory", str(tmp_path / "straight"), "data.skip=40:45"]) == 0
    launcher = [sys.executable, str(ROOT / "launch" / "local.py"), "--processes", "2", "--devices", "4", "--"]
    command = [*launcher, *recorder(), "train", config, "--directory", str(folder)]
    for number, back in enumerate((["--rewind", "20", "--skip", "5", "train.steps=59"], [])):  # resumed without a word
        process = start([*command, *back], RECORD=str(tmp_path / f"{number}"), JAX_DISABLE_MOST_OPTIMIZATIONS="1")
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0, out
    together = recorded(tmp_path / "0")[:29] + recorded(tmp_path / "1")[:1]
    assert together == fed[30:60]
    assert losses(folder) == pytest.approx(losses(straight), abs=1e-5)
    assert saved_steps(folder) == [15, 30, 45, 59, 60]


@pytest.mark.parametrize(
    "options, said",
    [
        (["--rewind", "50"], "--rewind: 50 steps back from step 60 is step 10, and no checkpoint is as old"),
        (["--rewind", "61"], "at most 45 (checkpoints 15, 30, 45, 60)"),
        (["--rewind", "-1"], "--rewind: "),
        (["--skip", "-1"], "--skip: "),
        (["--rewind", "20", "train.seed=1"], "train.seed: 0 -> 1"),
    ],
)
def test_what_cannot_be_gone_back_to_is_refused_and_nothing_is_touched(folder, config, capsys, options, said):
    before = digests(folder)
    assert main(["train", config, "--directory", str(folder), *options]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
    assert digests(folder) == before


def test_with_nothing_trained_there_is_nothing_to_go_back_from(tmp_path, config, capsys):
    assert main(["train", config, "--directory", str(tmp_path / "new"), "--rewind", "1"]) == 2
    assert "has no checkpoint to go back from" in capsys.readouterr().err


def test_numbers_of_batches_with_ranges_passed_over():
    data = tiny_run("llama", "data.skip=2:4,4:5,7:8").data
    assert [data_step(data, step) for step in range(6)] == [0, 1, 5, 6, 8, 9]
    assert json.loads(json.dumps(data.skipped())) == [[2, 5], [7, 8]]
