"""Generation with a cache: greedy is the repeated argmax of full forward passes, for every kind of positions, an
encoder and a bidirectional prefix; rows do not see each other; EOS ends a row; sampling repeats with its seed."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from flax import nnx
from tiny_models import built, logits_function, tiny

from t5x_like.core.errors import UserError
from t5x_like.decode.generate import PIECE, generate
from t5x_like.decode.sample import Sampling

NEW, LENGTH = 7, 24
PROMPTS = [[5, 9, 17, 3, 30], [21], [8, 8, 2, 33, 12, 39, 6, 1, 14, 25, 7]]
NO_EOS = 1_000  # an id that no model writes
MORE = {  # a head of its own: random models with a tied one say their last word again and again
    "gpt2": dict(tied_head=False),
    "transformer_2017": dict(tied_head=False, encoder_layers=1),
    "t5_1_1": dict(encoder_layers=1),
}


def config_of(family: str):
    if family == "window":
        return tiny("llama", window=3)
    return tiny(family, **MORE.get(family, {}))


GREEDY = Sampling(NEW)


@functools.lru_cache(maxsize=16)
def binder(config):
    structure = built(config)[0]
    return lambda params: nnx.merge(structure, params)


def write(family: str, prompts, sampling: Sampling = GREEDY, eos_id: int = NO_EOS, **more) -> list[list[int]]:
    config = config_of(family)
    params, prefix = more.pop("params", built(config)[2]), family == "prefix_lm"
    return generate(
        binder(config), config, params, prompts, sampling, eos_id=eos_id, bidirectional_prompt=prefix, **more
    )


def next_tokens(family: str, prompts, written) -> list[np.ndarray]:
    """Logits of each row's next token from one full forward pass, without a cache, padded on the right."""
    config, rows = config_of(family), len(prompts)
    batch = {name: np.zeros((rows, LENGTH), np.int32) for name in ("decoder_tokens", "decoder_segments")}
    if config.has_encoder:
        batch |= {name: np.zeros((rows, LENGTH), np.int32) for name in ("encoder_tokens", "encoder_segments")}
    if family == "prefix_lm":
        batch["decoder_prefix"] = np.zeros((rows, LENGTH), np.int32)
    ends = []
    for row, (prompt, new) in enumerate(zip(prompts, written, strict=True)):
        text = [0, *new] if config.has_encoder else [0, *prompt, *new]
        batch["decoder_tokens"][row, : len(text)] = text
        batch["decoder_segments"][row, : len(text)] = 1
        if config.has_encoder:
            batch["encoder_tokens"][row, : len(prompt)] = prompt
            batch["encoder_segments"][row, : len(prompt)] = 1
        if family == "prefix_lm":
            batch["decoder_prefix"][row, : 1 + len(prompt)] = 1
        ends.append(len(text) - 1)
    logits = np.asarray(logits_function(config)(built(config)[2], batch))
    return [logits[row, end] for row, end in enumerate(ends)]


def by_full_forwards(family: str, prompts) -> list[list[int]]:
    written: list[list[int]] = [[] for _ in prompts]
    for _ in range(NEW):
        for row, logits in zip(written, next_tokens(family, prompts, written), strict=True):
            row.append(int(np.argmax(logits)))
    return written


@pytest.mark.parametrize(
    "family",
    ["t5_1_1", "llama", "prefix_lm"]
    + [pytest.param(name, marks=pytest.mark.slow) for name in ("gpt2", "alibi", "window", "transformer_2017", "umt5")],
)
def test_greedy_is_the_repeated_argmax_of_full_forwards(family):
    """Prompts of unequal lengths in one batch, where a row alone is the reference."""
    found = write(family, PROMPTS)
    assert found == by_full_forwards(family, PROMPTS)
    assert len({tuple(row) for row in found}) == 3  # the prompt is heard
    assert max(len(set(row)) for row in found) > 2  # or a constant answer would pass


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "t5_1_1", "prefix_lm"])
def test_a_prompt_in_a_batch_gets_the_answer_that_it_gets_alone(family):
    assert write(family, PROMPTS) == [write(family, [prompt])[0] for prompt in PROMPTS]


