"""Beam search of one's own: the n most likely continuations are kept at each token."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from t5x_like.decode.state import reorder, step


@dataclasses.dataclass(frozen=True)
class Beam:
    """``width`` continuations; one that has ended keeps its likelihood."""

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
