"""The model of ``step.py --family t5`` as a user of t5x_like has it; the tokens are those of every contender."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from our_step import OurStep, Rows, no_text, optimizer
from sizes import T5 as Sizes

from t5x_like.arrays.trees import flatten
from t5x_like.config import Run, SpanCorruption, TrainConfig, t5_1_1
from t5x_like.convert.hugging_face import from_hugging_face, to_hugging_face


def run(sizes: Sizes, scan: bool) -> Run:
    """The run of these sizes."""
    return Run(
        name="benchmark",
        model=t5_1_1(
            vocab_size=sizes.vocabulary, d_model=sizes.width, d_ff=sizes.hidden, heads=sizes.heads,
            head_dim=sizes.head_size, encoder_layers=sizes.layers, decoder_layers=sizes.layers, scan_layers=scan,
        ),
        objective=SpanCorruption(),
        data=no_text(sizes.inputs),
        optimizer=optimizer(),
        train=TrainConfig(steps=1_000_000, batch_size=sizes.batch, z_loss=0.0),
    )  # fmt: skip


class Contender:
    """What ``worker.py`` drives; its parameters are saved under the names of ``transformers``."""

    def __init__(self, sizes: Sizes, form: str):
        self.sizes = sizes
        self.ours = OurStep(run(sizes, scan=form == "scanned"))

    def step(self, tokens: Rows) -> jax.Array:
        """One update, dispatched; its loss, which ``float`` waits for."""
        return self.ours.step(self._rows(tokens))

    def _rows(self, tokens: Rows) -> Rows:
        return tokens | {"weights": np.ones(tokens["targets"].shape, np.float32)}

    def parameters(self) -> dict[str, np.ndarray]:
        return to_hugging_face(self.ours.run.model, self.ours.state["params"])

    def load(self, parameters: dict[str, Any]) -> None:
        """Starts again from parameters that a contender has saved."""
        tensors = {name: array for name, array in parameters.items() if name != "layers"}
        self.ours.load(flatten(from_hugging_face(self.ours.run.model, tensors)))

    def temporary_bytes(self) -> int | None:
        """What the compiled step needs beside its arguments and results."""
        return self.ours.temporary_bytes(self._rows(self.sizes.rows(0)))
