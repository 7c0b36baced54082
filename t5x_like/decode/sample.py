"""Sampling: one token after the other, the most likely or at random. Imports JAX inside its call only.

Letters: B batch, N new tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

from t5x_like.core.config import Config
from t5x_like.core.ranges import FLOAT32_TINY, NonNegativeInt, OffOrPositive, PositiveInt, Range

if TYPE_CHECKING:
    import jax

    from t5x_like.decode.state import DecodeState
    from t5x_like.models.transformer import Transformer


@dataclasses.dataclass(frozen=True)
class Sampling(Config, where=""):
    """How the next token is chosen; see ``ops.sampling.sample``. Temperature 0 is greedy."""

    max_new_tokens: PositiveInt = 64
    temperature: OffOrPositive = 0.0
    top_k: NonNegativeInt = 0
    top_p: Annotated[float, Range(FLOAT32_TINY, 1, "above 0 (1.2e-38), at most 1 (all)")] = 1.0

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
        begun = self.begin(logits_BV, state, eos_id, key)
        return self.go_on(model, begun, eos_id, key, self.max_new_tokens)[3]

    def begin(self, logits_BV: jax.Array, state: DecodeState, eos_id: int, key: jax.Array) -> Any:
        """With the first new token: (number of tokens, rows that have ended [B], last tokens [B], all tokens [B, N],
        state)."""
        import jax.numpy as jnp

        B = logits_BV.shape[0]
        first_B, done_B = self._choose(logits_BV, 0, jnp.zeros(B, bool), eos_id, key)
        out_BN = jnp.full((B, self.max_new_tokens), eos_id, jnp.int32).at[:, 0].set(first_B)
        return jnp.int32(1), done_B, first_B, out_BN, state

    def go_on(self, model: Transformer, begun: Any, eos_id: int, key: jax.Array, until: jax.Array | int) -> Any:
        """As ``begin``, with ``until`` tokens, or fewer where all rows have ended."""
        import jax
        import jax.numpy as jnp

        from t5x_like.decode.state import step

        def unfinished(carry):
            return (carry[0] < until) & ~jnp.all(carry[1])

        def one(carry):
            index, done_B, last_B, out_BN, state = carry
            logits_B1V, state = step(model, state, last_B[:, None])
            chosen_B, done_B = self._choose(logits_B1V[:, 0], index, done_B, eos_id, key)
            out_BN = jax.lax.dynamic_update_slice_in_dim(out_BN, chosen_B[:, None], index, axis=1)
            return index + 1, done_B, chosen_B, out_BN, state

        return jax.lax.while_loop(unfinished, one, begun)

    def _choose(self, logits_BV, index, done_B, eos_id, key):
        """(token number ``index`` of each row, rows that have ended)."""
        import jax
        import jax.numpy as jnp

        from t5x_like.ops.sampling import sample

        chosen_B = sample(logits_BV, jax.random.fold_in(key, index), self.temperature, self.top_k, self.top_p)
        chosen_B = jnp.where(done_B, eos_id, chosen_B)
        return chosen_B, done_B | (chosen_B == eos_id)
