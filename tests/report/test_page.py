"""The report: one page that opens without a network, of one run or of two, whatever its texts hold."""

from __future__ import annotations

import html.parser
import json
import math
import re
import subprocess
import sys

import hand_ledger
import pytest

from t5x_like.cli.main import main
from t5x_like.core.errors import UserError
from t5x_like.report.page import write_report
from t5x_like.report.svg import POINTS, Line, chart, thinned

EMPTY = ("meta",)


class Elements(html.parser.HTMLParser):
    """Refuses elements that are not closed where they belong; gathers texts."""

    def __init__(self, page: str):
        super().__init__()
        self.open, self.count, self.texts = [], {}, []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.count[tag] = self.count.get(tag, 0) + 1
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.count[tag] = self.count.get(tag, 0) + 1

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def make(folder, loss: float = 2.0, steps: int = 100):
    """A run of a ledger made by hand, with metrics, samples and odd texts."""
    hand_ledger.write(folder)
    odd = '<script>alert("http://x.y")</script>\x00 & é'
    start = {"time": hand_ledger.T + 600, "event": "start", "step": 90, "host": odd, "command": ["train", odd]}
    start |= {"changed": {"optimizer.learning_rate": [0.1, loss]}, "versions": {"jax": "1"}, "config": {"name": odd}}
    lines = [start, {"time": hand_ledger.T + 640, "event": "sample", "step": 95, "text": {"given": odd, "model": "m"}},
             {"time": hand_ledger.T + 641, "event": "data", "step": 95, "rows": [odd]},
             {"time": hand_ledger.T + 642, "event": "skipped", "step": 96, "loss": 9.0},
             {"time": hand_ledger.T + 643, "event": "fault", "step": 97, "kind": "Odd", "message": odd}]  # fmt: skip
    with (folder / "ledger" / "3-0.jsonl").open("a") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))
    rows = [{"step": step, "train/loss": loss + 5 / step, "train/odd<name": 1.0, "data/x/tokens": 10.0 * step}
            for step in range(1, steps + 1)]  # fmt: skip
    rows += [{"step": 60, "lost": [50, 60]}, {"step": 70, "changed": {"train.steps": [1, 2]}},
             {"step": steps, "held_out/loss": loss}]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_the_page_of_a_run(tmp_path, capsys):
    run = make(tmp_path / "run")
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    text = (run / "report.html").read_text()
    assert "http" not in text and "<script" not in text and len(text) < 1_000_000
    found = Elements(text)
    said = " ".join(found.texts)
    assert found.count["h1"] == 1 and found.count["svg"] >= 3
    assert '<script>alert("http://x.y")</script>' in said  # shown as it is
    for part in ("29.7%", "training steps", "between attempts", "killed, without a word", "optimizer.learning_rate",
                 "Updates skipped: 1.", "Text seen", " 1k ", "odd<name", "rows lost"):  # fmt: skip
        assert part in said, part
    shares = re.findall(r'class="part" style="width:([\d.]+)%;background:#\w+" title="([^:]+): ', text)
    assert sum(float(width) for width, _ in shares) == pytest.approx(100, abs=0.01)
    assert float(dict((name, width) for width, name in shares)["training steps"]) == pytest.approx(29.671, rel=0.01)


def test_two_runs_beside_each_other(tmp_path, capsys):
    one, other = make(tmp_path / "one"), make(tmp_path / "other", loss=3.0, steps=80)
    assert main(["report", str(one), str(other), "--out", str(tmp_path / "new" / "page.html")]) == 0
    text = (tmp_path / "new" / "page.html").read_text()
    said = " ".join(Elements(text).texts)
    assert "one: train" in said and "other: train" in said and "2.0625" in said and "+1" in said  # at step 80
    assert "http" not in text and not (one / "report.html").exists()
    (tmp_path / "below").mkdir()
    same = make(tmp_path / "below" / "one")
    write_report(one, same, tmp_path / "page.html")
    assert f"{same}: train" in (tmp_path / "page.html").read_text()  # of one name: told apart


def test_what_cannot_be_reported(tmp_path, capsys):
    for folder in (tmp_path, tmp_path / "none"):
        assert main(["report", str(folder)]) == 2
        assert "has no ledger and no metrics" in capsys.readouterr().err
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / "ledger").mkdir()
    with pytest.raises(UserError, match="has no ledger and no metrics"):
        write_report(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "x/loss": 1.0}\n')  # of an older version: no ledger
    Elements(write_report(tmp_path).read_text())
    hand_ledger.write(tmp_path / "killed", (hand_ledger.FIRST[:1],))  # before its first row
    Elements(write_report(tmp_path / "killed").read_text())


def test_a_long_run_fits_into_the_page(tmp_path):
    (tmp_path / "ledger").mkdir()
    for attempt in range(1, 101):
        lines = [{"time": 1e9 + 1e5 * attempt, "event": "start", "step": 200 * attempt, "spent": {}}]
        lines += [{"time": 1e9 + 1e5 * attempt + 60 * n, "event": "steps", "step": 200 * attempt + n,
                   "spent": {"step": 55.0, "data": 5.0}} for n in range(1, 200)]  # fmt: skip
        lines += [{"time": 1e9 + 1e5 * attempt + 2e4, "event": "fault", "step": 0, "message": "x" * 5000}]
        (tmp_path / "ledger" / f"{attempt}-0.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    names = [f"train/{name}" for name in ("loss", "gradient_norm", *map(str, range(20)))]
    rows = ({"step": step, **{name: math.sin(step) for name in names}} for step in range(1, 4_001))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert write_report(tmp_path).stat().st_size < 1_000_000


def test_a_chart_keeps_its_spikes_and_breaks_where_a_value_is_missing():
    points = [(float(x), 1.0) for x in range(5000)]
    points[2500], points[4000] = (2500.0, 9.0), (4000.0, math.nan)
    kept = thinned(points)
    assert len(kept) <= POINTS + 1 and (2500.0, 9.0) in kept and math.isnan(dict(kept)[4000.0])
    drawn = chart([Line("", points, "red")], "step", "loss", (0, 10))
    assert drawn.count("<polyline") == 2
    assert chart([Line("", [(1.0, math.nan)], "red")], "step", "loss", (0, 1)) == ""
    assert "<circle" in chart([Line("", [(1.0, 2.0)], "red")], "step", "one point", (0, 1))


def test_a_report_loads_neither_jax_nor_matplotlib(tmp_path):
    program = f"import sys; from t5x_like.cli.main import main; main(['report', {str(make(tmp_path / 'run'))!r}])"
    program += "; print({'jax', 'matplotlib', 'orbax'} & set(sys.modules))"
    assert "set()" in subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout
