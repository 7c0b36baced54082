"""Generation for decoders, with or without an encoder: one compiled function for prefill and a strategy's loop."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from t5x_like.arrays.trees import Tree
from t5x_like.core.errors import UserError, refuse
from t5x_like.core.ranges import INT32_MAX, Seed
from t5x_like.core.structure import structure
from t5x_like.decode.sample import Sampling
from t5x_like.decode.state import DecodeState, prefill
from t5x_like.models.config import ModelConfig
from t5x_like.sharding.mesh import Placement, use

ROUND = 16  # lengths are rounded up to multiples of this, so that few are compiled
PIECE = 8  # tokens written between two questions whether to stop


class Strategy(Protocol):
    """How tokens are chosen: a frozen dataclass such as ``decode.sample.Sampling``, whose call gives new tokens [B, N]
    from the logits [B, V] of the first one and the state after the prompt."""

    @property
    def max_new_tokens(self) -> int: ...

    def __call__(
        self, model: Any, logits_BV: jax.Array, state: DecodeState, eos_id: int, key: jax.Array
    ) -> jax.Array: ...


def generate(
    bind: Callable[[Tree], Any], config: ModelConfig, params: Tree, prompts: Sequence[Sequence[int]],
    strategy: Strategy, *, placement: Placement | None = None, eos_id: int, start_id: int = 0,
    bidirectional_prompt: bool = False, seed: int = 0, vocab_size: int | None = None,
    stop: Callable[[], bool] | None = None,
) -> list[list[int]]:  # fmt: skip
    """Continues token prompts of unequal lengths.

    Args:
      bind: function from parameters to the model with them; the same one is compiled once.
      config, params: config and parameters of the model.
      prompts: tokens of each prompt: the encoder's (at least one) where there is an encoder, else the decoder's.
      strategy: choice of the new tokens and their number.
      placement: mesh and rules of ``params``; None is one device.
      eos_id: id that ends a row; not returned.
      start_id: id of the decoder's first input, before the prompt.
      bidirectional_prompt: whether the prompt's tokens see each other in both directions, as in a prefix LM.
      seed: seed of sampling, of 32 bits.
      vocab_size: ids of the tokenizer, the only ones that are written; None: the model's.
      stop: function that says whether to stop before the end, asked after every ``PIECE`` tokens of ``Sampling``.

    Returns:
      The new tokens of each row, without the prompt.

    Raises:
      UserError: an encoder-only model, an empty prompt for an encoder, a length beyond learned positions or beyond
        memory, a seed of more than 32 bits.
    """
    structure(Seed, seed, "seed", text=False)
    got = f"a model of shape {config.shape} writes no text"
    refuse(not config.has_decoder, "generate", got, "a model with a decoder")
    refuse(config.has_encoder and not all(prompts), "prompt", "is empty", "at least one token for the encoder")
    if not prompts:
        return []
    if config.has_encoder:
        config.check_length(max(*map(len, prompts), strategy.max_new_tokens))
        encoder, encoder_segments = _pad(prompts, left=False, limit=config.side("encoder").positions.length)
        start = np.full((len(prompts), 1), start_id, np.int32)
        arrays = {"encoder_tokens": encoder, "encoder_segments": encoder_segments}
        arrays |= {"prompt": start, "segments": np.ones_like(start)}
    else:
        config.check_length(max(map(len, prompts)) + strategy.max_new_tokens)
        arrays = dict(zip(("prompt", "segments"), _pad([[start_id, *p] for p in prompts], left=True), strict=True))
    columns, new = arrays["prompt"].shape[1], strategy.max_new_tokens
    got = f"{new} after a prompt of {columns} columns: more than can be counted"
    refuse(columns + new > INT32_MAX, "max_new_tokens", got, f"at most {INT32_MAX - columns}")
    key = jax.random.key(seed)
    size = np.int32(config.vocab_size if vocab_size is None else vocab_size)
    try:
        given = eos_id, bidirectional_prompt, params, arrays, size, key
        if stop is not None and isinstance(strategy, Sampling):
            found = _in_pieces(bind, placement, strategy, *given, stop)
        else:
            found = _generate(bind, placement, strategy, *given)
        rows = np.asarray(found).tolist()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        got = f"{new} for each of {len(prompts)} prompts do not fit in memory: {str(error).splitlines()[0]}"
        raise UserError("max_new_tokens", got, "fewer new tokens, or fewer prompts at a time") from None
    return [list(itertools.takewhile(lambda token: token != eos_id, row)) for row in rows]


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


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _generate(bind, placement, strategy: Strategy, eos_id: int, bidirectional: bool, params, arrays, vocab_size, key):
    with use(placement):  # static, so that each mesh has a program of its own
        model = bind(params)
        logits_BV, state = prefill(model, arrays, strategy.max_new_tokens, bidirectional, vocab_size)
        return strategy(model, logits_BV, state, eos_id, key)


def _in_pieces(bind, placement, strategy: Sampling, eos_id: int, bidirectional, params, arrays, vocab_size, key, stop):
    """As ``_generate``; what is not written when ``stop`` says so is ``eos_id``."""
    begun = _begin(bind, placement, strategy, eos_id, bidirectional, params, arrays, vocab_size, key)
    written = 1
    while written < strategy.max_new_tokens and not jax.device_get(begun[1]).all() and not stop():
        written = min(written + PIECE, strategy.max_new_tokens)
        begun = _go_on(bind, placement, strategy, eos_id, params, begun, np.int32(written), key)
    return begun[3]


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _begin(bind, placement, strategy: Sampling, eos_id: int, bidirectional, params, arrays, vocab_size, key):
    with use(placement):
        logits_BV, state = prefill(bind(params), arrays, strategy.max_new_tokens, bidirectional, vocab_size)
        return strategy.begin(logits_BV, state, eos_id, key)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3), donate_argnums=5)
def _go_on(bind, placement, strategy: Sampling, eos_id: int, params, begun, until, key):
    with use(placement):
        return strategy.go_on(bind(params), begun, eos_id, key, until)
