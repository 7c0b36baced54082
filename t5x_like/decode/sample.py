"""Sampling: one token after the other, the most likely or at random. Imports JAX inside its call only.

Letters: B batch, N new tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from t5x_like.core.config import Config
from t5x_like.core.errors import require

if TYPE_CHECKING:
    import jax

    from t5x_like.decode.state import DecodeState
    from t5x_like.models.transformer import Transformer


@dataclasses.dataclass(frozen=True)
class Sampling(Config, where="sampling"):
    """How the next token is chosen; see ``ops.sampling.sample``. Temperature 0 is greedy."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        require(self.max_new_tokens >= 1, "max_new_tokens", self.max_new_tokens, "1 or more")
        require(self.temperature >= 0, "temperature", self.temperature, "0 (greedy) or more")
        require(self.top_k >= 0, "top_k", self.top_k, "0 (all) or more")
        require(0 < self.top_p <= 1, "top_p", self.top_p, "above 0, at most 1 (all)")

    def __call__(
        self, model: Transformer, logits_BV: jax.Array, state: DecodeState, eos_id: int, key: jax.Array
    ) -> jax.Array:
        """New tokens [B, N], each row ending in ``eos_id`` from its first one on.

        Args:
          model: the model with its parameters.
          logits_BV, state: results of ``prefill``, with room for ``max_new_tokens``.
          eos_id: id that ends a row.
          key: random key.
        """
        import jax
        import jax.numpy as jnp

        from t5x_like.decode.state import step
        from t5x_like.ops.sampling import sample

        new, B = self.max_new_tokens, logits_BV.shape[0]

        def choose(logits_BV, index, done_B):
            chosen_B = sample(logits_BV, jax.random.fold_in(key, index), self.temperature, self.top_k, self.top_p)
            chosen_B = jnp.where(done_B, eos_id, chosen_B)
            return chosen_B, done_B | (chosen_B == eos_id)

        def unfinished(carry):
            return (carry[0] < new) & ~jnp.all(carry[1])

        def one(carry):
            index, done_B, last_B, out_BN, state = carry
            logits_B1V, state = step(model, state, last_B[:, None])
            chosen_B, done_B = choose(logits_B1V[:, 0], index, done_B)
            out_BN = jax.lax.dynamic_update_slice_in_dim(out_BN, chosen_B[:, None], index, axis=1)
            return index + 1, done_B, chosen_B, out_BN, state

        first_B, done_B = choose(logits_BV, 0, jnp.zeros(B, bool))
        out_BN = jnp.full((B, new), eos_id, jnp.int32).at[:, 0].set(first_B)
        return jax.lax.while_loop(unfinished, one, (jnp.int32(1), done_B, first_B, out_BN, state))[3]
