"""What each objective makes of text: that its examples are as long as it says, and that text
comes back whole out of every example."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

import numpy as np
import pytest
from all_objectives import CORPUS, KINDS, NAMES, OBJECTIVES, TOKENIZER
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_like.core.config import choices, flatten, from_json, structure, to_json
from t5x_like.input_pipeline.config import DataConfig, Shape
from t5x_like.objectives import (
    UL2,
    Autoregressive,
    FillInTheMiddle,
    IidDenoising,
    MaskedLM,
    PermutationLM,
    PrefixLM,
    SpanCorruption,
)
from t5x_like.objectives.base import Example, Objective


def sides(example: Example, shape: Shape) -> tuple[int, ...]:
    """Tokens on each side of a model of ``shape``."""
    if shape == "encoder-decoder":
        return len(example.inputs), len(example.targets)
    if shape == "decoder-only":
        return (len(example.inputs) + len(example.targets),)
    for array in (example.targets, example.weights, example.positions, example.order):
        assert array is None or len(array) == len(example.inputs)
    return (len(example.inputs),)


def test_every_shape_of_model_and_every_objective_is_tested_here():
    assert {shape for _, shape in KINDS} == set(get_args(Shape))
    shipped = {kind for kind in choices(Objective) if kind.__module__.startswith("t5x_like.")}
    assert {type(each) for each in OBJECTIVES} | {UL2} == shipped


@given(st.sampled_from(KINDS), st.integers(8, 200), st.integers(0, 2**32), st.data())
@settings(max_examples=300, deadline=None)
def test_no_example_is_longer_than_lengths_says_and_full_pieces_fit_a_row(kind, input_length, seed, draw):
    objective, shape = kind
    data = DataConfig(CORPUS, input_length)
    full = objective.piece_length(data, shape)
    size = draw.draw(st.integers(objective.minimum_length, full))
    example = objective.example(np.arange(210, 210 + size), np.random.default_rng(seed), TOKENIZER)
    assert np.all(np.array(sides(example, shape)) <= objective.lengths(size, shape))
    assert np.all(np.array(objective.lengths(size, shape)) <= objective.lengths(full, shape))
    assert np.all(np.array(objective.lengths(full, shape)) <= objective.capacity(data, shape))


@pytest.mark.parametrize(("objective", "shape"), KINDS, ids=NAMES)
@pytest.mark.parametrize("input_length", [64, 511, 512])
def test_no_longer_piece_would_fit(objective, shape, input_length):
    data = DataConfig(CORPUS, input_length)
    full = objective.piece_length(data, shape)
    if getattr(objective, "noise_density", 0) != 0.5:  # where T5 keeps the targets from being longer than the inputs
        assert objective.lengths(full + 1, shape)[0] > objective.capacity(data, shape)[0]


@given(
    st.sampled_from([kind for kind in KINDS if not kind[0].joins_documents]),
    st.integers(12, 80),
    st.lists(st.integers(2, 30), max_size=12),
    st.integers(0, 2**32),
)
@settings(max_examples=300, deadline=None)
def test_a_row_of_several_documents_fits_if_each_but_the_first_has_its_added_tokens(kind, input_length, sizes, seed):
    """Each document of a joined piece is an example of its own, with the markers and modes of its own."""
    objective, shape = kind
    data, rng = DataConfig(CORPUS, input_length), np.random.default_rng(seed)
    room, texts = objective.piece_length(data, shape), []
    for size in sizes:
        room -= objective.added_tokens if texts else 0
        if room < 1:
            break
        texts.append(np.arange(210, 210 + min(size, room)))
        texts[-1][-1] = TOKENIZER.eos_id
        room -= len(texts[-1])
    used = [sides(objective.example(text, rng, TOKENIZER), shape) for text in texts]
    if used:
        assert np.all(np.sum(used, axis=0) <= objective.capacity(data, shape))


def text_of(objective: Any, example: Example) -> list[int]:
    """The text that an example was made of, EOS at its end included where that is part of it."""
    tokenizer, inputs, targets = TOKENIZER, example.inputs.tolist(), example.targets.tolist()
    modes = [tokenizer.find(objective.mode)] if getattr(objective, "mode", "") else []
    if modes:
        assert inputs[:1] == modes
        inputs = inputs[1:]
    if isinstance(objective, SpanCorruption | IidDenoising):
        assert inputs.pop() == targets.pop() == tokenizer.eos_id
        spans: dict[int, list[int]] = {}
        for token in targets:
            if token in tokenizer.sentinel_ids:
                spans[token] = []
            else:
                spans[list(spans)[-1]].append(token)
        return [word for token in inputs for word in spans.get(token, [token])]
    if isinstance(objective, FillInTheMiddle) and tokenizer.find("<extra_id_0>") in targets[:1]:
        pre, suf, mid = (targets.index(tokenizer.find(piece)) for piece in objective.pieces)
        assert targets[-1] == tokenizer.eos_id and not inputs
        if suf == 1:
            return targets[mid + 1 : -1] + targets[2:mid]
        return targets[1:suf] + targets[mid + 1 : -1] + targets[suf + 1 : mid]
    if isinstance(objective, MaskedLM):
        assert example.weights is not None
        kept = example.weights == 0
        assert example.inputs[kept].tolist() == example.targets[kept].tolist()
        return targets
    if isinstance(objective, PermutationLM):
        assert example.order is not None and example.positions is not None and example.weights is not None
        content = example.order > 0
        assert np.array_equal(example.weights, ~content) and set(example.inputs[~content]) <= {tokenizer.mask_id}
        text = example.inputs[content]
        assert np.array_equal(example.positions[content], np.arange(len(text)))
        assert np.array_equal(example.targets[~content], text[example.positions[~content]])
        return text.tolist()
    return inputs + targets


@given(
    st.sampled_from(OBJECTIVES),
    st.lists(st.sampled_from([0, 0, *range(210, 230)]), min_size=2, max_size=60),
    st.booleans(),
    st.integers(0, 2**32),
)
@settings(max_examples=400, deadline=None)
def test_every_example_recombines_to_its_text(objective, ids, ends, seed):
    """Id 0 inside a text is a token as any other."""
    ends = ends and not objective.joins_documents
    tokens = np.array([*ids, 1] if ends else ids, np.uint16)
    before = tokens.copy()
    found = text_of(objective, objective.example(tokens, np.random.default_rng(seed), TOKENIZER))
    assert (found[:-1] if found[-1] == 1 else found) == ids
    assert np.array_equal(tokens, before), "the text itself, which may be a file, is not written to"


@given(st.sampled_from(OBJECTIVES), st.integers(2, 50), st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_an_example_is_a_function_of_text_and_seed(objective, size, seed):
    one, two, other = (
        objective.example(np.arange(210, 210 + size), np.random.default_rng(each), TOKENIZER)
        for each in (seed, seed, seed + 1)
    )
    for field in dataclasses.fields(Example):
        mine, same = getattr(one, field.name), getattr(two, field.name)
        assert (mine is None) == (same is None) and (mine is None or np.array_equal(mine, same))
    assert len(other.inputs) + len(other.targets) >= size


@pytest.mark.parametrize("objective", [each for each in OBJECTIVES if not isinstance(each, SpanCorruption)])
def test_an_empty_text_makes_an_empty_example(objective):
    example = objective.example(np.empty(0, np.uint16), np.random.default_rng(0), TOKENIZER)
    text = {*example.inputs.tolist(), *example.targets.tolist()}
    assert text <= {TOKENIZER.eos_id, TOKENIZER.find("[S2S]")}
    assert len(example.targets) <= 1


def test_span_corruption_at_the_lengths_of_t5():
    objective, data = SpanCorruption(), DataConfig(CORPUS, 512)
    objective.check(TOKENIZER, data, "encoder-decoder")
    assert objective.piece_length(data, "encoder-decoder") == 568
    assert objective.capacity(data, "encoder-decoder") == (512, 114)
    assert objective.capacity(DataConfig(CORPUS, 512, 128), "encoder-decoder") == (512, 128)
    example = objective.example(np.arange(210, 778), np.random.default_rng(0), TOKENIZER)
    assert len(example.inputs) == 512 and len(example.targets) == 114 and example.weights is None


def test_span_corruption_in_one_sequence():
    """The text, two sentinels for each span and two EOS."""
    objective, data = SpanCorruption(), DataConfig(CORPUS, 512)
    objective.check(TOKENIZER, data, "decoder-only")
    assert objective.capacity(data, "decoder-only") == (512,)
    assert objective.extras("decoder-only") == ("decoder_prefix",) and objective.extras("encoder-decoder") == ()
    piece = objective.piece_length(data, "decoder-only")
    example = objective.example(np.arange(210, 210 + piece), np.random.default_rng(0), TOKENIZER)
    spans = sum(token in TOKENIZER.sentinel_ids for token in example.inputs.tolist())
    assert piece + 2 * spans + 2 in (511, 512) and len(example.inputs) + len(example.targets) == piece + 2 * spans + 2


def test_mode_tokens_stand_before_the_inputs():
    rng = np.random.default_rng(0)
    assert SpanCorruption(mode="[NLG]").example(np.arange(210, 250), rng, TOKENIZER).inputs[0] == 205
    example = PrefixLM("[S2S]").example(np.arange(210, 250), rng, TOKENIZER)
    assert example.inputs[0] == 206 and example.inputs.dtype == np.int32
    data = DataConfig(CORPUS, 512)
    assert SpanCorruption(mode="[NLU]").capacity(data, "encoder-decoder")[0] == 512
    assert PrefixLM("[S2S]").piece_length(data, "decoder-only") == 511
    assert PrefixLM("[S2S]").piece_length(data, "encoder-decoder") == 512
    assert PrefixLM("[S2S]").piece_length(DataConfig(CORPUS, 512, 100), "encoder-decoder") == 101


def test_a_prefix_of_a_single_token_predicts_nothing():
    alone = PrefixLM().example(np.arange(10, 11), np.random.default_rng(0), TOKENIZER)
    assert (len(alone.inputs), len(alone.targets)) == (1, 0)
    assert PrefixLM().piece_length(DataConfig(CORPUS, 64, 32), "encoder-decoder") == 33


def test_autoregression_predicts_every_token():
    example = Autoregressive().example(np.arange(5), np.random.default_rng(0), TOKENIZER)
    assert example.targets.tolist() == [0, 1, 2, 3, 4] and not len(example.inputs)


def test_the_loss_of_infilling_may_be_on_the_middle_alone():
    tokens = np.append(np.arange(210, 250), 1)
    for spm_rate in (0.0, 1.0):
        for seed in range(20):
            example = FillInTheMiddle(1.0, spm_rate, loss_on="middle").example(
                tokens, np.random.default_rng(seed), TOKENIZER
            )
            whole = FillInTheMiddle(1.0, spm_rate).example(tokens, np.random.default_rng(seed), TOKENIZER)
            assert whole.weights is None and np.array_equal(whole.targets, example.targets)
            assert example.weights is not None
            predicted = example.targets[example.weights > 0].tolist()
            rest = example.targets[example.weights == 0].tolist()
            assert predicted[-1] == 1 and set(rest) >= {202, 201, 200}
            # What is not predicted has a hole exactly where the middle was.
            left = [token for token in rest if token >= 210]
            assert sorted(left + predicted[:-1]) == list(range(210, 250))
            assert predicted[:-1] == list(range(min(predicted[:-1], default=0), max(predicted[:-1], default=-1) + 1))
    plain = FillInTheMiddle(0.0, loss_on="middle").example(tokens, np.random.default_rng(0), TOKENIZER)
    assert plain.weights is None and plain.targets.tolist() == tokens.tolist()


def test_permutation_by_hand():
    """Six tokens, the last two of the order predicted in slots behind them."""
    example = PermutationLM(2 / 6).example(np.arange(210, 216), np.random.default_rng(3), TOKENIZER)
    ranks = (example.order[:6] - 1) // 2
    last = np.flatnonzero(ranks >= 4)
    assert sorted(ranks.tolist()) == [0, 1, 2, 3, 4, 5]
    assert example.inputs.tolist() == [210, 211, 212, 213, 214, 215, 203, 203]
    assert example.positions.tolist() == [0, 1, 2, 3, 4, 5, *last]
    assert example.targets[6:].tolist() == [210 + last[0], 210 + last[1]]
    assert example.weights.tolist() == [0, 0, 0, 0, 0, 0, 1, 1]
    assert example.order[6:].tolist() == [-2 * ranks[last[0]], -2 * ranks[last[1]]]
    data = DataConfig(CORPUS, 512)
    assert PermutationLM().piece_length(data, "encoder-only") == 439 and 439 + 439 // 6 == 512
    assert PermutationLM(1 / 49).lengths(49, "encoder-only") == (50,)


ULTIMATE = [(588, 100), (766, 512), (908, 512), (600, 92), (1006, 512)]


def test_ul2_at_its_published_lengths():
    """Without mode tokens; (8, .15), (3, .5), (8, .5), (64, .15), (64, .5) in reference order."""
    data = DataConfig(CORPUS, 512)
    bare = [dataclasses.replace(each, mode="") for each in UL2().denoisers]
    found = [
        (each.piece_length(data, "encoder-decoder"), each.capacity(data, "encoder-decoder")[1])
        for each in bare
        if isinstance(each, SpanCorruption)
    ]
    assert found == [(568, 114), *ULTIMATE]


@pytest.mark.parametrize("shape", UL2.shapes)
def test_ul2_mixes_seven_denoisers_evenly(shape):
    objective, data = UL2(), DataConfig(CORPUS, 512)
    objective.check(TOKENIZER, data, shape)
    streams = objective.streams()
    assert [rate for rate, _ in streams] == [1.0] * 7
    assert [each.mode for _, each in streams] == ["[NLU]"] * 2 + ["[S2S]"] + ["[NLG]"] * 4
    assert objective.capacity(data, shape) == ((512, 512) if shape == "encoder-decoder" else (512,))
    for _, each in streams:
        assert each.streams() == ((1.0, each),)
        assert each.extras(shape) == objective.extras(shape)
        lengths = each.lengths(each.piece_length(data, shape), shape)
        assert np.all(np.array(lengths) <= objective.capacity(data, shape))
        assert np.all(np.array(lengths) <= objective.lengths(each.piece_length(data, shape), shape))
    with pytest.raises(TypeError, match="streams"):
        objective.example(np.arange(20), np.random.default_rng(0), TOKENIZER)
    assert UL2(rates=(1, 1, 7, 1, 1, 1, 1)).streams()[2][0] == 7


def test_prompts_end_as_the_inputs_of_training_do():
    for objective in (SpanCorruption(), IidDenoising()):
        assert objective.prompt([210, 211], TOKENIZER) == [210, 211, 1]
    assert PrefixLM().prompt([210], TOKENIZER) == Autoregressive().prompt([210], TOKENIZER) == [210]
    modes = {205: [205, 210, 1], 206: [206, 210], 204: [204, 210, 1], 211: [211, 210]}
    for first, wanted in modes.items():
        assert UL2().prompt([first, 210], TOKENIZER) == wanted
    assert UL2().prompt([], TOKENIZER) == []


@pytest.mark.parametrize("objective", [*OBJECTIVES, UL2(), UL2((PrefixLM(), SpanCorruption()), (0.5, 2.0))])
def test_objectives_go_to_json_and_back(objective):
    again = from_json(type(objective), to_json(objective))
    assert again == objective and hash(again) == hash(objective) and flatten(again) == flatten(objective)
    assert structure(Objective, type(objective).__name__) == type(objective)()


def test_configs_are_plain_data():
    assert dataclasses.asdict(SpanCorruption()) == {"noise_density": 0.15, "mean_span_length": 3.0, "mode": ""}
    assert SpanCorruption() == SpanCorruption(0.15, 3.0)
    with pytest.raises(TypeError, match="does not say"):
        Objective().check(TOKENIZER, DataConfig(CORPUS, 64), "decoder-only")


@given(st.sampled_from([0.142857, 0.333333, 0.111111, 0.1666666, 1 / 6]), st.lists(st.integers(1, 30), min_size=1))
@settings(max_examples=100, deadline=None)
def test_documents_of_a_row_need_no_more_places_of_prediction_than_their_sum(predicted, documents):
    objective = PermutationLM(predicted)
    apart = sum(objective.lengths(length, "encoder-only")[0] for length in documents)
    assert apart <= objective.lengths(sum(documents), "encoder-only")[0]
