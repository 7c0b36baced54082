"""Generation for decoders, with or without an encoder: one compiled function for prefill and the loop over tokens.

Letters: B batch, P prompt columns, C cache columns, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from t5x_like.arrays.trees import Tree
from t5x_like.core.errors import UserError
from t5x_like.models.config import ModelConfig
from t5x_like.ops.sampling import sample

ROUND = 16  # lengths are rounded up to multiples of this, so that few are compiled


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; see ``ops.sampling.sample``. Temperature 0 is greedy."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        if self.max_new_tokens < 1:
            raise UserError("max_new_tokens", f"got {self.max_new_tokens}", "1 or more")
        if self.temperature < 0:
            raise UserError("temperature", f"got {self.temperature}", "0 (greedy) or more")
        if self.top_k < 0:
            raise UserError("top_k", f"got {self.top_k}", "0 (all) or more")
        if not 0 < self.top_p <= 1:
            raise UserError("top_p", f"got {self.top_p}", "above 0, at most 1 (all)")


def generate(
    structure: nnx.GraphDef,
    config: ModelConfig,
    params: Tree,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    eos_id: int,
    start_id: int = 0,
    bidirectional_prompt: bool = False,
    seed: int = 0,
) -> list[list[int]]:
    """Continues token prompts of unequal lengths.

    Args:
      structure, config, params: the model.
      prompts: the encoder's tokens where there is an encoder, else what the decoder continues; at least one each for an
        encoder.
      sampling: how tokens are chosen and how many.
      eos_id: ends a row; not returned.
      start_id: the decoder's first input, before the prompt.
      bidirectional_prompt: a prefix LM: the prompt's tokens see each other in both directions.
      seed: of sampling.

    Returns:
      The new tokens of each row, without the prompt.

    Raises:
      UserError: an encoder-only model, an empty prompt for an encoder, a length beyond learned positions.
    """
    if not config.has_decoder:
        raise UserError("generate", f"a model of shape {config.shape} writes no text", "a model with a decoder")
    if config.has_encoder and not all(prompts):
        raise UserError("prompt", "is empty", "at least one token for the encoder")
    if not prompts:
        return []
    if config.has_encoder:
        config.check_length(max(*map(len, prompts), sampling.max_new_tokens))
        encoder, encoder_segments = _pad(prompts, left=False, limit=config.side("encoder").positions.max_length)
        start = np.full((len(prompts), 1), start_id, np.int32)
        arrays = {"prompt": start, "segments": np.ones_like(start)}
        arrays |= {"encoder_tokens": encoder, "encoder_segments": encoder_segments}
    else:
        tokens, segments = _pad([[start_id, *p] for p in prompts], left=True)
        config.check_length(max(len(p) for p in prompts) + sampling.max_new_tokens)
        arrays = {"prompt": tokens, "segments": segments}
    found = _generate(structure, config, sampling, eos_id, bidirectional_prompt, params, arrays, jax.random.key(seed))
    return [_until(row, eos_id) for row in np.asarray(found).tolist()]


def _pad(rows: Sequence[Sequence[int]], left: bool, limit: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, segments), padded with segment 0: on the left so that all rows end in one column, or on the right, then
    to at most ``limit`` columns, for which there are positions, if it is not 0."""
    longest = max(len(r) for r in rows)
    width = -(-longest // ROUND) * ROUND
    width = max(longest, min(width, limit)) if limit else width
    tokens, segments = np.zeros((2, len(rows), width), np.int32)
    for i, row in enumerate(rows):
        where = slice(width - len(row), width) if left else slice(0, len(row))
        tokens[i, where], segments[i, where] = row, 1
    return tokens, segments


def _until(row: list[int], eos_id: int) -> list[int]:
    return row[: row.index(eos_id)] if eos_id in row else row


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _generate(structure, config, sampling: Sampling, eos_id: int, bidirectional: bool, params, arrays, key):
    model = nnx.merge(structure, params)
    prompt_BP, segments_BP = arrays["prompt"], arrays["segments"]
    B, P = prompt_BP.shape
    new = sampling.max_new_tokens
    memory = model.encode(arrays) if config.has_encoder else None
    cache = model.start_cache(B, P + new, memory)
    key_segments_BC = jnp.pad(segments_BP, ((0, 0), (0, new)), constant_values=1)
    prefix_BC = jnp.pad(segments_BP, ((0, 0), (0, new))) if bidirectional else None
    lengths_B = jnp.sum(segments_BP, axis=1)

    def activations(tokens_BL, positions_BL, query_segments_BL, cache, offset):
        batch = {name: arrays[name] for name in arrays if name == "encoder_segments"}
        batch |= {"decoder_tokens": tokens_BL, "decoder_positions": positions_BL}
        batch["decoder_segments"] = query_segments_BL
        x_BLD, cache = model.decode(batch, cache, offset, key_segments_BC, prefix_BC)
        return model.head().logits(x_BLD[:, -1]), cache

    def choose(logits_BV, index, done_B):
        chosen_B = sample(
            logits_BV, jax.random.fold_in(key, index), sampling.temperature, sampling.top_k, sampling.top_p
        )
        chosen_B = jnp.where(done_B, eos_id, chosen_B)
        return chosen_B, done_B | (chosen_B == eos_id)

    positions_BP = jnp.maximum(jnp.cumsum(segments_BP, axis=1) - 1, 0)
    logits_BV, cache = activations(prompt_BP, positions_BP, segments_BP, cache, jnp.int32(0))
    first_B, done_B = choose(logits_BV, 0, jnp.zeros(B, bool))
    out_BN = jnp.full((B, new), eos_id, jnp.int32).at[:, 0].set(first_B)

    def unfinished(carry):
        index, done_B, *_ = carry
        return (index < new) & ~jnp.all(done_B)

    def one(carry):
        index, done_B, last_B, out_BN, cache = carry
        positions_B1 = (lengths_B + index - 1)[:, None]
        logits_BV, cache = activations(
            last_B[:, None], positions_B1, jnp.ones((B, 1), jnp.int32), cache, P + index - 1
        )
        chosen_B, done_B = choose(logits_BV, index, done_B)
        out_BN = jax.lax.dynamic_update_slice_in_dim(out_BN, chosen_B[:, None], index, axis=1)
        return index + 1, done_B, chosen_B, out_BN, cache

    return jax.lax.while_loop(unfinished, one, (jnp.int32(1), done_B, first_B, out_BN, cache))[3]
