"""What attention must not let through, for every family: padding, other examples of a packed row, the future; and
what it must: the prefix, and the encoder's whole text."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import DECODING, FAMILIES, built, logits_function, random_batch, segments_of, tiny

PREFIX = {"prefix_lm": 4}


def logits(config, batch):
    return np.asarray(logits_function(config)(built(config)[2], batch))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_stands_in_padding_does_not_matter(family):
    config = tiny(family)
    batch = random_batch(config, prefix=PREFIX.get(family, 0))
    other = dict(batch)
    for side in ("encoder", "decoder"):
        if f"{side}_tokens" in batch:
            other[f"{side}_tokens"] = jnp.where(batch[f"{side}_segments"] == 0, 7, batch[f"{side}_tokens"])
            assert np.any(other[f"{side}_tokens"] != batch[f"{side}_tokens"])
    real = segments_of(config, batch) != 0
    one, two = logits(config, batch), logits(config, other)
    np.testing.assert_array_equal(one[real], two[real])
    assert np.any(one[~real] != two[~real])  # the tokens were looked at
    assert np.all(np.isfinite(one))


LENGTHS = {"encoder": (4, 3, 5), "decoder": (5, 2, 4)}


def packed(config, prefix: bool):
    """Four rows: three examples with padding behind them, then each of the three alone with padding behind it."""
    numbers = np.random.default_rng(3)
    batch = {}
    for side, sizes in LENGTHS.items():
        if side not in config.shape:
            continue
        columns = sum(sizes) + 2
        names = ("tokens", "segments", "positions", *(("prefix",) if side == "decoder" and prefix else ()))
        arrays = {name: np.zeros((4, columns), np.int32) for name in names}
        start = 0
        for i, size in enumerate(sizes):
            tokens = numbers.integers(1, config.vocab_size, size)
            for row, first, segment in ((0, start, i + 1), (i + 1, 0, 1)):
                place = (row, slice(first, first + size))
                arrays["tokens"][place], arrays["segments"][place] = tokens, segment
                arrays["positions"][place] = np.arange(size)
                if "prefix" in arrays:
                    arrays["prefix"][place] = np.arange(size) < 2 + (i == 0)
            start += size
        batch |= {f"{side}_{name}": jnp.asarray(array) for name, array in arrays.items()}
    return batch


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_is_unpacked(family):
    config = tiny(family)
    got = logits(config, packed(config, family in PREFIX))
    start = 0
    for i, size in enumerate(LENGTHS["decoder" if config.has_decoder else "encoder"]):
        np.testing.assert_allclose(got[0, start : start + size], got[i + 1, :size], atol=2e-5)
        assert np.std(got[i + 1, :size]) > 0.1
        start += size


@pytest.mark.parametrize("family", DECODING)
def test_causality_and_what_is_seen(family):
    """A changed token changes its own column and later ones; one inside a prefix changes all columns of its row."""
    config = tiny(family)
    prefix = PREFIX.get(family, 0)
    batch = random_batch(config, prefix=prefix)
    before = logits(config, batch)
    for column in (2, 6):
        tokens = batch["decoder_tokens"].at[0, column].set((batch["decoder_tokens"][0, column] + 1) % config.vocab_size)
        after = logits(config, batch | {"decoder_tokens": tokens})
        changed = np.abs(after - before).max(axis=-1) > 1e-6
        first = 0 if column < prefix else column
        assert not changed[1].any()
        np.testing.assert_array_equal(changed[0], np.arange(9) >= first)


@pytest.mark.parametrize("family", ["t5_1_1", "bert"])
def test_every_encoder_token_reaches_every_output(family):
    config = tiny(family)
    batch = random_batch(config)
    before = logits(config, batch)
    for column in (0, 7):
        tokens = batch["encoder_tokens"].at[1, column].set((batch["encoder_tokens"][1, column] + 1) % config.vocab_size)
        after = logits(config, batch | {"encoder_tokens": tokens})
        changed = np.abs(after - before).max(axis=-1) > 1e-6
        assert changed[1][segments_of(config, batch)[1] != 0].all() and not changed[0].any()


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_sliding_window(family):
    """With two layers, a token is felt at most two windows away, and exactly that far."""
    config = tiny(family, window=2)
    side = "decoder" if config.has_decoder else "encoder"
    batch = random_batch(config, rows=1, encoder=15, decoder=15)
    before = logits(config, batch)
    tokens = batch[f"{side}_tokens"].at[0, 6].set((batch[f"{side}_tokens"][0, 6] + 1) % config.vocab_size)
    after = logits(config, batch | {f"{side}_tokens": tokens})
    changed = np.abs(after - before)[0].max(axis=-1) > 1e-6
    first = 6 if config.has_decoder else 2
    np.testing.assert_array_equal(changed, (np.arange(15) >= first) & (np.arange(15) <= 10))


@pytest.mark.parametrize("family", ["transformer_2017", "gpt2", "llama", "bert"])
def test_given_positions_are_the_ones_used(family):
    config = tiny(family)
    side = "decoder" if config.has_decoder else "encoder"
    batch = random_batch(config)
    tokens = batch[f"{side}_tokens"]
    counted = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    np.testing.assert_allclose(logits(config, batch | {f"{side}_positions": counted}), logits(config, batch), atol=1e-6)
    assert np.abs(logits(config, batch) - logits(config, batch | {f"{side}_positions": counted[:, ::-1]})).max() > 1e-3


def test_rows_without_segments_are_whole_examples():
    config = tiny("t5_1_1")
    batch = random_batch(config, rows=1)  # the first row has no padding
    bare = {name: value for name, value in batch.items() if "segments" not in name}
    np.testing.assert_allclose(logits(config, bare), logits(config, batch), atol=1e-5)


def test_logits_of_bfloat16_are_float32_and_near():
    config = tiny("t5_1_1", dtype="bfloat16")
    batch = random_batch(config)
    got, wanted = logits(config, batch), logits(tiny("t5_1_1"), batch)
    assert got.dtype == np.float32
    error = np.abs(got - wanted)[segments_of(config, batch) != 0]
    assert 0 < np.mean(error) < 0.05 * np.std(wanted)


def test_tied_scaled_and_capped_logits():
    fields = dict(tied_head=True, scale_tied_logits=True)
    config = tiny("llama", **fields)
    batch = random_batch(config)
    params = built(config)[2]
    raw = logits(tiny("llama", tied_head=True), batch)
    np.testing.assert_allclose(logits(config, batch), raw / 4, rtol=1e-4, atol=1e-5)  # sqrt(16)
    assert "output_head" not in params
    capped = logits(tiny("llama", logits_soft_cap=0.5, **fields), batch)
    np.testing.assert_allclose(capped, 0.5 * np.tanh(raw / 4 / 0.5), rtol=1e-4, atol=1e-5)
    assert jax.tree.structure(params) == jax.tree.structure(built(tiny("llama", logits_soft_cap=0.5, **fields))[2])
