"""The loop alone, with a step that only records: in which order it dispatches and reads, and what it does when a step
was not finite or somebody asks it to stop."""

from __future__ import annotations

import contextlib
import dataclasses

import jax.numpy as jnp
import pytest
from tiny_runs import tiny_run

from t5x_like.core.every import Every
from t5x_like.report.ledger import Ledger
from t5x_like.train.hooks import Measure
from t5x_like.train.loop import Costs, Loop, TooManySkipped


class Metric:
    """A scalar on a device: whoever makes a number of it waits for its step."""

    def __init__(self, step: int, value: float, events: list):
        self.step, self.value, self.events = step, value, events

    def __float__(self) -> float:
        if self.events[-1] != ("read", self.step):
            self.events.append(("read", self.step))
        return self.value


@dataclasses.dataclass
class Recorder:
    """Everything that a loop calls, as lines of one record."""

    bad: int = 0  # the step that is not finite
    stop_after: int = 10**9
    events: list = dataclasses.field(default_factory=list)
    logged: list = dataclasses.field(default_factory=list)
    found: dict = dataclasses.field(default_factory=lambda: {"loss": 1.0, "perplexity": 2.7, "accuracy": 0.5})
    exit_code: int = 75
    name: str = "held_out"
    ledger: Ledger = dataclasses.field(default_factory=Ledger)

    def step(self, state, batch):
        number = batch + 1
        self.events.append(("dispatch", number))
        values = dict(loss=(6.0, 2.0), own=(3.0, 12.0), gradient_norm=(1.0, 1.0), learning_rate=(0.1, 1.0))
        good = float(number != self.bad)
        values |= {"finite": (good, 1.0), "made": (good, 1.0), "halted": (1 - good, 1.0), "skipped": (1 - good, 1.0)}
        halted = state["halted"] | (number == self.bad)
        metrics = {name: [Metric(number, v, self.events) for v in pair] for name, pair in values.items()}
        return state | {"step": number, "halted": halted}, metrics

    # checkpoints
    def save(self, step, state, metadata, loss=None):
        self.events.append(("save", step))
        self.saved = state, metadata

    def check(self):
        self.events.append(("check", 0))

    def wait(self):
        self.events.append(("wait", 0))

    def latest(self):
        return None

    # stop
    def wanted(self, step):
        return step >= self.stop_after

    # reporter
    def log(self, step, row):
        self.logged.append((step, row))

    # evaluation
    def at(self, step, state):
        return self

    def label(self, opened):
        return self.name

    def run(self, opened):
        self.events.append(("evaluate", 0))
        return self.found


class Silent:
    """A console and a clock that do nothing."""

    def __getattr__(self, name):
        return lambda *arguments: None

    def doing(self, activity):
        return contextlib.nullcontext()


def loop_of(recorder: Recorder, steps: int, every: int = 0, evaluate_every: int = 0) -> Loop:
    run = tiny_run("llama", f"train.steps={steps}", f"train.evaluate_every.steps={evaluate_every}",
                   f"checkpoint.every.steps={every}")  # fmt: skip

    class EveryStep:
        log, due = staticmethod(recorder.log), staticmethod(lambda step: True)

    class Stopping:
        wanted, check = staticmethod(recorder.wanted), staticmethod(lambda: None)

    hook = Measure(recorder, Every(evaluate_every), recorder, EveryStep(), Silent(), Silent())
    return Loop(
        run=run, step=recorder.step, hooks=[hook], checkpoints=recorder, reporter=EveryStep(),
        console=Silent(), clock=Silent(), stop=Stopping(), metadata=lambda step: {"data": step},
        data_metrics=lambda step: {}, costs=Costs(10, 1.0),
    )  # fmt: skip


def run(recorder: Recorder, steps: int, first: int = 0, every: int = 0, evaluate_every: int = 0):
    """(state, updates made); batch n is the number n."""
    state = {"params": None, "step": first, "halted": jnp.zeros((), bool)}
    return loop_of(recorder, steps, every, evaluate_every)(state, first, iter(range(first, 100)))


