"""A strategy of a user's own, beam search, over the state of decoding alone: a small class, no cache or mask in it."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from tiny_models import built, compiled, tiny
from tiny_runs import quick_compiling, tiny_run  # noqa: F401

from t5x_like.core.loading import load_module
from t5x_like.decode.generate import generate
from t5x_like.decode.sample import Sampling
from t5x_like.train.opened import open_run
from t5x_like.train.run import train

V, PROMPTS = 12, [[5, 9, 3], [2]]


@pytest.fixture
def Beam(tmp_path):
    """The class, from a file in a folder outside the package."""
    return load_module(Path(shutil.copy(Path(__file__).parent / "own" / "beam.py", tmp_path))).Beam


@pytest.mark.parametrize("family", ["llama", "t5_1_1"])
def test_a_beam_as_wide_as_the_vocabulary_finds_the_likeliest_pair(family, Beam):
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


@pytest.mark.usefixtures("quick_compiling")
def test_a_trained_run_writes_by_it(Beam, tmp_path):
    train(tiny_run("llama", "train.steps=2"), tmp_path / "run")
    opened = open_run(tmp_path / "run")
    prompts = ["a quick", "dog"]
    assert opened.generate(prompts, Beam(1, 4)) == opened.generate(prompts, Sampling(4))
    assert len(opened.generate(prompts, Beam(3, 4))) == 2
