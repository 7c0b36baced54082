"""Metrics that merge, files that survive a kill and a resume, pictures."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys

import pytest

from t5x_like.core.errors import UserError
from t5x_like.report.config import ReportConfig
from t5x_like.report.metrics import read_metrics
from t5x_like.report.plots import plot_curves, plot_runs, smooth
from t5x_like.report.writers import Reporter, check_outputs

PLAIN = ReportConfig(tensorboard=False, plots=False)


def fill(directory, steps, first_step=0, config=PLAIN):
    reporter = Reporter(directory, config, first_step=first_step, now=itertools.count(1000.0).__next__)
    for step in steps:
        reporter.log(step, {"train/loss": 5 - step / 10})
    return reporter


def test_rows_are_written_at_once_and_as_json(tmp_path):
    reporter = fill(tmp_path, [1, 2])
    reporter.log(3, {"train/loss": math.nan, "held_out/loss": 2})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[0] == {"step": 1, "time": 1000.0, "train/loss": 4.9}
    assert rows[2]["train/loss"] is None and rows[2]["held_out/loss"] == 2
    assert reporter.close() is None and reporter.close() is None


def test_a_resumed_run_writes_each_step_once(tmp_path):
    fill(tmp_path, range(1, 8)).close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "train/lo')  # killed while it wrote
    fill(tmp_path, range(5, 10), first_step=5).close()
    assert [row["step"] for row in read_metrics(tmp_path)] == list(range(1, 10))
    fill(tmp_path, [1]).close()
    assert [row["step"] for row in read_metrics(tmp_path)] == [1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl"]


def test_only_process_0_writes(tmp_path):
    reporter = Reporter(tmp_path / "run", process_index=1)
    reporter.log(1, {"train/loss": 1.0})
    assert reporter.close() is None
    assert not (tmp_path / "run").exists()


def test_due_every_so_many_steps():
    reporter = Reporter("unused", ReportConfig(every=5), process_index=1)
    assert [step for step in range(1, 16) if reporter.due(step)] == [5, 10, 15]
    with pytest.raises(UserError, match=r"report\.every"):
        ReportConfig(every=0)


def test_tensorboard_files_hold_the_values(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    reporter = Reporter(tmp_path, ReportConfig(plots=False))
    reporter.log(7, {"train/loss": 2.5})
    reporter.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    data, found = path.read_bytes(), []
    while data:  # records of length, checksum, event, checksum
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        data = data[16 + length :]
    assert found == [(7, "train/loss", 2.5)]


def test_wandb_asked_for_and_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"report\.wandb.*not installed"):
        Reporter(tmp_path, ReportConfig(wandb="project"))


def test_wandb_goes_on_under_the_same_id(tmp_path, monkeypatch):
    calls = []

    class Run:
        def log(self, values, step):
            calls.append((step, values))

        def finish(self):
            calls.append("finished")

    class Wandb:
        class util:
            generate_id = staticmethod(iter(["one", "two"]).__next__)

        @staticmethod
        def init(**options):
            calls.append(options["id"])
            return Run()

    monkeypatch.setitem(sys.modules, "wandb", Wandb)
    config = ReportConfig(wandb="project", tensorboard=False, plots=False)
    for step in (1, 2):
        reporter = Reporter(tmp_path, config, first_step=step)
        reporter.log(step, {"train/loss": 1.0})
        reporter.close()
    assert calls == ["one", (1, {"train/loss": 1.0}), "finished", "one", (2, {"train/loss": 1.0}), "finished"]


def test_no_metrics_file(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_metrics(tmp_path)


def is_png(path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000


def test_curves_of_one_run_and_of_several(tmp_path):
    for name in ("one", "two"):
        reporter = Reporter(tmp_path / name, ReportConfig(tensorboard=False, plots=name == "one"))
        for step in range(10, 200, 10):
            speed = {"train/tokens_per_second": 9e3}
            reporter.log(step, {"train/loss": 9 / step + 1, "train/learning_rate": 1e-3, **speed})
        reporter.log(190, {"held_out/loss": 1.2, "train/loss": math.inf})
        picture = reporter.close()
        assert (picture is not None) == (name == "one")
    assert is_png(tmp_path / "one" / "curves.png")
    assert is_png(plot_runs([tmp_path / "one", tmp_path / "two"], tmp_path / "both.png"))


def test_statistics_of_other_names_have_panels(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("t5x_like.report.plots.save_figure", lambda figure, picture: drawn.append(figure) or picture)
    reporter = Reporter(tmp_path, ReportConfig(tensorboard=False, plots=False))
    for step in range(1, 20):
        reporter.log(step, {"train/loss": 3.0 / step, "train/accuracy": 0.4, "train/nll": 1.0, "data/tiny/tokens": 9.0})
    reporter.log(19, {"held_out/loss": 1.2, "held_out/accuracy": 0.3, "spelling/words_right": 0.7})
    reporter.close()
    assert plot_curves(tmp_path)
    panels = {axes.get_title(loc="left"): len(axes.lines) for axes in drawn[0].axes}
    assert panels == {"loss": 3, "learning rate": 0, "tokens per second": 0, "accuracy": 2, "words right": 1}


def test_nothing_to_draw_yet(tmp_path):
    fill(tmp_path, []).close()
    assert plot_curves(tmp_path) is None
    with pytest.raises(UserError, match="loss"):
        plot_runs([tmp_path], tmp_path / "picture.png")


def test_smoothing_is_unbiased_and_lies_between():
    assert smooth([2.0] * 10, 3) == pytest.approx([2.0] * 10)
    assert smooth([1.0, 2.0, 3.0], 1) == [1.0, 2.0, 3.0]
    assert smooth([0.0, 1.0], 2) == pytest.approx([0.0, 2 / 3])


def test_configs_and_writers_load_without_heavy_packages():
    program = (
        "import sys, t5x_like.report.config, t5x_like.optim.config, t5x_like.checkpoint.config;"
        "import t5x_like.report.writers, t5x_like.report.console, t5x_like.report.plots;"
        "print({'jax', 'rich', 'matplotlib', 'tensorboardX', 'orbax'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "set()\n"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_json_does_not_have_are_read_as_none_and_the_run_goes_on(tmp_path, number):
    """As other programs write them."""
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1, "x": {number}, "y": {{"z": [{number}, 2]}}}}\n')
    reporter = Reporter(tmp_path, PLAIN, first_step=2)
    reporter.log(2, {"x": math.nan})
    reporter.close()
    first, second = read_metrics(tmp_path)
    assert first == {"step": 1, "x": None, "y": {"z": [None, 2]}} and second["x"] is None
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_lines_that_are_no_rows_are_left_out(tmp_path):
    lines = ['{"step": 1}', "[1]", "5", '{"step": "1"}', '{"n": ' + "9" * 5000 + "}", "[" * 5000, "\x00", '{"step": 2}']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]


def test_marks_are_of_the_checkpoint_that_the_run_goes_on_from(tmp_path):
    for value in (0.5, math.inf):
        reporter = Reporter(tmp_path, PLAIN, first_step=3)
        reporter.mark(2, {"optimizer.clip_norm": (value, 1.0)})
        reporter.close()
    (row,) = read_metrics(tmp_path)
    assert row["step"] == 2 and row["changed"] == {"optimizer.clip_norm": ["inf", 1.0]}


PICTURES = [(".pdf", b"%PDF"), (".svg", b"<?xml"), (".png", b"\x89PNG"), ("", b"\x89PNG")]


@pytest.mark.parametrize("suffix, begins", PICTURES)
def test_a_picture_has_the_format_of_its_suffix_and_its_folder_is_made(tmp_path, suffix, begins):
    fill(tmp_path / "run", range(1, 4)).close()
    picture = plot_runs([tmp_path / "run"], tmp_path / "new" / "folder" / f"curves{suffix}")
    assert picture.read_bytes().startswith(begins) and len(list(picture.parent.iterdir())) == 1


def test_a_picture_that_cannot_be_drawn_or_written(tmp_path):
    fill(tmp_path / "run", range(1, 4)).close()
    with pytest.raises(UserError, match=r"\.xyz(.|\n)*pdf(.|\n)*curves\.png"):
        plot_runs([tmp_path / "run"], tmp_path / "curves.xyz")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        plot_runs([tmp_path / "run"], tmp_path / "file" / "curves.png")


def test_outputs_that_cannot_be_written_are_found_at_the_start(tmp_path):
    check_outputs(tmp_path, ReportConfig())
    (tmp_path / "tensorboard").write_text("")
    with pytest.raises(UserError, match="tensorboard: is no folder that can be written"):
        check_outputs(tmp_path, ReportConfig())
    (tmp_path / "tensorboard").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match="metrics.jsonl: is no file that can be written"):
        check_outputs(tmp_path, ReportConfig())
