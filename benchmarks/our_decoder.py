"""The model of ``step.py --family decoder`` as a user of t5x_like has it; the tokens are those of every contender."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from our_step import OurStep, Rows, no_text, optimizer
from sizes import Decoder as Sizes

from t5x_like.config import Autoregressive, RMSNorm, Rope, Run, TrainConfig, llama

# Positions whose logits are in memory at a time. On a CPU 64 take 5 % fewer CPU seconds per step than all 256, because
# 8 x 64 x 8192 floats stay in the cache from the projection to its gradient.
LOGITS_CHUNK = 64

# Our names of the plain program's parameters; ours have the heads joined, and the head as [vocabulary, width].
LAYER_PATHS = {
    "query": "attention/inner/query/kernel",
    "key": "attention/inner/key/kernel",
    "value": "attention/inner/value/kernel",
    "out": "attention/inner/out/kernel",
    "gate": "feed_forward/inner/gate/kernel",
    "up": "feed_forward/inner/up/kernel",
    "down": "feed_forward/inner/down/kernel",
    "attention_norm": "attention/norm/scale",
    "mlp_norm": "feed_forward/norm/scale",
}


def run(sizes: Sizes, scan: bool) -> Run:
    """The run of these sizes."""
    return Run(
        name="benchmark",
        model=llama(
            vocab_size=sizes.vocabulary, d_model=sizes.width, d_ff=sizes.hidden, heads=sizes.heads,
            kv_heads=0, head_dim=sizes.head_size, decoder_layers=sizes.layers, scan_layers=scan,
            norm=RMSNorm(Sizes.NORM_EPSILON), positions=Rope(Sizes.ROPE_THETA),
        ),
        objective=Autoregressive(),
        data=no_text(sizes.length),
        optimizer=optimizer(),
        train=TrainConfig(steps=1_000_000, batch_size=sizes.batch, z_loss=0.0, logits_chunk=LOGITS_CHUNK),
    )  # fmt: skip


class Contender:
    """What ``worker.py`` drives."""

    def __init__(self, sizes: Sizes, form: str):
        self.sizes = sizes
        self.ours = OurStep(run(sizes, scan=form == "scanned"))

    def step(self, tokens: np.ndarray) -> jax.Array:
        """One update, dispatched; its loss, which ``float`` waits for."""
        return self.ours.step(self._rows(tokens))

    def _rows(self, tokens: np.ndarray) -> Rows:
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        return {"decoder_tokens": inputs, "targets": targets, "weights": np.ones(targets.shape, np.float32)}

    def load(self, parameters: dict[str, Any]) -> None:
        """Starts again from parameters of the plain program."""
        layers = {
            f"decoder/layers/{LAYER_PATHS[name]}": joined(name, array) for name, array in parameters["layers"].items()
        }
        outer = {
            "token_embedding/table": parameters["embedding"],
            "output_head/kernel": parameters["head"].T,
            "decoder/final_norm/scale": parameters["final_norm"],
        }
        self.ours.load(layers | outer)

    def temporary_bytes(self) -> int | None:
        """What the compiled step needs beside its arguments and results."""
        return self.ours.temporary_bytes(self._rows(self.sizes.rows(0)))


def joined(name: str, array: np.ndarray) -> np.ndarray:
    """A stacked parameter of the plain program with its heads as one dimension."""
    if name == "out":
        return array.reshape(array.shape[0], -1, array.shape[-1])
    return array.reshape(*array.shape[:2], -1) if array.ndim == 4 else array
