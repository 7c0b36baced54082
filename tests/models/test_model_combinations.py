"""Choices of a config go together: random combinations of all of them run, mask padding, and look at no
future token."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import compiled, random_batch, random_params, segments_of

from t5x_like.layers.norms import LayerNorm, RMSNorm
from t5x_like.layers.positions import Alibi, Learned, NoPositions, Rope, Sinusoidal, T5Relative
from t5x_like.models.config import HeadTransform
from t5x_like.models.families import uniform
from t5x_like.models.inputs import Tokens
from t5x_like.models.transformer import make_model

POSITIONS = {
    "t5": T5Relative(8, 12), "own tables": T5Relative(8, 12, own_tables=True), "rope": Rope(), "alibi": Alibi(),
    "learned": Learned(16), "sinusoidal": Sinusoidal(), "none": NoPositions(),
}  # fmt: skip
NORMS = {"rms": RMSNorm(), "layer": LayerNorm(), "layer without bias": LayerNorm(bias=False)}
LAYERS = {
    "encoder-decoder": dict(encoder_layers=1, decoder_layers=1),
    "decoder-only": dict(decoder_layers=1),
    "encoder-only": dict(encoder_layers=1),
}
CHOICES = dict(
    shape=st.sampled_from(list(LAYERS)),
    positions=st.sampled_from(list(POSITIONS)),
    norm=st.sampled_from(list(NORMS)),
    placement=st.sampled_from(["pre", "post", "sandwich"]),
    activation=st.sampled_from(["relu", "gelu", "gelu_tanh", "silu"]),
    gated=st.booleans(),
    kv_heads=st.sampled_from([0, 1, 2]),
    bias=st.booleans(),
    qk_norm=st.booleans(),
    scaled=st.booleans(),
    attention_soft_cap=st.sampled_from([0.0, 5.0]),
    logits_soft_cap=st.sampled_from([0.0, 5.0]),
    tied_head=st.booleans(),
    head_bias=st.booleans(),
    head_transform=st.booleans(),
    embedding_norm=st.booleans(),
    scaled_embeddings=st.booleans(),
    window=st.sampled_from([0, 3]),
    scan_layers=st.booleans(),
    remat=st.sampled_from(["none", "dots", "full"]),
    prefix=st.booleans(),
)


def check(chosen: dict) -> None:
    chosen = dict(chosen)
    prefix = 3 if chosen.pop("prefix") and chosen["shape"] == "decoder-only" else 0
    norm = NORMS[chosen.pop("norm")]
    config = uniform(
        vocab_size=12,
        d_model=8,
        d_ff=12,
        heads=2 if chosen["kv_heads"] != 2 else 4,
        head_dim=6,
        positions=POSITIONS[chosen.pop("positions")],
        norm=norm,
        qk_norm=norm if chosen.pop("qk_norm") else None,
        head_transform=HeadTransform("relu", norm, chosen["bias"]) if chosen.pop("head_transform") else None,
        inputs=Tokens(scaled=chosen.pop("scaled_embeddings")),
        **LAYERS[chosen.pop("shape")],
        **chosen,
    )
    structure, specs = make_model(config)
    params = random_params(specs)
    batch = random_batch(config, encoder=8, decoder=7, prefix=prefix)
    side = "decoder" if config.has_decoder else "encoder"
    tokens = batch[f"{side}_tokens"]
    real = segments_of(config, batch) != 0
    in_padding = batch | {f"{side}_tokens": np.where(real, tokens, 5)}
    later = batch | {f"{side}_tokens": tokens.at[:, 4].set((tokens[:, 4] + 1) % config.vocab_size)}
    stacked = [np.stack(pair) for pair in zip(*(b.values() for b in (batch, in_padding, later)), strict=True)]
    together = dict(zip(batch, stacked, strict=True))
    forward = compiled(jax.vmap(lambda b: nnx.merge(structure, params).logits(b)))
    plain, padded, changed = np.asarray(forward(together))
    assert plain.shape == (2, tokens.shape[1], config.vocab_size) and np.all(np.isfinite(plain))
    assert np.std(plain[real]) > 1e-4
    np.testing.assert_allclose(padded[real], plain[real], atol=1e-5)
    moved = np.abs(changed - plain).max(axis=-1) > 1e-5
    assert moved[:, 4].all()
    if config.has_decoder:
        assert not moved[:, :4].any()


QUIETLY = dict(derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])


@settings(max_examples=6, **QUIETLY)
@given(st.fixed_dictionaries(CHOICES))
def test_any_combination_runs_and_keeps_its_mask(chosen):
    check(chosen)


@pytest.mark.proof
@settings(max_examples=600, **QUIETLY)
@given(st.fixed_dictionaries(CHOICES))
def test_many_combinations_run_and_keep_their_masks(chosen):
    check(chosen)
