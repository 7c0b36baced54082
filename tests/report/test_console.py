"""What is shown in a pipe and on a terminal, and when."""

from __future__ import annotations

import io
import math
import time

import pytest

from t5x_like.core.text import duration, short
from t5x_like.report.clock import Clock, Share, account_table
from t5x_like.report.console import Console


class Time:
    """A clock that only moves when told to."""

    def __init__(self):
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def pipe(total: int = 1000, **options) -> tuple[Console, io.StringIO, Time]:
    out, time = io.StringIO(), Time()
    return Console(total, out=out, now=time, **options), out, time


FULL = (120, 4.3121, 18_234.0, 0.431, "roofline", 3e-3, 130.0, 100)


def test_a_plain_line():
    console, out, _ = pipe()
    console.progress(*FULL)
    assert out.getvalue() == ("  120/1,000   12%  loss 4.312  18.2k tokens/s  roofline 43%  lr 3.00e-03   2m10s left  "
                              "saved 100\n")


def test_statistics_that_a_loss_names_are_shown():
    console, out, _ = pipe()
    console.progress(120, 4.3121, statistics={"future_loss": 5.25})
    assert out.getvalue() == "  120/1,000   12%  loss 4.312  future_loss 5.25\n"


def test_what_is_not_known_is_left_out():
    console, out, _ = pipe()
    console.progress(1)
    assert out.getvalue() == "    1/1,000    0%\n"


def test_plain_lines_come_at_growing_intervals_and_the_last_one_always():
    console, out, time = pipe(total=10_000)
    shown = []
    for step in range(1, 10_001):
        time.seconds += 0.5
        before = len(out.getvalue())
        console.progress(step)
        if len(out.getvalue()) > before:
            shown.append(step)
    gaps = [(b - a) * 0.5 for a, b in zip(shown, shown[1:], strict=False)]
    assert gaps[0] == 1.0 and max(gaps) <= 60.0 and gaps[-2] == 60.0
    assert all(a <= b for a, b in zip(gaps[:-1], gaps[1:-1], strict=False))
    assert shown[0] == 1 and shown[-1] == 10_000
    assert "\r" not in out.getvalue() and "\x1b" not in out.getvalue()


def test_the_loss_is_smoothed_but_one_that_is_not_finite_is_shown():
    console, out, time = pipe()
    for step, loss in enumerate([4.0, 4.0, 8.0, math.nan, 4.0], start=1):
        console.progress(step, loss=loss)
        time.seconds += 60
    shown = [line.split("loss ")[1] for line in out.getvalue().splitlines()]
    assert shown[:2] == ["4.000", "4.000"] and 4 < float(shown[2]) < 8
    assert shown[3] == "nan" and float(shown[4]) < float(shown[2])


def test_opening_evaluation_note_and_summary_in_a_pipe():
    console, out, time = pipe()
    console.facts("tiny", {"model": "encoder-decoder", "gradients": "", "directory": "runs/tiny"})
    console.evaluation(100, {"held_out/loss": 3.14159})
    console.note("restored step 40")
    clock = Clock(time)
    with clock.doing("step"):
        time.seconds += 8
    with clock.doing("evaluate"):
        time.seconds += 2
    console.summary("complete", {"curves": "runs/tiny/curves.png"}, clock.account())
    text = out.getvalue()
    for part in ("tiny\n  model      encoder-decoder\n  directory  runs/tiny\n", "100/1,000  held_out/loss 3.1416",
                 "restored step 40", "complete\n", "runs/tiny/curves.png", "training steps", "80.0%"):
        assert part in text, part
    assert "\x1b" not in text and "\r" not in text


def test_other_processes_are_silent():
    console, out, _ = pipe(process_index=1, live=True)
    console.facts("tiny", {"model": "m"})
    console.progress(*FULL)
    console.evaluation(1, {"held_out/loss": 1.0})
    console.summary("complete", {"a": "b"})
    assert out.getvalue() == ""


@pytest.mark.parametrize("columns", [200, 100, 60, 30])
def test_a_live_line_fits_its_terminal(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("LINES", "25")
    monkeypatch.delenv("NO_COLOR", raising=False)
    console, out, time = pipe(live=True)
    for step in range(10, 1001, 10):
        console.progress(step, 4.0, 18_234.0, 0.43, "roofline", 3e-3, 100.0, 100)
        time.seconds += 1
    console.evaluation(1000, {"held_out/loss": 3.0})
    console.close()
    console.close()
    text = out.getvalue()
    assert "\x1b[?25l" in text and text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is given back
    assert "1,000/1,000" in text and ("▸ 1,000/1,000  held_out/loss 3.0000" in text or columns < 36)
    assert ("saved" in text) == (columns >= 100) and ("━" in text) == (columns >= 60)
    assert "…" not in text and "[bold]" not in text
    assert text.count("\n") < 5  # in place: one line for each thing that stays


def test_live_lines_are_not_drawn_faster_than_they_are_seen(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    console, out, time = pipe(live=True)
    for step in range(1, 101):
        console.progress(step)
        time.seconds += 0.01
    assert out.getvalue().count("/1,000") <= 12
    console.close()


@pytest.mark.parametrize(
    "number, text",
    [(0, "0"), (0.5, "0.5"), (99.4, "99.4"), (99.7, "100"), (950, "950"), (999.7, "1k"), (1000, "1k"),
     (18_234, "18.2k"), (99_960, "100k"), (999_960, "1M"), (76_961_152, "77M"), (2_849_757_184, "2.85B"),
     (1.2e15, "1200T")],
)
def test_short_numbers(number, text):
    assert short(number) == text


@pytest.mark.parametrize(
    "seconds, text", [(0.4, "0s"), (59.4, "59s"), (59.6, "1m00s"), (130, "2m10s"), (3600, "1h00m"), (11_100, "3h05m"),
                      (1_051_200, "12d04h"), (-3, "0s")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize("live", [True, False])
def test_what_takes_long_says_so_while_it_does(live, monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    console, out, _ = pipe(live=live)
    for name in ("PLAIN_WAITS", "LIVE_WAITS"):
        monkeypatch.setattr(f"t5x_like.report.live.{name}", (0.01,))
    deadline = time.monotonic() + 10
    with console.doing("compiling the train step"):
        while out.getvalue().count("compiling the train step  0s") < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    console.close()
    assert out.getvalue().count("compiling the train step  0s") >= 3
    other, silent, _ = pipe(process_index=1)
    with other.doing("compiling"):
        pass
    assert silent.getvalue() == ""


@pytest.mark.parametrize("columns", [30, 50, 80])
def test_where_the_time_went_fits_the_terminal(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    account = [Share("step", 100.0, 0.8), Share("setup", 25.0, 0.2)]
    lines = account_table(account, columns).splitlines()
    assert all(len(line) <= max(columns, 44) for line in lines) and "start, before the first step" in lines[1]
    assert ("█" in lines[0]) == (columns >= 50)
