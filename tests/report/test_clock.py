"""The clock: every second is in one place, and pauses do not count as speed."""

from __future__ import annotations

import pytest

from t5x_like.report.clock import Clock, account_table


class Time:
    def __init__(self):
        self.seconds = 50.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def time() -> Time:
    return Time()


def spend(clock: Clock, time: Time, activity, seconds: float) -> None:
    with clock.doing(activity):
        time.seconds += seconds


def test_every_second_is_in_one_place(time):
    clock = Clock(time)
    time.seconds += 3  # setup
    spend(clock, time, "compile", 7)
    clock.start()
    time.seconds += 1  # other
    with clock.doing("step"):
        time.seconds += 10
        spend(clock, time, "data", 2)  # pauses the step
        time.seconds += 5
    rows = {row.activity: row.seconds for row in clock.account()}
    assert rows == {"setup": 3, "compile": 7, "other": 1, "step": 15, "data": 2}
    assert sum(rows.values()) == 28
    assert sum(row.share for row in clock.account()) == pytest.approx(1)
    assert clock.account()[0].activity == "step" and clock.account()[0].share == pytest.approx(15 / 28)
    assert "training steps" in account_table(clock.account()).splitlines()[0]


def test_an_error_inside_leaves_the_clock_right(time):
    clock = Clock(time)
    clock.start()
    with pytest.raises(RuntimeError), clock.doing("evaluate"):
        time.seconds += 4
        raise RuntimeError
    time.seconds += 1
    assert {row.activity: row.seconds for row in clock.account()} == {"evaluate": 4, "other": 1}


def test_speed_leaves_out_pauses_and_the_first_steps(time):
    clock = Clock(time)
    clock.start()
    assert clock.seconds_per_step() is None and clock.seconds_left(5) is None
    spend(clock, time, "compile", 60)
    spend(clock, time, "step", 9)  # slow first step
    clock.stepped(1)
    for _ in range(4):
        spend(clock, time, "step", 1.5)
        spend(clock, time, "data", 0.5)
        spend(clock, time, "evaluate", 30)
        clock.stepped(2)
    assert clock.seconds_per_step() == pytest.approx(1.0)


def test_the_speed_is_the_present_one(time):
    clock = Clock(time, window=5)
    clock.start()
    for seconds in [1.0] * 50 + [4.0] * 6:
        spend(clock, time, "step", seconds)
        clock.stepped()
    assert clock.seconds_per_step() == pytest.approx(4.0)


def test_time_left_includes_the_pauses_to_come(time):
    clock = Clock(time)
    clock.start()
    spend(clock, time, "evaluate", 1000)  # once, before the first step: not to be expected again
    clock.stepped()
    for step in range(1, 31):
        spend(clock, time, "step", 1)
        clock.stepped()
        if step % 10 == 0:
            spend(clock, time, "evaluate", 5)
    assert clock.seconds_left(100) == pytest.approx(150)
    spend(clock, time, "step", 1)
    clock.stepped()
    assert clock.seconds_left(100) == pytest.approx(150)  # steady between pauses
    assert clock.seconds_left(0) == 0
