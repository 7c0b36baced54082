"""Whole runs whose loss and gradient are finite and whose update or state is not stop, and keep what was finite."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_runs import checkpoint, saved_steps, tiny_run

from t5x_like.config import Optax, OptimizerConfig
from t5x_like.train.loop import TooManySkipped
from t5x_like.train.run import train


@dataclasses.dataclass(frozen=True)
class BrokenAtThird(OptimizerConfig):
    """Plain descent; at the third update one number of ``what`` is NaN, in a row of the embedding that no token has."""

    what: str = "state"

    def transformation(self, context):
        def update(updates, state, params=None):
            broken = jnp.where(state["count"] == 2, jnp.nan, 0.0)
            table = updates["token_embedding"]["table"]
            wrong = {**updates, "token_embedding": {"table": table.at[0, 0].add(broken)}}
            mean = wrong if self.what == "state" else updates
            return updates if self.what == "state" else wrong, {"count": state["count"] + 1, "mean": mean}

        init = lambda params: {"count": jnp.int32(0), "mean": jax.tree.map(jnp.zeros_like, params)}  # noqa: E731
        return context.descend(optax.GradientTransformation(init, update))


def strict_run():
    return tiny_run("llama", "train.skipped_in_a_row=1")


@pytest.mark.parametrize("what", ["state", "update"])
def test_a_run_stops_at_the_step_whose_update_or_state_is_not_finite(tmp_path, what):
    run = dataclasses.replace(strict_run(), optimizer=BrokenAtThird(learning_rate=1e-3, what=what))
    with pytest.raises(TooManySkipped, match="step 3: the update or the optimizer's state is not finite"):
        train(run, tmp_path)
    assert saved_steps(tmp_path) == [2]
    for path, array in checkpoint(tmp_path).items():
        assert np.isfinite(array.astype(np.float64)).all(), path


def test_a_run_whose_first_update_cannot_be_made_does_not_end_well(tmp_path):
    optimizer = Optax(name="adam", arguments=("eps=0.0",))  # 0 / 0 for unused rows
    run = dataclasses.replace(strict_run(), optimizer=optimizer)
    with pytest.raises(TooManySkipped, match="step 1: "):
        train(run, tmp_path)
    assert saved_steps(tmp_path) in ([], [0])
