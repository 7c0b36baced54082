"""Rows for the three shapes of model: shifts, segments, prefixes, and id 0 as data."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_like.input_pipeline.batches.features import feature_names, make_batch, tokens_in
from t5x_like.objectives.base import Example


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def test_encoder_decoder_golden():
    rows = [[Example(ids(5, 6, 7), ids(8, 9)), Example(ids(4), ids(3, 2, 1))], []]
    batch = make_batch(rows, "encoder-decoder", (6, 7))
    assert tuple(batch) == feature_names("encoder-decoder")
    assert batch["encoder_tokens"].tolist() == [[5, 6, 7, 4, 0, 0], [0] * 6]
    assert batch["encoder_segments"].tolist() == [[1, 1, 1, 2, 0, 0], [0] * 6]
    assert batch["encoder_positions"].tolist() == [[0, 1, 2, 0, 0, 0], [0] * 6]
    assert batch["decoder_tokens"].tolist() == [[0, 8, 0, 3, 2, 0, 0], [0] * 7]
    assert batch["decoder_segments"].tolist() == [[1, 1, 2, 2, 2, 0, 0], [0] * 7]
    assert batch["decoder_positions"].tolist() == [[0, 1, 0, 1, 2, 0, 0], [0] * 7]
    assert batch["targets"].tolist() == [[8, 9, 3, 2, 1, 0, 0], [0] * 7]
    assert batch["weights"].tolist() == [[1, 1, 1, 1, 1, 0, 0], [0] * 7]
    for name, array in batch.items():
        assert array.dtype == (np.float32 if name == "weights" else np.int32)


def test_decoder_only_with_a_prefix_golden():
    rows = [[Example(ids(5, 6), ids(7, 8)), Example(ids(), ids(3, 4)), Example(ids(9), ids())]]
    batch = make_batch(rows, "decoder-only", (8,), extras=("decoder_prefix",))
    assert tuple(batch) == feature_names("decoder-only", ("decoder_prefix",))
    assert batch["decoder_tokens"].tolist() == [[0, 5, 6, 7, 0, 3, 0, 0]]
    assert batch["targets"].tolist() == [[5, 6, 7, 8, 3, 4, 9, 0]]
    assert batch["decoder_segments"].tolist() == [[1, 1, 1, 1, 2, 2, 3, 0]]
    assert batch["decoder_positions"].tolist() == [[0, 1, 2, 3, 0, 1, 0, 0]]
    assert batch["weights"].tolist() == [[0, 0, 1, 1, 1, 1, 0, 0]]
    assert batch["decoder_prefix"].tolist() == [[1, 1, 1, 0, 0, 0, 1, 0]]


def test_encoder_only_golden():
    weights = np.array([0, 1, 0], np.float32)
    batch = make_batch([[Example(ids(5, 4, 7), ids(5, 6, 7), weights)]], "encoder-only", (4,))
    assert tuple(batch) == feature_names("encoder-only")
    assert batch["encoder_tokens"].tolist() == [[5, 4, 7, 0]] and batch["targets"].tolist() == [[5, 6, 7, 0]]
    assert batch["weights"].tolist() == [[0, 1, 0, 0]]


def test_encoder_only_in_a_given_order_golden():
    """Two examples that bring positions and orders of their own, laid behind one another; padding has order 0."""
    first = Example(ids(5, 6, 9), ids(5, 6, 6), np.array([0, 0, 1], np.float32), ids(0, 1, 1), ids(1, 3, -2))
    second = Example(ids(0, 9), ids(0, 0), np.array([0, 1], np.float32), ids(0, 0), ids(1, 0))
    batch = make_batch([[first, second]], "encoder-only", (6,), extras=("encoder_order",))
    assert tuple(batch) == feature_names("encoder-only", ("encoder_order",))
    assert batch["encoder_positions"].tolist() == [[0, 1, 1, 0, 0, 0]]
    assert batch["encoder_order"].tolist() == [[1, 3, -2, 1, 0, 0]]
    assert batch["encoder_segments"].tolist() == [[1, 1, 1, 2, 2, 0]]
    assert batch["targets"].tolist() == [[5, 6, 6, 0, 0, 0]] and batch["weights"].tolist() == [[0, 0, 1, 0, 1, 0]]
    assert "encoder_order" not in make_batch([[first]], "encoder-only", (6,))


def test_an_example_that_does_not_fit_is_no_silent_cut():
    with pytest.raises(ValueError, match="row 0 of the encoder has examples of more than 1 tokens"):
        make_batch([[Example(ids(1, 2), ids(3))]], "encoder-decoder", (1, 1))


_example = st.tuples(st.lists(st.integers(0, 9), max_size=6), st.lists(st.integers(0, 9), max_size=6))


@given(st.lists(st.lists(_example, max_size=4), min_size=1, max_size=4), st.booleans())
@settings(max_examples=80, deadline=None)
def test_every_segment_can_be_read_back_whatever_its_ids(rows, decoder_only):
    """Ids 0 and empty fields included: segments alone say what is padding."""
    examples = [[Example(ids(*inputs), ids(*targets)) for inputs, targets in row] for row in rows]
    if decoder_only:
        batch = make_batch(examples, "decoder-only", (48,), extras=("decoder_prefix",))
    else:
        batch = make_batch(examples, "encoder-decoder", (24, 24))
    for number, row in enumerate(rows):
        for segment, (inputs, targets) in enumerate(row, 1):
            mine = batch["decoder_segments"][number] == segment
            text = inputs + targets if decoder_only else targets
            assert batch["targets"][number][mine].tolist() == text
            assert batch["decoder_tokens"][number][mine].tolist() == [0, *text][: len(text)]
            assert batch["decoder_positions"][number][mine].tolist() == list(range(len(text)))
            expected = [0.0] * len(inputs) + [1.0] * len(targets) if decoder_only else [1.0] * len(targets)
            assert batch["weights"][number][mine].tolist() == expected
            if not decoder_only:
                read = batch["encoder_segments"][number] == segment
                assert batch["encoder_tokens"][number][read].tolist() == inputs
    assert not batch["weights"][batch["decoder_segments"] == 0].any()


@given(st.integers(0, 8), st.integers(0, 8))
@settings(max_examples=60, deadline=None)
def test_no_loss_position_sees_its_own_target_and_the_whole_prefix_is_visible(prefix, suffix):
    """The mask that a prefix LM builds: causal, or both places in the prefix."""
    tokens = ids(*range(10, 10 + prefix + suffix))
    batch = make_batch([[Example(tokens[:prefix], tokens[prefix:])]], "decoder-only", (16,), extras=("decoder_prefix",))
    in_prefix = batch["decoder_prefix"][0].astype(bool)
    same = batch["decoder_segments"][0][:, None] * batch["decoder_segments"][0][None] > 0
    place = np.arange(16)
    visible = same & ((place[:, None] >= place[None]) | (in_prefix[:, None] & in_prefix[None]))
    for target in np.flatnonzero(batch["weights"][0]):
        seen = set(batch["decoder_tokens"][0][visible[target]].tolist())
        assert batch["targets"][0][target] not in seen
        assert set(tokens[:prefix].tolist()) <= seen
    if prefix and suffix:
        assert set(batch["decoder_tokens"][0][in_prefix].tolist()) == {0, *tokens[:prefix].tolist()}
        first = visible[0]
        assert set(tokens[:prefix].tolist()) <= set(batch["decoder_tokens"][0][first].tolist())


def test_counts():
    count = tokens_in(make_batch([[Example(ids(0, 0), ids(0))], []], "encoder-decoder", (4, 3)))
    assert (count.tokens, count.loss_tokens, count.slots) == (3, 1, 14)