def test_eos_ends_a_row_and_is_not_returned():
    found = write("llama", PROMPTS)
    row, place = next((r, n) for r in range(3) for n in range(2, NEW) if found[r][n] not in found[r][:n])
    end = found[row][place]
    wanted = [tokens[: tokens.index(end)] if end in tokens else tokens for tokens in found]
    assert write("llama", PROMPTS, eos_id=end) == wanted
    assert len(wanted[row]) == place < NEW


def test_sampling_repeats_with_its_seed_and_stays_within_top_k():
    hot = Sampling(NEW, temperature=3.0, top_k=4)
    one, again, other = (write("llama", PROMPTS, hot, seed=seed) for seed in (1, 1, 2))
    assert one == again != other
    assert one != write("llama", PROMPTS)
    for place in range(NEW):  # each token is among the 4 most likely after those before it
        logits = next_tokens("llama", PROMPTS, [row[:place] for row in one])
        for row, scores in zip(one, logits, strict=True):
            assert row[place] in np.argsort(scores)[-4:]


@pytest.mark.slow
def test_a_very_low_temperature_or_top_p_is_greedy():
    greedy = write("llama", PROMPTS)
    assert write("llama", PROMPTS, Sampling(NEW, temperature=1e-4)) == greedy
    assert write("llama", PROMPTS, Sampling(NEW, temperature=1.0, top_p=1e-6)) == greedy


def test_no_prompt_at_all_and_an_empty_one():
    assert write("llama", []) == []
    assert write("llama", [[], PROMPTS[0], PROMPTS[2]])[1] == write("llama", PROMPTS)[0]
    assert write("llama", [[], [], []])[0] == by_full_forwards("llama", [[]])[0]


def test_what_cannot_be_asked():
    config = tiny("bert")
    params = built(config)[2]
    with pytest.raises(UserError, match="encoder-only writes no text"):
        generate(binder(config), config, params, PROMPTS, Sampling(), eos_id=1)
    with pytest.raises(UserError, match="prompt: is empty"):
        write("t5_1_1", [[4], []])
    with pytest.raises(UserError, match="model.decoder.positions.length: 32 rows for a length of 36"):
        write("gpt2", [[4] * 29])
    nan, far = float("nan"), float("inf")
    for wrong in (
        dict(max_new_tokens=0), dict(temperature=-1.0), dict(temperature=nan), dict(temperature=far),
        dict(temperature=1e-40), dict(top_k=-1), dict(top_k=2**31), dict(top_p=0.0), dict(top_p=1e-40), dict(top_p=1.1),
        dict(top_p=nan),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"^{next(iter(wrong))}: got"):
            Sampling(**wrong)


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(NEW, temperature=1e5), Sampling(NEW, 1e5, 30, 0.99)])
def test_ids_of_a_padded_table_are_never_written(sampling):
    """Of the table's 40 rows the tokenizer has 5."""
    written = write("llama", [[4], [3, 2]], sampling, vocab_size=5)
    assert all(len(row) == NEW and max(row) < 5 for row in written)
    assert max(map(max, write("llama", [[4], [3, 2]], sampling))) >= 5


@pytest.mark.parametrize("seed", [-1, 2**32, 2**63])
def test_seeds_that_would_be_others(seed):
    """The device's keys have 32 bits: 2^32 would draw as 0."""
    with pytest.raises(UserError, match=f"seed: got {seed}"):
        write("llama", [[4]], seed=seed)


@pytest.mark.parametrize("family, eos_id", [("llama", NO_EOS), ("t5_1_1", 20)])
@pytest.mark.parametrize("sampling", [Sampling(21), Sampling(21, temperature=1.5, top_k=30)])
def test_asked_whether_to_stop_on_the_way_it_writes_the_same(family, eos_id, sampling):
    """Three pieces are asked about, the last of four tokens; rows that have all ended are asked about no more."""
    asked: list[int] = []
    whole = write(family, PROMPTS, sampling, eos_id)
    assert write(family, PROMPTS, sampling, eos_id, stop=lambda: bool(asked.append(1))) == whole
    longest = min(max(map(len, whole)) + 1, 21)
    assert len(asked) == -(-(longest - 1) // PIECE)
    count = iter((False, True))
    assert write(family, PROMPTS, sampling, eos_id, stop=lambda: next(count)) == [row[: 1 + PIECE] for row in whole]
