"""When something is done: by steps, by shares of the run, at its end."""

from __future__ import annotations

import pytest

from t5x_like.checkpoint.config import CheckpointConfig
from t5x_like.core.config import override
from t5x_like.core.errors import UserError
from t5x_like.core.every import Every


def times(when: Every, total: int = 10) -> list[int]:
    return [step for step in range(total + 1) if when.due(step, total)]


def test_due():
    assert times(Every()) == [10]
    assert times(Every(end=False)) == []
    assert times(Every(steps=4)) == [4, 8, 10]
    assert times(Every(steps=4, end=False)) == [4, 8]
    assert times(Every(steps=5, end=False)) == [5, 10]
    assert times(Every(share=0.25), 8) == [2, 4, 6, 8]
    assert times(Every(share=0.25, end=False)) == [2, 4, 6, 8, 10]  # 2.5 is rounded to 2
    assert times(Every(share=0.001), 3) == [1, 2, 3]
    assert times(Every(share=1.0)) == [10]


@pytest.mark.parametrize(
    "wrong, named",
    [(dict(steps=-1), "steps: got -1"), (dict(share=1.5), "share: got 1.5"), (dict(steps=2, share=0.5), "beside")],
)
def test_mistakes(wrong, named):
    with pytest.raises(UserError, match=named):
        Every(**wrong)


def test_a_number_alone_is_steps():
    assert CheckpointConfig(every=7) == CheckpointConfig(every=Every(steps=7))  # type: ignore[arg-type]
    assert override(CheckpointConfig(), ["every=500"]).every == Every(steps=500)
    assert override(CheckpointConfig(), ["every=Every", "every.share=0.5"]).every == Every(share=0.5)
    for wrong in ("-1", "1.5", "often"):
        with pytest.raises(UserError, match=r"every: got .*\n  allowed: a whole number.* or the fields of Every"):
            override(CheckpointConfig(), [f"every={wrong}"])
