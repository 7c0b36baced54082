"""The ledger: what is written is read, whatever tears a line or fills the disk."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal

import pytest

from t5x_like.report import ledger as module
from t5x_like.report.clock import Clock
from t5x_like.report.ledger import Ledger, next_attempt, read_ledger, read_starts


class Time:
    def __init__(self):
        self.seconds = 1000.0

    def __call__(self) -> float:
        self.seconds += 0.5
        return self.seconds


def events(directory, **chosen) -> list[tuple]:
    names = ("attempt", "process", "event", "step")
    return [tuple(line[name] for name in names) for line in read_ledger(directory, **chosen)]


def test_the_files_of_all_processes_and_attempts_are_one_record(tmp_path):
    now = Time()
    assert next_attempt(tmp_path) == 1 and read_ledger(tmp_path) == []
    first, second = (Ledger(tmp_path, 1, process, now=now) for process in (0, 1))
    assert not list(tmp_path.iterdir())  # a start that is refused leaves nothing
    first.add("start", 0, config={"rate": 1e-3})
    second.add("start", 0, host="b")
    second.add("save", 5)
    assert next_attempt(tmp_path) == 2
    Ledger(tmp_path, 2, 0, now=now).add("start", 5, odd=float("nan"), path=tmp_path)
    assert events(tmp_path) == [(1, 0, "start", 0), (1, 1, "start", 0), (1, 1, "save", 5), (2, 0, "start", 5)]
    assert events(tmp_path, event="save") == [(1, 1, "save", 5)]
    one, other = read_starts(tmp_path)
    assert one["config"] == {"rate": 1e-3} and other["odd"] == "nan" and other["path"] == str(tmp_path)
    json.loads((tmp_path / "ledger" / "2-0.jsonl").read_text(), parse_constant=pytest.fail)  # JSON, for any reader


@pytest.mark.parametrize("cut", [1, 2, 10, 40])
def test_a_torn_last_line_costs_itself_only(tmp_path, cut):
    Ledger(tmp_path).add("start", 0)
    Ledger(tmp_path).add("save", 5)
    path = tmp_path / "ledger" / "1-0.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    Ledger(tmp_path).add("end", 6)
    found = [line["event"] for line in read_ledger(tmp_path)]
    assert found == (["start", "save", "end"] if cut == 1 else ["start", "end"])


def test_what_is_no_line_of_a_ledger_is_left_out(tmp_path):
    (tmp_path / "ledger").mkdir()
    lines = ['{"time": 1, "event": "end", "step": 2, "spent": {"step": "x", "data": 1e999, "other": 1}}', "[]", "null",
             '{"time": "x", "event": "end"}', '{"time": 1, "event": 2}', '{"time": 1, "event": "end", "step": "x"}',
             "[" * 100_000, "1" * 5000, "\x00\xff"]  # fmt: skip
    (tmp_path / "ledger" / "1-0.jsonl").write_text("\n".join(lines))
    (tmp_path / "ledger" / "note-of-mine.jsonl").write_text(lines[0])
    (found,) = read_ledger(tmp_path)
    assert found["step"] == 2 and found["spent"] == {"other": 1.0}


def test_a_full_disk_is_said_once_and_its_lines_are_written_later(tmp_path, capsys):
    """A limit of the file's size stands for the disk: the first bytes of a line have room, the rest has not."""
    made = Ledger(tmp_path)
    made.add("start", 0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (made.path.stat().st_size + 7, before[1]))
    try:
        made.add("save", 1)
        made.add("save", 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert [line["event"] for line in read_ledger(tmp_path)] == ["start"]
    made.add("end", 3)
    assert [line["step"] for line in read_ledger(tmp_path)] == [0, 1, 2, 3]
    assert capsys.readouterr().err.count("cannot be written") == 1


def test_a_folder_that_cannot_be_made_ends_nothing(tmp_path, capsys):
    (tmp_path / "ledger").write_text("a file")
    made = Ledger(tmp_path)
    for step in range(3):
        made.add("save", step)
    assert capsys.readouterr().err.count(os.strerror(errno.EEXIST)) == 1


def test_what_is_raised_is_a_fault_and_passes(tmp_path):
    made = Ledger(tmp_path)
    made.stepped(7)
    with pytest.raises(ZeroDivisionError), made.faults():
        1 / 0  # noqa: B018
    (fault,) = read_ledger(tmp_path)
    assert (fault["step"], fault["kind"], fault["message"]) == (7, "ZeroDivisionError", "division by zero")


def test_spent_adds_up_and_steps_are_told_at_times(tmp_path, monkeypatch):
    seconds = [0.0]
    clock = Clock(lambda: seconds[0])
    monkeypatch.setattr(module.time, "monotonic", lambda: seconds[0])
    made = Ledger(tmp_path, lap=clock.lap)
    clock.start()
    for step in range(1, 10_001):
        with clock.doing("step"):
            seconds[0] += 0.3
        seconds[0] += 0.0300001  # a rounding of each line would lose it
        made.stepped(step)
    made.add("end", step)
    found = read_ledger(tmp_path)
    assert sum(line["spent"]["step"] for line in found) == pytest.approx(3000, abs=1e-3)
    assert sum(sum(line["spent"].values()) for line in found) == pytest.approx(seconds[0], abs=1e-3)
    assert [line["step"] for line in found[:2]] == [4, 8] and 250 < len(found) < 500  # each second, then 1% of the time


def test_a_ledger_without_a_folder_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Ledger().add("start", 0)
    assert not list(tmp_path.iterdir())
