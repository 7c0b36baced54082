"""Permutation language modelling: one pass of the encoder over text and query slots is XLNet's two streams."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest
from fake_tokenizer import FakeTokenizer
from tiny_models import built, first, logits_function, tiny

from t5x_like.arrays.trees import flatten
from t5x_like.input_pipeline.batches.features import make_batch
from t5x_like.layers.positions import Rope, Sinusoidal
from t5x_like.objectives import PermutationLM
from t5x_like.objectives.base import Example

TOKENIZER = FakeTokenizer(vocab_size=40, sentinel_ids=(), mask_id=3, modes=())
OBJECTIVE = PermutationLM(0.4)
POSITIONS = {
    "learned": {},
    "sinusoidal": dict(positions=Sinusoidal()),
    "rope": dict(positions=Rope()),
}


def examples() -> list[Example]:
    numbers = np.random.default_rng(2)
    return [OBJECTIVE.example(numbers.integers(4, 40, size), numbers, TOKENIZER) for size in (8, 5)]


def batch_of(rows) -> dict:
    made = make_batch(rows, "encoder-only", (20,), 0, OBJECTIVE.extras("encoder-only"))
    return {name: jnp.asarray(array) for name, array in made.items()}


def logits(config, batch) -> np.ndarray:
    return np.asarray(logits_function(config)(built(config)[2], batch))


def normed(x, weights: dict, path: str, eps: float):
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
    return scaled * weights[f"{path}/scale"] + weights[f"{path}/bias"]


def linear(x, weights: dict, path: str):
    return x @ weights[f"{path}/kernel"] + weights[f"{path}/bias"]


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def attend(queries, keys, values, allowed, heads: int):
    """Multi-head attention; a query that may see nothing gets 0."""
    split = (heads, queries.shape[-1] // heads)
    out = np.zeros((len(queries), *split))
    for head in range(heads):
        q, k, v = (a.reshape(len(a), *split)[:, head] for a in (queries, keys, values))
        for i in range(len(q)):
            if allowed[i].any():
                scores = k[allowed[i]] @ q[i] / math.sqrt(split[1])
                chances = np.exp(scores - scores.max())
                out[i, head] = chances / chances.sum() @ v[allowed[i]]
    return out.reshape(queries.shape)


def two_streams(config, tokens, rank, predicted) -> np.ndarray:
    """Logits of the tokens at places ``predicted``, by section 2.3 of the paper, in float64: a content stream h, which
    sees ranks up to its own, and a query stream g, which starts from the mask id and sees ranks below its own."""
    weights = {path: np.asarray(array, np.float64) for path, array in flatten(built(config)[2]).items()}
    table, eps, where = weights["token_embedding/table"], first(config).norm.eps, "encoder/layers"

    def embedded(ids, places):
        x = table[ids] + weights["encoder_positions/table"][places] + weights["encoder_inputs/types/table"][0]
        return normed(x, weights, "encoder_embedding_norm", eps)

    places = np.arange(len(tokens))
    h, g = embedded(tokens, places), embedded(np.full(len(tokens), TOKENIZER.mask_id), places)
    sees_itself, sees_before = rank[None] <= rank[:, None], rank[None] < rank[:, None]
    for layer in range(config.encoder.depth):
        mine = {path: a[layer] for path, a in weights.items() if path.startswith(where)}
        keys, values = (linear(h, mine, f"{where}/attention/inner/{name}") for name in ("key", "value"))

        def block(x, allowed, mine=mine, keys=keys, values=values):
            queries = linear(x, mine, f"{where}/attention/inner/query")
            seen = attend(queries, keys, values, allowed, first(config).mixer.heads)
            x = normed(x + linear(seen, mine, f"{where}/attention/inner/out"), mine, f"{where}/attention/norm", eps)
            hidden = gelu(linear(x, mine, f"{where}/feed_forward/inner/up"))
            out = linear(hidden, mine, f"{where}/feed_forward/inner/down")
            return normed(x + out, mine, f"{where}/feed_forward/norm", eps)

        h, g = block(h, sees_itself), block(g, sees_before)
    x = normed(gelu(linear(g, weights, "output_transform/linear")), weights, "output_transform/norm", eps)
    return (x @ table.T + weights["output_head/bias"])[predicted]


def test_it_is_two_stream_attention():
    """Two texts packed into a row, whose slots of prediction lie behind each of them."""
    config = tiny("bert")
    given, start = examples(), 0
    found = logits(config, batch_of([given]))[0]
    for example in given:
        assert example.order is not None and example.positions is not None
        content = example.order > 0
        rank = (example.order[content] - 1) // 2
        wanted = two_streams(config, example.inputs[content], rank, example.positions[~content])
        assert len(wanted) >= 2 and np.std(wanted) > 0.1
        np.testing.assert_allclose(found[start : start + len(content)][~content], wanted, atol=2e-5)
        start += len(content)


@pytest.mark.parametrize("positions", POSITIONS)
def test_a_prediction_depends_on_the_tokens_before_it_in_the_order_and_on_no_other(positions):
    config = tiny("bert", **POSITIONS[positions])
    given = examples()[0]
    assert given.order is not None
    batch = batch_of([[given]])
    before = logits(config, batch)[0]
    slots = np.flatnonzero(given.order < 0)
    for place in np.flatnonzero(given.order > 0):
        token = 4 + (int(batch["encoder_tokens"][0, place]) - 3) % 36
        changed = batch | {"encoder_tokens": batch["encoder_tokens"].at[0, place].set(token)}
        difference = np.abs(logits(config, changed)[0] - before).max(axis=-1)
        rank = (given.order[place] - 1) // 2
        for slot in slots:
            assert (difference[slot] > 1e-6) == (rank < -given.order[slot] // 2), (place, slot)


@pytest.mark.parametrize("positions", POSITIONS)
def test_a_slot_knows_the_place_that_it_predicts(positions):
    """The same tokens before it, another place: another prediction."""
    config = tiny("bert", **POSITIONS[positions])
    given = examples()[0]
    batch = batch_of([[given]])
    slot = len(given.inputs) - 1
    moved = batch | {"encoder_positions": batch["encoder_positions"].at[0, slot].add(3)}
    difference = np.abs(logits(config, moved) - logits(config, batch))[0].max(axis=-1)
    np.testing.assert_array_equal(difference > 1e-6, np.arange(20) == slot)
