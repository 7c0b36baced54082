"""Rows as text: what is read, what is predicted, and what each stretch of it is, held against the examples they were
made of."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_like.input_pipeline.batches.features import make_batch
from t5x_like.input_pipeline.batches.show import Field, fill, row_summary, show_row
from t5x_like.input_pipeline.tokenizers.bytes import ByteTokenizer
from t5x_like.input_pipeline.tokenizers.sentencepiece import SentencePieceTokenizer
from t5x_like.input_pipeline.tokenizers.training import train_sentencepiece
from t5x_like.objectives import MaskedLM, PermutationLM, SpanCorruption
from t5x_like.objectives.base import Example

BYTES = ByteTokenizer()


@pytest.fixture(scope="module")
def pieces(tmp_path_factory, texts) -> SentencePieceTokenizer:
    path = tmp_path_factory.mktemp("model") / "tiny.model"
    train_sentencepiece(texts, path, 420, "bpe", 20, ("[NLU]",))
    return SentencePieceTokenizer(path, 20, ("[NLU]",))


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def encoded(text: str, tokenizer=BYTES) -> np.ndarray:
    return ids(*tokenizer.encode(text))


def lines(fields: list[Field]) -> list[tuple[int, str, str]]:
    return [(field.segment, field.name, field.text) for field in fields]


def marked(field: Field, role: str) -> list[str]:
    """Texts of one role, neighbours joined."""
    texts, before = [], None
    for stretch in field.stretches:
        if stretch.role == role:
            texts.append(texts.pop() + stretch.text if before == role else stretch.text)
        before = stretch.role
    return texts


def test_an_encoder_decoder_pair_in_two_segments():
    one = Example(encoded("one <extra_id_0> three"), encoded("<extra_id_0>two"))
    other = Example(ids(*encoded("a\\b\n"), 1), ids(1))
    batch = make_batch([[one, other]], "encoder-decoder", (24, 8))
    fields = show_row(batch, 0, BYTES)
    assert lines(fields) == [
        (1, "inputs", "one <extra_id_0> three"),
        (1, "targets", "<extra_id_0>two"),
        (2, "inputs", "a\\\\b\\n</s>"),
        (2, "targets", "</s>"),
    ]
    specials = [stretch.text for field in fields for stretch in field.stretches if stretch.special]
    assert specials == ["<extra_id_0>", "<extra_id_0>", "</s>", "</s>"]
    assert {stretch.role for field in fields for stretch in field.stretches} == {"text"}
    assert row_summary(batch, 0) == "encoder 16 of 24 slots, decoder 5 of 8 slots, loss on 5 targets"


def test_a_prefix_and_what_follows_it():
    rows = [[Example(encoded("ab"), encoded("cd")), Example(encoded("xy"), ids()), Example(ids(), encoded("zz"))]]
    batch = make_batch(rows, "decoder-only", (10,), extras=("decoder_prefix",))
    fields = show_row(batch, 0, BYTES)
    assert lines(fields) == [(1, "prefix", "ab"), (1, "targets", "cd"), (2, "prefix", "xy"), (3, "targets", "zz")]
    assert fields[0].stretches[0].role == "prefix" and fields[1].stretches[0].role == "text"


def test_what_has_no_weight_is_told_apart():
    weights = np.array([0, 0, 1, 1, 0], np.float32)
    (field,) = show_row(make_batch([[Example(ids(), encoded("abcde"), weights)]], "decoder-only", (8,)), 0, BYTES)
    assert field.name == "targets" and field.text == "abcde"
    assert [(each.text, each.role) for each in field.stretches] == [("ab", "faint"), ("cd", "loss"), ("e", "faint")]
    nothing = Example(ids(), encoded("ab"), np.zeros(2, np.float32))
    (field,) = show_row(make_batch([[nothing]], "decoder-only", (8,)), 0, BYTES)
    assert field.name == "no loss" and marked(field, "faint") == ["ab"]


def test_id_0_inside_a_text_is_data_and_padding_is_not_shown():
    batch = make_batch([[Example(ids(0, 100, 2), ids(0))], []], "encoder-decoder", (6, 3))
    assert lines(show_row(batch, 0, BYTES)) == [(1, "inputs", "<pad>a<unk>"), (1, "targets", "<pad>")]
    assert show_row(batch, 1, BYTES) == []
    assert [side.tolist() for side in fill(batch).values()] == [[0.5, 0.0], [pytest.approx(1 / 3), 0.0]]
    for row in (-1, 2):
        with pytest.raises(IndexError):
            show_row(batch, row, BYTES)


def test_masked_tokens_are_marked_in_inputs_and_targets(pieces, texts):
    tokens = ids(*pieces.encode(texts[0])[:48])
    example = MaskedLM().example(tokens, np.random.default_rng(0), pieces)
    assert example.weights is not None
    inputs, targets = show_row(make_batch([[example]], "encoder-only", (64,)), 0, pieces)
    assert targets.text == pieces.decode(tokens.tolist()).replace("\n", "\\n")
    wanted = [pieces.decode([token]).replace("\n", "\\n") for token in tokens[example.weights > 0].tolist()]
    assert "".join(marked(targets, "loss")) == "".join(wanted)
    assert set(marked(inputs, "faint")) == set()
    masks = [stretch for stretch in inputs.stretches if stretch.text == "<mask>"]
    assert masks and len(masks) == (example.inputs == pieces.mask_id).sum()
    assert all(stretch.special and stretch.role == "loss" for stretch in masks)


def test_modes_and_sentinels_are_special(pieces, texts):
    tokens = ids(*pieces.encode(texts[0])[:40])
    example = SpanCorruption(mode="[NLU]").example(tokens, np.random.default_rng(0), pieces)
    inputs, targets = show_row(make_batch([[example]], "encoder-decoder", (64, 64)), 0, pieces)
    marks = [[stretch.text for stretch in field.stretches if stretch.special] for field in (inputs, targets)]
    spans = marks[1][:-1]
    assert spans == ["<extra_id_0>", "<extra_id_1>"]
    assert marks == [["[NLU]", *spans, "</s>"], [*spans, "</s>"]]


def test_text_that_looks_like_a_sentinel_is_text(pieces):
    document = pieces.encode_batch(["see <extra_id_3> there"])[0].astype(np.int32)
    (field,) = show_row(make_batch([[Example(ids(), document)]], "decoder-only", (64,)), 0, pieces)
    assert field.text == "see <extra_id_3> there" and not any(stretch.special for stretch in field.stretches)


def test_a_mask_of_bytes_is_named_only_where_it_is_one():
    masked = Example(ids(248, *encoded("b")), encoded("ab"), np.array([1, 0], np.float32))
    inputs, _ = show_row(make_batch([[masked]], "encoder-only", (4,)), 0, BYTES)
    assert inputs.text == "<mask>b"
    tenth = Example(encoded("a<extra_id_10>"), encoded("<extra_id_10>b"))  # the same id
    assert lines(show_row(make_batch([[tenth]], "encoder-decoder", (4, 4)), 0, BYTES)) == [
        (1, "inputs", "a<extra_id_10>"), (1, "targets", "<extra_id_10>b")
    ]  # fmt: skip


def test_a_random_order_shows_the_text_and_the_targets_in_that_order():
    example = PermutationLM(predicted=0.5).example(encoded("abcdef"), np.random.default_rng(3), BYTES)
    assert example.order is not None and example.positions is not None
    batch = make_batch([[example, example]], "encoder-only", (20,), extras=("encoder_order",))
    fields = show_row(batch, 0, BYTES)
    assert [(field.segment, field.name) for field in fields] == [
        (1, "inputs"), (1, "targets"), (2, "inputs"), (2, "targets")
    ]  # fmt: skip
    assert fields[0].text == fields[2].text == "abcdef"
    rank = {"abcdef"[place]: -order // 2 for place, order in zip(example.positions[6:], example.order[6:], strict=True)}
    assert "".join(marked(fields[0], "loss")) == "".join(sorted(rank))
    assert fields[1].text == " | ".join(sorted(rank, key=lambda letter: rank[letter]))


@given(st.text(max_size=40), st.lists(st.booleans(), max_size=80))
@settings(max_examples=100, deadline=None)
def test_no_text_is_lost_whatever_is_marked(pieces, text, marks):
    """Any text, any weights: the stretches put together are the text, whatever tokens they come apart at."""
    for tokenizer in (pieces, BYTES):
        tokens = ids(*tokenizer.encode(text))
        weights = np.resize(np.array(marks or [True], np.float32), len(tokens))
        if tokenizer is BYTES or not text.isascii():
            weights[:] = 1.0  # a character of several tokens comes apart only where weights differ inside it
        (field, *rest) = show_row(
            make_batch([[Example(ids(), tokens, weights)]], "decoder-only", (max(4, len(tokens)),)), 0, tokenizer
        ) or [Field(1, "targets", [])]
        assert not rest
        wanted = "".join(c if c.isprintable() and c != "\\" else c.encode("unicode_escape").decode() for c in text)
        assert field.text == wanted.replace("\u2581", " " if tokenizer is pieces else "\u2581")
        assert all(stretch.text.isprintable() for stretch in field.stretches)
