"""Decoding with a cache, a prompt at once and then one token at a time, gives the logits of the full forward pass."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_models import DECODING, built, compiled, logits_function, random_batch, relative_error, tiny

from t5x_like.models.transformer import segment_mask
from t5x_like.ops.attention import Causal, Prefix, SlidingWindow

ROWS, COLUMNS, PROMPT = 2, 9, 4
SLOW = ("t5_1_0", "t5_1_1", "transformer_2017")
CASES = [
    *(pytest.param(family, {}, marks=pytest.mark.slow if family in SLOW else ()) for family in DECODING),
    ("llama", dict(window=3)),
    pytest.param("umt5", dict(scan_layers=False), marks=pytest.mark.slow),
]


@pytest.mark.parametrize(
    "family, fields", CASES, ids=lambda value: value if isinstance(value, str) else " ".join(value)
)
def test_prompt_then_single_tokens(family, fields):
    config = tiny(family, **fields)
    structure, _, params = built(config)
    batch = random_batch(config, rows=ROWS, decoder=COLUMNS)
    tokens = jnp.maximum(batch["decoder_tokens"], 1)
    given = {name: value for name, value in batch.items() if name.startswith("encoder")}
    mask = Causal()
    if family == "prefix_lm":
        given["decoder_prefix"] = (jnp.arange(COLUMNS) < PROMPT).astype(jnp.int32)[None].repeat(ROWS, axis=0)
        mask = mask | Prefix(given["decoder_prefix"])
    if config.window:
        mask = mask & SlidingWindow(config.window, config.window)
    whole = given | {"decoder_tokens": tokens, "decoder_segments": jnp.ones_like(tokens)}
    wanted = logits_function(config)(params, batch | whole)

    @compiled
    def start(params):
        model = nnx.merge(structure, params)
        memory = model.encode(given) if config.has_encoder else None
        return model.start_cache(ROWS, COLUMNS, memory)

    @compiled
    def step(params, cache, columns, offset):
        model = nnx.merge(structure, params)
        places = jnp.broadcast_to(jnp.arange(columns.shape[1], dtype=jnp.int32) + offset, columns.shape)
        part = {"decoder_tokens": columns, "decoder_positions": places}
        across = segment_mask(given | part, "decoder", "encoder") if config.has_encoder else None
        x, cache = model.decode(part, cache, offset, mask, across)
        return model.head().logits(x), cache

    cache = start(params)
    assert cache["self"]["key"].shape == (2, ROWS, COLUMNS, config.key_heads, config.head_dim)
    got, cache = step(params, cache, tokens[:, :PROMPT], jnp.int32(0))
    parts = [got]
    for column in range(PROMPT, COLUMNS):
        got, cache = step(params, cache, tokens[:, column : column + 1], jnp.int32(column))
        parts.append(got)
    assert relative_error(jnp.concatenate(parts, axis=1), wanted) < 1e-5
    assert np.any(cache["self"]["key"][:, :, -1] != 0)