def test_rows_are_means_over_their_steps_also_of_a_run_that_was_stopped():
    """Sums and weights of the steps are added, and divided once; the learning rate is the last."""

    @dataclasses.dataclass
    class Rising(Recorder):
        def step(self, state, batch):
            state, metrics = super().step(state, batch)
            n = batch + 1
            metrics["loss"] = [Metric(n, float(value), self.events) for value in (n * n, n)]
            metrics["learning_rate"] = [Metric(n, value, self.events) for value in (n / 8, 1.0)]
            return state, metrics

    def rows(recorder: Recorder, first: int, totals: dict, **options) -> dict[int, dict]:
        loop = loop_of(recorder, 7, **options)
        loop.reporter, loop.totals = EveryThird(recorder), totals
        loop({"params": None, "step": first, "halted": jnp.zeros((), bool)}, first, iter(range(first, 100)))
        return {step: row for step, row in recorder.logged if "train/loss" in row}

    class EveryThird:
        def __init__(self, recorder):
            self.log = recorder.log

        def due(self, step):
            return step % 3 == 0

    straight = rows(Rising(), 0, {})
    assert [(step, row["train/loss"]) for step, row in straight.items()] == [(3, 14 / 6), (6, 77 / 15), (7, 7.0)]
    assert [row["train/targets"] for row in straight.values()] == [2.0, 5.0, 7.0]
    assert [row["train/learning_rate"] for row in straight.values()] == [3 / 8, 6 / 8, 7 / 8]
    stopped = Rising(stop_after=5)
    before = rows(stopped, 0, {})
    resumed = rows(Rising(), 5, stopped.saved[1]["totals"])
    assert before | resumed == straight


def moves(recorder: Recorder, *kinds: str) -> list:
    return [event for event in recorder.events if event[0] in kinds]


def test_metrics_of_a_step_are_read_only_after_the_next_was_dispatched():
    recorder = Recorder()
    _, done = run(recorder, 5)
    assert done == 5
    assert moves(recorder, "dispatch", "read") == [
        ("dispatch", 1), ("dispatch", 2), ("read", 1), ("dispatch", 3), ("read", 2), ("dispatch", 4), ("read", 3),
        ("dispatch", 5), ("read", 4), ("read", 5),
    ]  # fmt: skip
    assert len(moves(recorder, "check")) == 5  # a failed save is told of at the next step
    trained = [(step, row["train/loss"]) for step, row in recorder.logged if "train/loss" in row]
    assert trained == [(step, 3.0) for step in range(1, 6)]  # a sum of 6 over a weight of 2
    assert all(row["train/own"] == 0.25 and row["train/targets"] == 2.0 for _, row in recorder.logged[:5])


def test_what_is_saved_and_measured_when():
    recorder = Recorder()
    run(recorder, 6, first=1, every=2, evaluate_every=3)
    assert moves(recorder, "dispatch", "save", "evaluate") == [
        ("dispatch", 2), ("save", 2), ("dispatch", 3), ("evaluate", 0), ("dispatch", 4), ("save", 4), ("dispatch", 5),
        ("dispatch", 6), ("save", 6), ("evaluate", 0),
    ]  # fmt: skip
    assert recorder.events[-1] == ("wait", 0)  # nothing is left half written
    assert recorder.saved[1] == {"data": 6}
    assert [step for step, row in recorder.logged if "held_out/loss" in row] == [3, 6]


@pytest.mark.parametrize("every, evaluate_every", [(0, 0), (5, 0), (6, 0), (0, 5), (0, 6), (1, 1)])
def test_a_step_that_is_not_finite_is_named_and_the_state_before_it_saved(every, evaluate_every):
    recorder = Recorder(bad=5)
    with pytest.raises(TooManySkipped) as raised:
        run(recorder, 9, every=every, evaluate_every=evaluate_every)
    assert raised.value.step == 5 and str(raised.value).startswith("step 5: ")
    assert moves(recorder, "dispatch")[-1][1] <= 6  # the loop learns of it one step later
    assert moves(recorder, "save")[-1] == ("save", 4)
    assert recorder.saved[1] == {"data": 4}
    assert not recorder.saved[0]["halted"]  # ready to go on
    assert recorder.events[-1] == ("wait", 0)
    assert {step for step, row in recorder.logged if "train/loss" in row} == {1, 2, 3, 4}
    assert all(step < 5 for step, _ in recorder.logged)


def test_the_last_step_may_be_the_bad_one():
    recorder = Recorder(bad=5)
    with pytest.raises(TooManySkipped, match="step 5"):
        run(recorder, 5)
    assert moves(recorder, "save", "evaluate") == [("save", 4)]


def test_asked_to_stop_it_saves_where_it_is_and_does_not_measure():
    recorder = Recorder(stop_after=3)
    _, done = run(recorder, 9)
    assert done == 3
    assert moves(recorder, "dispatch", "read")[-3:] == [("dispatch", 3), ("read", 2), ("read", 3)]
    assert moves(recorder, "save", "evaluate") == [("save", 3)]


def test_with_nothing_held_out_it_measures_nothing():
    recorder = Recorder(found={})
    _, done = run(recorder, 2, evaluate_every=1)
    assert done == 2 and not any("held_out" in name for _, row in recorder.logged for name in row)
