"""The model of ``step.py`` as a user of t5x_like has it: a ``Run``, its setup, its compiled train step, its feed.

Only reading text is left out: the tokens are those of every other contender.
"""

from __future__ import annotations

from typing import Any

import decoder_sizes
import jax
import jax.numpy as jnp
import numpy as np
from decoder_sizes import Sizes

from t5x_like.arrays.trees import flatten, unflatten
from t5x_like.input_pipeline.config import Bytes, Corpus, DataConfig, TextFiles
from t5x_like.layers.norms import RMSNorm
from t5x_like.layers.positions import Rope
from t5x_like.models.families import llama
from t5x_like.objectives import Autoregressive
from t5x_like.optim import AdamW
from t5x_like.sharding.mesh import make_placement
from t5x_like.train.config import Run, TrainConfig
from t5x_like.train.feed import local_share, to_devices
from t5x_like.train.setup import make_setup
from t5x_like.train.step import compile_step

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
    """The run of these sizes; its corpus is never opened."""
    corpus = Corpus("benchmark", TextFiles(("unused.txt",)), Bytes(), licence="none", origin="random tokens")
    return Run(
        name="benchmark",
        model=llama(
            vocab_size=sizes.vocabulary, d_model=sizes.width, d_ff=sizes.hidden, heads=sizes.heads,
            kv_heads=0, head_dim=sizes.head_size, decoder_layers=sizes.layers, scan_layers=scan,
            norm=RMSNorm(decoder_sizes.NORM_EPSILON), positions=Rope(decoder_sizes.ROPE_THETA),
        ),
        objective=Autoregressive(),
        data=DataConfig(corpus, input_length=sizes.length),
        optimizer=AdamW(
            learning_rate=decoder_sizes.LEARNING_RATE, b1=decoder_sizes.BETA_1, b2=decoder_sizes.BETA_2,
            eps=decoder_sizes.EPSILON, weight_decay=decoder_sizes.WEIGHT_DECAY, clip_norm=decoder_sizes.CLIP_NORM,
            no_decay=(),
        ),
        train=TrainConfig(steps=1_000_000, batch_size=sizes.batch, z_loss=0.0, logits_chunk=LOGITS_CHUNK),
    )  # fmt: skip


class Contender:
    """What ``worker.py`` drives."""

    def __init__(self, sizes: Sizes, form: str):
        self.sizes = sizes
        config = run(sizes, scan=form == "scanned")
        self.placement = make_placement(config.mesh)
        self.setup = make_setup(config)
        self.share = local_share(self.placement, sizes.batch)
        self.compiled: Any = compile_step(self.setup, self.placement)
        self.state = self.setup.initial_state(self.placement, config.train.seed)

    def batch(self, tokens: np.ndarray) -> dict[str, jax.Array]:
        """The batch on the device, as the feed puts it there."""
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        rows = {"decoder_tokens": inputs, "targets": targets, "weights": np.ones(targets.shape, np.float32)}
        return to_devices(self.placement, rows, self.share)

    def step(self, tokens: np.ndarray) -> jax.Array:
        """One update, dispatched; its loss, which ``float`` waits for."""
        self.state, metrics = self.compiled(self.state, self.batch(tokens))
        value, weight = metrics["loss"]
        return value / weight

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
        state = self.setup.initial_state(self.placement, 0)
        wanted = flatten(state["params"])
        if wanted.keys() != (layers | outer).keys():
            raise ValueError(f"parameters without a partner: {sorted(wanted.keys() ^ (layers | outer).keys())}")
        # Through jnp.array, which copies: the step is given these arrays to overwrite.
        placed = {
            path: jax.device_put(jnp.array(array), wanted[path].sharding) for path, array in (layers | outer).items()
        }
        self.state = state | {"params": unflatten(placed)}

    def temporary_bytes(self) -> int | None:
        """What the compiled step needs beside its arguments and results."""
        batch = self.batch(decoder_sizes.tokens(self.sizes, 0))
        analysis = self.compiled.lower(self.state, batch).compile().memory_analysis()
        return None if analysis is None else analysis.temp_size_in_bytes


def joined(name: str, array: np.ndarray) -> np.ndarray:
    """A stacked parameter of the plain program with its heads as one dimension."""
    if name == "out":
        return array.reshape(array.shape[0], -1, array.shape[-1])
    return array.reshape(*array.shape[:2], -1) if array.ndim == 4 else array
