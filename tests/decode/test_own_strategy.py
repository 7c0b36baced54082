"""A strategy of a user's own, beam search, over the state of decoding alone: a small class, no cache or mask in it."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_models import built, compiled, tiny

from t5x_like.decode.generate import generate
from t5x_like.decode.sample import Sampling
from t5x_like.decode.state import reorder, step

V, PROMPTS = 12, [[5, 9, 3], [2]]


@dataclasses.dataclass(frozen=True)
class Beam:
    """The most likely of ``width`` continuations kept at each token; a row that has ended keeps its likelihood."""

    width: int
    max_new_tokens: int

    def __call__(self, model, logits_BV, state, eos_id, key):
        B, V = logits_BV.shape
        scores_BK, picked_BK = jax.lax.top_k(jax.nn.log_softmax(logits_BV), self.width)
        rows_B1 = jnp.arange(B)[:, None]
        state = reorder(state, jnp.repeat(jnp.arange(B), self.width))
        out_BKN = picked_BK[..., None]
        for _ in range(self.max_new_tokens - 1):
            logits, state = step(model, state, out_BKN[..., -1].reshape(-1, 1))
            log_p_BKV = jax.nn.log_softmax(logits[:, 0]).reshape(B, self.width, V)
            only_eos_V = jnp.where(jnp.arange(V) == eos_id, 0.0, -jnp.inf)
            log_p_BKV = jnp.where(jnp.any(out_BKN == eos_id, -1)[..., None], only_eos_V, log_p_BKV)
            totals = (scores_BK[..., None] + log_p_BKV).reshape(B, -1)
            scores_BK, picked_BK = jax.lax.top_k(totals, self.width)
            parents_BK = picked_BK // V
            state = reorder(state, (rows_B1 * self.width + parents_BK).reshape(-1))
            out_BKN = jnp.concatenate([out_BKN[rows_B1, parents_BK], (picked_BK % V)[..., None]], axis=-1)
        return out_BKN[:, 0]


@pytest.mark.parametrize("family", ["llama", "t5_1_1"])
def test_a_beam_as_wide_as_the_vocabulary_finds_the_likeliest_pair(family):
    config = tiny(family, vocab_size=V, **(dict(encoder_layers=1) if family == "t5_1_1" else {}))
    structure, _, params = built(config)

    def bind(params):
        return nnx.merge(structure, params)

    def write(strategy):
        return generate(bind, config, params, PROMPTS, strategy, eos_id=0)

    log_p = compiled(lambda params, batch: jax.nn.log_softmax(bind(params).logits(batch)))
    pairs = [pair for pair in itertools.product(range(V), repeat=2) if pair[0] or not pair[1]]  # nothing follows EOS
    wanted = []
    for prompt in PROMPTS:
        lead = [0] if config.has_encoder else [0, *prompt]
        batch = {"decoder_tokens": np.array([[*lead, *pair] for pair in pairs], np.int32)}
        if config.has_encoder:
            batch["encoder_tokens"] = np.array([prompt] * len(pairs), np.int32)
        found, last = np.asarray(log_p(params, batch)), len(lead) - 1
        scores = [found[i, last, a] + (found[i, last + 1, b] if a else 0.0) for i, (a, b) in enumerate(pairs)]
        wanted.append([token for token in pairs[int(np.argmax(scores))] if token])
    assert write(Beam(V, 2)) == wanted
    assert write(Beam(1, 5)) == write(Sampling(5))  # a single beam is greedy
