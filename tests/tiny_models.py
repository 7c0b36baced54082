"""Tiny models of every family, with all parameters random, and batches for them: what tests of several rooms use.

Sizes are such that heads x head_dim differs from d_model, eight devices divide what rules may split, and the buckets of
T5's relative bias reach their logarithmic part within a short row.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from t5x_like.arrays.trees import map_named
from t5x_like.layers.block import Layer
from t5x_like.layers.positions import Alibi, Learned, T5Relative
from t5x_like.models import families
from t5x_like.models.config import ModelConfig
from t5x_like.models.families import Dropout
from t5x_like.models.transformer import make_model
from t5x_like.ops.losses import LossConfig, cross_entropy

# What is compiled here runs once and on tiny arrays: the time is the compiler's.
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

SIZES = dict(vocab_size=40, d_model=16, heads=4, head_dim=8, d_ff=24, dropout=Dropout())
BOTH, ENCODER, DECODER = (
    dict(encoder_layers=2, decoder_layers=2),
    dict(encoder_layers=2),
    dict(decoder_layers=2),
)
T5 = SIZES | BOTH | dict(positions=T5Relative(8, 12))

FAMILIES = {
    "t5_1_0": lambda **o: families.t5_1_0(**(T5 | o)),
    "t5_1_1": lambda **o: families.t5_1_1(**(T5 | o)),
    "umt5": lambda **o: families.umt5(**(T5 | dict(positions=T5Relative(8, 12, own_tables=True)) | o)),
    "transformer_2017": lambda **o: families.transformer_2017(**(SIZES | BOTH | dict(embedding_init_std=0.25) | o)),
    "gpt2": lambda **o: families.gpt2(**(SIZES | DECODER | dict(positions=Learned(32)) | o)),
    "llama": lambda **o: families.llama(**(SIZES | DECODER | dict(kv_heads=2) | o)),
    "bert": lambda **o: families.bert(**(SIZES | ENCODER | dict(positions=Learned(32)) | o)),
    "prefix_lm": lambda **o: families.llama(**(SIZES | DECODER | dict(kv_heads=1, positions=T5Relative(8)) | o)),
    "alibi": lambda **o: families.llama(**(SIZES | DECODER | dict(positions=Alibi()) | o)),
}
Z_LOSS = LossConfig(z_loss=1e-3)
DECODING = [name for name in FAMILIES if name != "bert"]


def tiny(family: str, **overrides) -> ModelConfig:
    """A tiny config; ``prefix_lm`` is a decoder-only model whose batches mark a prefix."""
    return FAMILIES[family](**overrides)


def first(config: ModelConfig, side: str = "") -> Layer:
    """The first layer of a side; by default of the only one or the decoder."""
    return (config.side(side) if side else config.sides[-1][1]).groups[0].pattern[0]


def resized(value, **fields):
    """A dataclass tree with these fields, wherever they are in it, set anew."""
    if isinstance(value, tuple):
        return tuple(resized(each, **fields) for each in value)
    if not dataclasses.is_dataclass(value):
        return value
    own = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    return dataclasses.replace(value, **{n: fields[n] if n in fields else resized(v, **fields) for n, v in own.items()})


def random_value(path: str, spec, seed: int = 0) -> np.ndarray:
    """One parameter, random: no scale is left at 1 and no bias at 0, where an error in their use would hide."""
    numbers = np.random.default_rng((seed, zlib.crc32(path.encode())))
    drawn = numbers.normal(size=spec.shape)
    if spec.init.kind == "constant":
        return np.asarray(spec.init.scale + 0.3 * drawn, spec.dtype)
    return np.asarray(max(spec.init.scale, 0.15) * drawn, spec.dtype)  # families that start small would test nothing


def random_params(specs, seed: int = 0):
    return map_named(lambda path, spec: jnp.asarray(random_value(path, spec, seed)), specs)


@functools.lru_cache(maxsize=64)
def built(config: ModelConfig):
    """(structure, specs, random params) of a config."""
    structure, specs = make_model(config)
    return structure, specs, random_params(specs)


@functools.lru_cache(maxsize=64)
def logits_function(config: ModelConfig):
    """Compiled (params, batch) -> logits."""
    structure = built(config)[0]
    return compiled(lambda params, batch: nnx.merge(structure, params).logits(batch))


def loss_function(config: ModelConfig, loss: LossConfig = Z_LOSS):
    """(params, batch, dropout key or None) -> mean cross-entropy over ``targets`` and ``weights`` of the batch."""
    structure = built(config)[0]

    def mean_loss(params, batch, key=None):
        model = nnx.merge(structure, params)
        sums = cross_entropy(model(batch, key), model.head(), batch["targets"], batch["weights"], loss)
        return sums.loss / sums.weight

    return mean_loss


def random_batch(
    config: ModelConfig, seed: int = 0, rows: int = 2, encoder: int = 11, decoder: int = 9, prefix: int = 0
) -> dict[str, jax.Array]:
    """Random tokens; every second row ends in padding of 3 encoder columns and 2 decoder columns.

    ``prefix`` columns of each row are marked as bidirectional.
    """
    numbers = np.random.default_rng(seed)
    batch = {}
    for side, length, padding in (("encoder", encoder, 3), ("decoder", decoder, 2)):
        if side not in config.shape:
            continue
        segments = np.ones((rows, length), np.int32)
        segments[1::2, length - padding :] = 0
        batch[f"{side}_tokens"] = numbers.integers(1, config.vocab_size, (rows, length), np.int32) * segments
        batch[f"{side}_segments"] = segments
    types = getattr(config.encoder.inputs, "types", 0) if config.encoder else 0
    if types:
        batch["encoder_types"] = numbers.integers(0, types, (rows, encoder), np.int32)
    if prefix:
        batch["decoder_prefix"] = np.broadcast_to(np.arange(decoder) < prefix, (rows, decoder)).astype(np.int32)
    last = batch["decoder_segments"] if config.has_decoder else batch["encoder_segments"]
    batch["targets"] = numbers.integers(0, config.vocab_size, last.shape, np.int32)
    batch["weights"] = (last * numbers.uniform(0.5, 1.5, last.shape)).astype(np.float32)
    return {name: jnp.asarray(value) for name, value in batch.items()}


def segments_of(config: ModelConfig, batch) -> np.ndarray:
    """Segments of the side that has the logits."""
    return np.asarray(batch["decoder_segments" if config.has_decoder else "encoder_segments"])


def relative_error(got, wanted) -> float:
    """Largest difference, as a share of the largest wanted value."""
    got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
    return float(np.max(np.abs(got - wanted)) / max(np.max(np.abs(wanted)), 1e-12))
