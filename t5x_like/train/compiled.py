"""The steps of ``step.py``, compiled for one placement."""

from __future__ import annotations

from collections.abc import Callable

import jax

from t5x_like.sharding.mesh import Placement, use
from t5x_like.train.state import Setup
from t5x_like.train.step import evaluation_step, train_step


def compile_steps(setup: Setup, placement: Placement) -> tuple[Callable, Callable]:
    """(train step: state, batch; evaluation step: params, total, batch). Each is compiled at its first call; state and
    total are donated."""

    def placed(function: Callable, donate: int) -> Callable:
        def call(*arguments):
            with use(placement):  # read while tracing, by ``constrain``
                return function(setup.parts, *arguments)

        return jax.jit(call, donate_argnums=donate)

    return placed(train_step, 0), placed(evaluation_step, 1)
