"""What a resumed run says of a config that has changed, and what it keeps: every config, and marks in the curves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tiny_runs import ROOT, checkpoint, digests, losses, run_file, tiny_run

from t5x_like.cli.main import main
from t5x_like.core.config import to_plain
from t5x_like.core.errors import UserError
from t5x_like.report.ledger import read_starts
from t5x_like.report.metrics import changes, read_metrics
from t5x_like.train.config import FREE_TO_CHANGE
from t5x_like.train.directory import read_config, refuse_changes

RATE = "optimizer.learning_rate"


@pytest.fixture(scope="module")
def config() -> str:
    return run_file(tiny_run("llama", "train.steps=2"), "changing")


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory, config, quick_compiling) -> Path:
    folder = tmp_path_factory.mktemp("changed") / "run"
    assert main(["train", config, "--directory", str(folder), f"{RATE}=1e-5"]) == 0
    return folder


@pytest.fixture
def folder(two_steps, tmp_path) -> Path:
    return Path(shutil.copytree(two_steps, tmp_path / "run"))


def test_an_override_forgotten_at_the_second_start_is_said(folder, config, capsys):
    assert main(["train", config, "--directory", str(folder), "train.steps=4"]) == 0
    out = capsys.readouterr().out
    table = [line.split() for line in out.splitlines() if line.startswith(("  optimizer.", "  train."))]
    assert [row[:3] for row in table] == [[RATE, "1e-05", "0.003"], ["train.steps", "2", "4"]]
    assert "here on" in " ".join(table[0]) and "the end" in " ".join(table[1])
    assert "WARNING: the learning rate of step 3 is 0.003, 300 times the 1e-05 of the config before" in out
    assert changes(read_metrics(folder)) == {2: [RATE, "train.steps"]}
    first, second = read_starts(folder)
    assert first["config"]["optimizer"]["learning_rate"] == 1e-5 and first["changed"] == {}
    assert second["config"] == to_plain(read_config(folder)) and second["changed"][RATE] == [1e-5, 3e-3]


def test_a_folder_alone_goes_on_exactly_as_it_was(folder, config, capsys):
    assert main(["train", str(folder), "train.steps=4"]) == 0
    out = capsys.readouterr().out
    assert "train.steps" in out and f"  {RATE}" not in out and "WARNING" not in out
    assert read_config(folder).optimizer.learning_rate == 1e-5
    again = Path(shutil.copytree(folder, folder.parent / "again"))
    shutil.rmtree(again / "checkpoints" / "4")
    assert main(["train", str(again)]) == 0  # the last config, whose four steps are not all there
    assert losses(again) == losses(folder)
    assert [start["step"] for start in read_starts(again)] == [0, 2, 2]
    assert changes(read_metrics(again)) == {2: ["train.steps"]}  # once, however often the run starts from there


def test_an_unchanged_config_says_nothing(folder, config, capsys):
    command = ["train", config, "--directory", str(folder), f"{RATE}=1e-5"]
    shutil.rmtree(folder / "checkpoints" / "2")
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "the config is not" not in out and "WARNING" not in out and changes(read_metrics(folder)) == {}


def test_the_peak_that_utilization_is_a_share_of_is_the_highest_measured(folder, config, monkeypatch):
    """Measured while something else computed, it is too low: another start then must not show other shares."""
    before = read_starts(folder)[0]["peak_flops"]
    monkeypatch.setattr("t5x_like.train.run.peak_flops", lambda device: 1.0)
    assert main(["train", config, "--directory", str(folder), "train.steps=3"]) == 0
    assert read_starts(folder)[-1]["peak_flops"] == before > 8.0


def test_extending_a_cosine_run_lifts_the_rate_and_is_said(tmp_path, capsys):
    run = tiny_run("llama", "train.steps=2", "optimizer.schedule.kind=cosine", "optimizer.schedule.end=0.1")
    command = ["train", run_file(run), "--directory", str(tmp_path / "run")]
    assert main(command) == 0
    capsys.readouterr()
    assert main([*command, "train.steps=4"]) == 0
    wanted = "WARNING: the learning rate of step 3 is 0.00165, 5.5 times the 0.0003 of the config before"
    assert wanted in capsys.readouterr().out


def test_marks_are_drawn(folder, config, monkeypatch):
    drawn = []
    monkeypatch.setattr("t5x_like.report.plots.save_figure", lambda figure, picture: drawn.append(figure) or picture)
    assert main(["train", config, "--directory", str(folder), "train.steps=3", "report.plots=true"]) == 0
    loss = next(axes for axes in drawn[0].axes if axes.get_title(loc="left") == "loss")
    assert [text.get_text() for text in loss.texts] == [f"{RATE}, train.steps and 1 more"]
    assert any(list(line.get_xdata()) == [2, 2] for line in loss.lines)


@pytest.mark.parametrize("damage", [
    Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:100]), lambda path: path.write_text("{}"),
    lambda path: path.write_text("null"),
])  # fmt: skip
def test_a_lost_or_torn_config_is_that_of_the_checkpoint(folder, config, capsys, damage):
    damage(folder / "config.json")
    before = digests(folder)
    assert main(["train", config, "--directory", str(folder), "train.steps=3", "train.seed=5"]) == 2
    assert "train.seed: 0 -> 5" in capsys.readouterr().err and digests(folder) == before
    assert main(["inspect", "config", str(folder)]) == 0
    assert f"{RATE} = 1e-05" in capsys.readouterr().out and digests(folder) == before
    assert main(["train", str(folder), "train.steps=3"]) == 0
    assert "WARNING: config.json was lost or torn" in capsys.readouterr().out
    assert read_config(folder).optimizer.learning_rate == 1e-5 and (folder / "config.json").stat().st_size > 1000
    assert checkpoint(folder)["step"] == 3


def test_a_log_of_starts_with_odd_values_is_no_fault(folder):
    line = {"time": 1, "event": "start", "devices": "1 x cpu"}
    lines = [{**line, "peak_flops": value} for value in ("fast", None, float("nan"))]
    with (folder / "ledger" / "1-0.jsonl").open("a") as file:
        file.write("".join(json.dumps(line) + "\n" for line in [*lines, [], {"event": 3}, {"event": "start"}]))
    assert main(["train", str(folder), "train.steps=3"]) == 0
    assert 3 in losses(folder)


def test_an_evaluation_named_as_a_field_of_every_row_is_made_at_the_step_of_a_resume(tmp_path, capsys):
    run = tiny_run("llama", "train.steps=2", "data.corpus.heldout=0.3", "train.evaluate_every=2", "report.sample=0")
    assert main(["train", run_file(run), "--directory", str(tmp_path)]) == 0
    assert main(["train", str(tmp_path), "train.steps=3", "evaluations.0.name=time"]) == 0
    assert [row["step"] for row in read_metrics(tmp_path) if "time/loss" in row] == [2, 3]
    capsys.readouterr()
    assert main(["train", str(tmp_path), "train.steps=4", "evaluations.0.name=memory"]) == 2  # memory/peak_bytes
    assert "a name of its own" in capsys.readouterr().err


def test_a_config_that_was_edited_by_hand_is_compared_with_the_checkpoint(folder, capsys):
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"seed": 0', '"seed": 5'))
    before = digests(folder)
    assert main(["train", str(folder), "train.steps=3"]) == 2
    assert "train.seed: 0 -> 5" in capsys.readouterr().err and digests(folder) == before


def test_a_checkpoint_of_a_version_with_fewer_fields_goes_on(folder, monkeypatch, capsys):
    from t5x_like.train import resume

    monkeypatch.setattr(resume, "check", lambda run, data, metadata: metadata["config"]["train"].pop("z_loss"))
    assert main(["train", str(folder), "train.steps=3"]) == 0
    assert "z_loss" not in capsys.readouterr().out


def test_a_torn_line_of_the_log_of_starts_costs_itself_only(folder):
    path = folder / "ledger" / "1-0.jsonl"
    path.write_bytes(path.read_bytes().splitlines()[0][:-20])
    assert main(["train", str(folder), "train.steps=3"]) == 0
    assert [start["step"] for start in read_starts(folder)] == [2]


def test_every_field_that_may_change_says_why():
    assert all(FREE_TO_CHANGE.values())


def test_the_page_on_resuming_names_every_field_that_may_change():
    text = (ROOT / "docs" / "resuming.md").read_text()
    for field in FREE_TO_CHANGE:
        assert f"`{field.replace('*', '')}`" in text or field.rsplit(".", 1)[1].strip("*") in text, field


def test_a_file_of_an_optimizer_of_ones_own_may_change_only_if_accepted(tmp_path):
    with pytest.raises(UserError, match="optimizer.code: own.py 1 -> own.py 2"):
        refuse_changes(tmp_path, {"optimizer.code": ("own.py 1", "own.py 2")})
    refuse_changes(tmp_path, {"optimizer.code": (None, "own.py 2"), "optimizer.kind": ("AdamW", "Own")})
