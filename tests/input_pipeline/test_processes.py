"""Work done ahead of time: in order, by threads or processes, whose errors and ends are told; none of them has JAX."""

import itertools
import os
import signal
import sys
import time

import pytest

from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.processes import done_ahead, team


def slow_square(task: int) -> int:
    time.sleep(0.02 * (task % 3 == 0))
    return task * task


def fail(task: int) -> int:
    if task == 3:
        raise UserError("field", "got", "allowed")
    return 1 // (task - 5)


def modules(task: str, report) -> set[str]:
    import t5x_like.config
    import t5x_like.input_pipeline.batches.pipeline
    import t5x_like.input_pipeline.prepare.prepare

    assert t5x_like.config.UL2().streams()
    report(task)
    return set(sys.modules)


def kill(task: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("by", [{}, {"threads": 2}, {"processes": 2}])
def test_results_come_in_order_from_an_endless_iterator(by):
    found = done_ahead(slow_square, itertools.count(), ahead=3, **by)
    assert list(itertools.islice(found, 20)) == [n * n for n in range(20)]
    found.close() if hasattr(found, "close") else None
    assert list(done_ahead(slow_square, range(5), ahead=9, **by)) == [0, 1, 4, 9, 16]


@pytest.mark.parametrize("by", [{}, {"threads": 1}, {"processes": 1}])
def test_errors_come_at_their_turn(by):
    found = done_ahead(fail, itertools.count(), ahead=8, **by)
    assert [next(found) for _ in range(3)] == [-1, -1, -1]
    with pytest.raises(UserError, match="field: got"):
        next(found)
    with pytest.raises((ZeroDivisionError, RuntimeError), match=r"division|Traceback"):
        list(done_ahead(fail, [5], **by))


def test_a_process_that_is_killed_is_told():
    with pytest.raises(UserError, match=r"(?s)data\.worker_processes.*signal SIGKILL"):
        list(done_ahead(kill, [1], processes=1))


def test_a_worker_process_has_no_accelerator():
    said = []
    with team(modules, 1, "field", "task") as submit:
        loaded = submit("here", said.append).result()
    assert said == ["here"] and "numpy" in loaded
    assert not {"jax", "jaxlib", "flax", "orbax", "rich", "tensorflow"} & loaded
