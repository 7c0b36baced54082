"""What is shown of the preparation of a corpus, in a pipe and on a terminal."""

from __future__ import annotations

import io

import pytest

from t5x_like.input_pipeline.prepare.progress import Progress, Tally
from t5x_like.report.preparing import Preparing


class Time:
    """A clock that only moves when told to."""

    def __init__(self):
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def pipe(**options) -> tuple[Preparing, io.StringIO, Time]:
    out, time = io.StringIO(), Time()
    return Preparing(out, now=time, **options), out, time


def test_plain_lines():
    shown, out, time = pipe()
    shown(Progress(0, 0, 0, 8_000_000, 0, "tokenizing", "texts"))
    time.seconds += 2
    shown(Progress(10, 700_000, 2_000_000, 8_000_000, 0, "tokenizing", "texts"))
    time.seconds += 6
    shown(Progress(40, 2_800_000, 8_000_000, 8_000_000, 0, "merging", "texts"))
    assert out.getvalue().splitlines() == [
        "preparing texts:    0%  0 documents  0 tokens",
        "preparing texts:   25%  10 documents  700k tokens  1.0 MB/s  6s left",
        "preparing texts:  100%  40 documents  2.8M tokens  merging",
    ]


def test_what_an_earlier_process_did_is_no_speed():
    shown, out, time = pipe()
    shown(Progress(5, 100, 6_000_000, 8_000_000, 6_000_000, "tokenizing", "texts"))
    time.seconds += 1
    shown(Progress(6, 200, 7_000_000, 8_000_000, 6_000_000, "tokenizing", "texts"))
    assert "1.0 MB/s  1s left  (resuming from 75%)" in out.getvalue().splitlines()[1]


def test_without_a_known_size():
    shown, out, time = pipe()
    shown(Progress(5, 100, name="made up"))
    assert out.getvalue() == "preparing made up:  5 documents  100 tokens\n"


def test_waiting_does_not_count_as_time():
    shown, out, time = pipe()
    shown(Progress(0, 0, 0, 0, 0, "waiting", "texts"))
    time.seconds += 1000
    shown(Progress(0, 0, 0, 4_000_000, 0, "tokenizing", "texts"))
    time.seconds += 2
    shown(Progress(1, 2, 2_000_000, 4_000_000, 0, "tokenizing", "texts"))
    first, _, last = out.getvalue().splitlines()
    assert first == "preparing texts: waiting for another process that does it" and last.endswith("1.0 MB/s  2s left")


def test_lines_come_at_growing_intervals():
    shown, out, time = pipe()
    for number in range(20_000):
        shown(Progress(number, number, number, 20_000, 0, "tokenizing", "texts"))
        time.seconds += 0.2
    assert 40 < len(out.getvalue().splitlines()) < 110


@pytest.mark.parametrize("live", [True, False])
def test_a_note_is_shown_once(live):
    shown, out, time = pipe(live=live)
    with shown:
        for done in range(3):
            shown(Progress(1, 2, done, 3, 0, "tokenizing", "texts", "remove the old one"))
            time.seconds += 10
    assert out.getvalue().startswith("preparing texts: remove the old one\n")
    assert out.getvalue().count("the old one") == 1


def test_one_corpus_after_the_other():
    shown, out, _ = pipe()
    for name in ("one", "two"):
        shown(Progress(1, 1, 1, 2, 0, "tokenizing", name))
    assert [line.split()[1] for line in out.getvalue().splitlines()] == ["one:", "two:"]


@pytest.mark.parametrize("columns", [50, 80, 120])
def test_a_terminal_has_one_line_that_changes(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    shown, out, time = pipe(live=True)
    with shown:
        for done in range(0, 100_000_001, 9_999_999):
            shown(Progress(done // 10_000, done, done, 100_000_000, 0, "tokenizing", "texts"))
            time.seconds += 1
    text = out.getvalue()
    assert text.count("\n") < 5 and "\x1b" in text and "\u2501" in text, "one line, with a bar"
    assert "5s left" in text and "\u2026" not in text, "what matters is not cut off"
    assert ("100M tokens" in text) == (columns > 50)
    assert ("9,999 documents" in text) == (columns == 120)


def test_a_silent_one_shows_nothing_but_keeps_the_last():
    shown, out, _ = pipe(silent=True)
    shown(Progress(1, 2))
    assert out.getvalue() == "" and shown.last == Progress(1, 2)


def test_a_tally_adds_up_and_does_not_speak_all_the_time():
    seen = []
    tally = Tally("texts", seen.append)
    tally.expect(100)
    tally.resume(0, 5, 50, 30)
    for done in range(1000):
        tally.advance(1, done, 2 * done, min(done, 70))
    tally.say("merging")
    assert len(seen) < 20
    assert seen[-1] == Progress(5 + 999, 50 + 1998, 100, 100, 30, "merging", "texts")
