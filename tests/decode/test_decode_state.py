"""The state of decoding: several tokens at once are the same as one after the other, and rows can change places."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_models import built, tiny

from t5x_like.decode.state import prefill, reorder, step

TOKENS = np.array([[4, 9, 2], [7, 7, 1], [30, 5, 6]], np.int32)


def start(family: str, new: int = 3, bidirectional: bool = False):
    """(model, logits and state after prompts of unequal lengths)."""
    config = tiny(family, **(dict(encoder_layers=1) if family == "t5_1_1" else {}))
    structure, _, params = built(config)
    segments = np.array([[0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1]], np.int32)
    prompt = {"prompt": np.array([[0, 0, 0, 5], [0, 3, 8, 2], [0, 0, 9, 9]], np.int32), "segments": segments}
    if config.has_encoder:
        prompt |= {"encoder_tokens": TOKENS, "encoder_segments": np.array([[1, 1, 0], [1, 1, 1], [1, 0, 0]], np.int32)}
    model = nnx.merge(structure, params)
    return model, *prefill(model, jax.tree.map(jnp.asarray, prompt), new, bidirectional)


@pytest.mark.parametrize("family, bidirectional", [("llama", False), ("t5_1_1", False), ("llama", True)])
def test_several_tokens_at_once_are_one_after_the_other(family, bidirectional):
    model, _, state = start(family, bidirectional=bidirectional)
    together, whole = step(model, state, jnp.asarray(TOKENS))
    for place in range(3):
        alone, state = step(model, state, jnp.asarray(TOKENS[:, place : place + 1]))
        np.testing.assert_allclose(together[:, place], alone[:, 0], atol=2e-5)
    assert int(whole.column) == int(state.column) == 7
    np.testing.assert_array_equal(whole.positions_B, state.positions_B)


@pytest.mark.parametrize("family", ["llama", "t5_1_1"])
def test_rows_reordered_go_on_as_they_would_have(family):
    model, logits, state = start(family, bidirectional=family == "llama")
    order = jnp.array([2, 0, 0, 1])
    wanted, _ = step(model, state, jnp.asarray(TOKENS))
    found, _ = step(model, reorder(state, order), jnp.asarray(TOKENS)[order])
    np.testing.assert_allclose(found, wanted[order], atol=2e-5)
    assert np.abs(np.asarray(wanted[0] - wanted[1])).max() > 1e-2  # or any order would do
