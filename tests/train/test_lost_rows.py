"""Rows of metrics.jsonl that were written and are not there: noticed at the next start, said, and drawn as a gap."""

from __future__ import annotations

import math
import resource
import shutil
import signal
from pathlib import Path

import pytest
from tiny_runs import losses, run_file, tiny_run

from t5x_like.cli.main import main
from t5x_like.report.config import ReportConfig
from t5x_like.report.ledger import read_ledger
from t5x_like.report.metrics import gaps, lost_rows, read_metrics
from t5x_like.report.plots import plot_curves, smooth
from t5x_like.report.writers import Reporter


def start(step: int, every: int, steps: int = 1000) -> dict:
    return {"step": step, "config": {"report": {"every": every}, "train": {"steps": steps}}}


def rows(*steps: int) -> list[dict]:
    return [{"step": step, "train/loss": 1.0} for step in steps]


@pytest.mark.parametrize("starts, there, until, lost", [
    ([start(0, 10)], (10, 20, 30), 30, []),
    ([start(0, 10)], (10, 20, 30), 39, []),
    ([start(0, 10)], (10, 40), 45, [(20, 30)]),
    ([start(0, 10)], (), 30, [(10, 30)]),
    ([start(0, 10)], (20,), 30, [(10, 10), (30, 30)]),
    ([start(0, 10), start(20, 5)], (10, 20, 25, 30), 30, []),  # from 20 on each fifth
    ([start(0, 10), start(20, 5)], (10, 20, 30), 30, [(25, 25)]),
    ([start(0, 10), start(40, 10), start(20, 10)], (10, 20), 25, []),  # back to 20: what came after is written again
    ([start(0, 10, 24)], (10, 20), 24, [(24, 24)]),  # the last step has a row
    ([{"step": 0}, {"step": None, "config": {"report": 3}}], (), 30, []),  # of a line that is not whole
])  # fmt: skip
def test_rows_that_a_run_must_have_written(starts, there, until, lost):
    assert lost_rows(rows(*there), starts, until) == lost
    marked = [*rows(*there), *({"step": last, "lost": [first, last]} for first, last in lost)]
    assert lost_rows(marked, starts, until) == []  # said once


@pytest.fixture(scope="module")
def six_steps(tmp_path_factory, quick_compiling) -> tuple[str, Path]:
    config = run_file(tiny_run("llama", "train.steps=6"), "losing")
    folder = tmp_path_factory.mktemp("lost") / "run"
    assert main(["train", config, "--directory", str(folder)]) == 0
    return config, folder


@pytest.mark.parametrize("damage, said, left", [
    (lambda lines: lines[:1] + lines[4:], "steps 2 to 4", [1, 5, 6]),
    (lambda lines: lines[:-1], "step 6", [1, 2, 3, 4, 5]),
    (lambda lines: [*lines[:3], lines[3][:20], *lines[4:]], "step 4", [1, 2, 3, 5, 6]),
    (lambda lines: None, "steps 1 to 6", []),
])  # fmt: skip
def test_lost_rows_are_said_recorded_and_marked(six_steps, tmp_path, capsys, damage, said, left):
    config, folder = six_steps[0], Path(shutil.copytree(six_steps[1], tmp_path / "run"))
    path = folder / "metrics.jsonl"
    lines = damage(path.read_text().splitlines())
    path.unlink() if lines is None else path.write_text("\n".join(lines) + "\n")
    for steps in (7, 8):
        assert main(["train", config, "--directory", str(folder), f"train.steps={steps}"]) == 0
        assert (f"metrics.jsonl has lost its rows of {said};" in capsys.readouterr().out) == (steps == 7)
    assert sorted(losses(folder)) == [*left, 7, 8]
    (fault,) = read_ledger(folder, "fault")
    assert fault["kind"] == "rows lost" and (fault["first"], fault["last"]) == gaps(read_metrics(folder))[0]
    assert "\n\n" not in path.read_text()


def test_a_gap_is_drawn_as_one(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("t5x_like.report.plots.save_figure", lambda figure, picture: drawn.append(figure) or picture)
    reporter = Reporter(tmp_path, ReportConfig(tensorboard=False, plots=False))
    for step in (1, 2, 5, 6):
        reporter.log(step, {"train/loss": 1.0 + step})
    assert reporter.mark_lost([], 6) == []
    reporter.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lost": [3, 4]}\n')
    plot_curves(tmp_path)
    loss = next(axes for axes in drawn[0].axes if axes.get_title(loc="left") == "loss")
    for line in loss.lines:
        steps, values = line.get_data()
        assert list(steps) == [1, 2, 3, 5, 6] and [math.isnan(value) for value in values] == [0, 0, 1, 0, 0]
    assert "rows lost" in [text.get_text() for text in loss.texts] and loss.patches
    assert smooth([1.0, math.nan, 1.0], 3)[2] == 1.0


def test_a_disk_that_fills_while_a_run_reports_is_said_and_the_run_goes_on(tmp_path, capsys):
    """A limit of a file's size stands for the disk."""
    config = ReportConfig(plots=False)
    reporter = Reporter(tmp_path, config)
    reporter.log(1, {"train/loss": 1.0})
    files = {path: path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (min(files.values()) + 7, before[1]))
    try:
        for step in range(2, 40):  # more than a queue of tensorboardX holds
            reporter.log(step, {"train/loss": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert [row["step"] for row in read_metrics(tmp_path)] == [1]
    reporter.log(40, {"train/loss": 1.0})
    reporter.close()
    assert [row["step"] for row in read_metrics(tmp_path)] == list(range(1, 41))
    err = capsys.readouterr().err
    assert err.count("metrics.jsonl cannot be written") == err.count("events.out.tfevents") == 1
    assert "Traceback" not in err and err.count("\n") == 2
