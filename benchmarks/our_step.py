"""The train step of a ``Run`` as a user of t5x_like has it: setup, compiled step, feed. Only reading text is left out.

Imports nothing that reads text, so that it works where only jax, flax and optax are installed.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import sizes

from t5x_like.arrays.trees import flatten, unflatten
from t5x_like.config import AdamW, Bytes, Corpus, DataConfig, Run, TextFiles
from t5x_like.sharding.mesh import make_placement
from t5x_like.train.feed import local_share, to_devices
from t5x_like.train.setup import make_setup
from t5x_like.train.step import compile_step

Rows = dict[str, np.ndarray]


def no_text(input_length: int) -> DataConfig:
    """The data of a run whose corpus is never opened."""
    corpus = Corpus("benchmark", TextFiles(("unused.txt",)), Bytes(), licence="none", origin="random tokens")
    return DataConfig(corpus, input_length=input_length)


def optimizer() -> AdamW:
    """That of every contender of ``step.py``."""
    return AdamW(
        learning_rate=sizes.LEARNING_RATE, b1=sizes.BETA_1, b2=sizes.BETA_2, eps=sizes.EPSILON,
        weight_decay=sizes.WEIGHT_DECAY, clip_norm=sizes.CLIP_NORM, no_decay=(),
    )  # fmt: skip


class OurStep:
    """A run's state, and its step on rows that the caller has."""

    def __init__(self, run: Run):
        self.run = run
        self.placement = make_placement(run.mesh)
        self.setup = make_setup(run)
        self.share = local_share(self.placement, run.train.batch_size)
        self.compiled: Any = compile_step(self.setup, self.placement)
        self.state: Any = self.setup.initial_state(self.placement, run.train.seed)

    def batch(self, rows: Rows) -> dict[str, jax.Array]:
        """The batch on the device, as the feed puts it there."""
        return to_devices(self.placement, rows, self.share)

    def step(self, rows: Rows) -> jax.Array:
        """One update, dispatched; its mean loss, which ``float`` waits for."""
        self.state, metrics = self.compiled(self.state, self.batch(rows))
        loss, weight = metrics["loss"]
        return loss / weight

    def parameters(self) -> dict[str, Any]:
        """The parameters as nested dicts of numpy arrays."""
        return jax.tree.map(np.asarray, self.state["params"])

    def load(self, parameters: Rows) -> None:
        """Starts again from parameters, by path.

        Raises:
          ValueError: one is missing or not known.
        """
        state = self.setup.initial_state(self.placement, 0)
        wanted = flatten(state["params"])
        if wanted.keys() != parameters.keys():
            raise ValueError(f"parameters without a partner: {sorted(wanted.keys() ^ parameters.keys())}")
        # Through jnp.array, which copies: the step is given these arrays to overwrite.
        placed = {path: jax.device_put(jnp.array(a), wanted[path].sharding) for path, a in parameters.items()}
        self.state = state | {"params": unflatten(placed)}

    def temporary_bytes(self, rows: Rows) -> int | None:
        """What the compiled step needs beside its arguments and results."""
        analysis = self.compiled.lower(self.state, self.batch(rows)).compile().memory_analysis()
        return None if analysis is None else analysis.temp_size_in_bytes
