"""Decoding with a cache, a prompt at once and then one token at a time, gives the logits of the full forward pass."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_models import DECODING, built, compiled, first, logits_function, random_batch, relative_error, tiny

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
    if family == "prefix_lm":
        given["decoder_prefix"] = (jnp.arange(COLUMNS) < PROMPT).astype(jnp.int32)[None].repeat(ROWS, axis=0)
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
        part = given | {"decoder_tokens": columns, "decoder_positions": places}
        part["decoder_segments"] = jnp.ones_like(columns)
        everything = jnp.ones((ROWS, COLUMNS), jnp.int32)
        x, cache = model.decode(part, cache, offset, everything, given.get("decoder_prefix"))
        return model.head().logits(x), cache

    cache, attention = start(params), first(config).mixer
    assert cache["layers"]["attention"]["key"].shape == (2, ROWS, COLUMNS, attention.key_heads, attention.head_dim)
    got, cache = step(params, cache, tokens[:, :PROMPT], jnp.int32(0))
    parts = [got]
    for column in range(PROMPT, COLUMNS):
        got, cache = step(params, cache, tokens[:, column : column + 1], jnp.int32(column))
        parts.append(got)
    assert relative_error(jnp.concatenate(parts, axis=1), wanted) < 1e-5
    assert np.any(cache["layers"]["attention"]["key"][:, :, -1] != 0)
