"""How documents fall into rows: every token once, at any shift, in memory and on disk."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import t5x_like.input_pipeline.batches.row_table as row_table
from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.batches.row_table import RowPacking
from t5x_like.input_pipeline.batches.rows import DocumentRows, JoinedRows
from t5x_like.input_pipeline.prepare.token_cache import TokenSplit

PACKINGS = (None, "first_fit", "best_fit")


def split_of(lengths) -> TokenSplit:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return TokenSplit("train", np.arange(10, 10 + offsets[-1], dtype=np.uint16), offsets)


def packing(rule, size, added=0):
    return None if rule is None else RowPacking(rule, lambda n: (n + added,), (size + added,))


def every_row(rows, shift=0):
    """The texts of each row; checks that ``lengths`` tells how many tokens each has."""
    taken = [[text for piece in rows.pieces(row, shift) for text in piece.texts] for row in range(rows.count)]
    assert [sum(map(len, texts)) for texts in taken] == rows.lengths(np.arange(rows.count), shift).tolist()
    return taken


_lengths = st.lists(st.integers(1, 30), min_size=1, max_size=12)


@given(_lengths, st.integers(2, 25), st.integers(0, 24), st.booleans(), st.integers(0, 3))
@settings(max_examples=200, deadline=None)
def test_joined_rows_hold_every_token_once_at_any_shift(lengths, size, shift, with_eos, reserved):
    split, eos_id = split_of(lengths), 1 if with_eos else None
    rows = JoinedRows(split, size, 1, eos_id, reserved if with_eos else 0)
    taken = every_row(rows, shift % size)
    tokens = [token for texts in taken for text in texts for token in text.tolist()]
    assert sorted(token for token in tokens if token != 1) == list(range(10, 10 + sum(lengths)))
    assert tokens.count(1) == (len(lengths) if with_eos else 0) and len(tokens) == rows.tokens
    assert rows.left_out == 0 and all(text.size and text.dtype == np.int32 for texts in taken for text in texts)
    if with_eos:  # with the reserved places of a text in front of each, a row is full at most
        assert all(sum(len(text) + reserved for text in texts) <= size + reserved for texts in taken)


@given(_lengths, st.integers(2, 25), st.booleans(), st.sampled_from(PACKINGS))
@settings(max_examples=200, deadline=None)
def test_document_rows_hold_every_token_once(lengths, size, with_eos, rule):
    rows = DocumentRows(split_of(lengths), size, 1, 1 if with_eos else None, packing(rule, size))
    taken = every_row(rows)
    tokens = [token for texts in taken for text in texts for token in text.tolist()]
    assert sorted(token for token in tokens if token != 1) == list(range(10, 10 + sum(lengths)))
    assert tokens.count(1) == (len(lengths) if with_eos else 0) and len(tokens) == rows.tokens
    assert all(sum(map(len, texts)) <= size for texts in taken)
    numbers = [(piece.number, piece.part) for row in range(rows.count) for piece in rows.pieces(row, 0)]
    assert len(set(numbers)) == len(numbers), "random numbers are drawn by them"
    if rule is None:
        assert numbers == sorted(numbers) and all(len(texts) == 1 for texts in taken)


def test_what_is_too_short_for_an_example_is_left_out_and_counted():
    split = split_of([1, 25, 1])
    rows = DocumentRows(split, 24, 2, None)
    assert rows.left_out == 3 and rows.tokens == 24 and rows.lengths(np.arange(1), 0).tolist() == [24]
    reserved = JoinedRows(split, 15, 2, 1, 1)
    assert sum(map(len, sum(every_row(reserved), []))) == reserved.tokens == 30 and reserved.left_out == 0
    assert DocumentRows(split_of([]), 5, 1, None).count == 0
    joined = JoinedRows(split, 13, 2, None)
    assert joined.left_out == 1 and joined.count == 2 and joined.tokens == 26


@pytest.mark.parametrize("rule", PACKINGS)
def test_a_table_on_disk_is_the_table_in_memory(tmp_path, monkeypatch, rule):
    lengths = np.random.default_rng(0).integers(1, 40, 300)
    in_memory = split_of(lengths)
    on_disk = TokenSplit("train", in_memory.tokens, in_memory.offsets, tmp_path)
    monkeypatch.setattr(row_table, "_WINDOW", 64)  # several windows
    arguments = (16, 1, 1, packing(rule, 16))
    expected = every_row(DocumentRows(in_memory, *arguments))
    monkeypatch.setattr(row_table, "_IN_MEMORY", 10)
    found = every_row(DocumentRows(on_disk, *arguments))
    assert [[t.tolist() for t in row] for row in found] == [[t.tolist() for t in row] for row in expected]

    (folder,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    made = (folder / "document").stat().st_mtime_ns
    every_row(DocumentRows(on_disk, *arguments))
    assert (folder / "document").stat().st_mtime_ns == made, "made once"
    DocumentRows(on_disk, 17, 1, 1, packing(rule, 17))
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 2, "another length is another table"
    assert json.loads((folder / "table.json").read_text())["rows"] == len(expected)

    (folder / "part").write_bytes(b"")
    with pytest.raises(UserError, match="part: 0 bytes"):
        DocumentRows(on_disk, *arguments)


def test_a_cache_that_cannot_be_written_has_its_table_in_memory(tmp_path, monkeypatch):
    split = split_of([5, 9])
    shared = TokenSplit("train", split.tokens, split.offsets, tmp_path)
    monkeypatch.setattr(row_table, "_IN_MEMORY", 1)
    monkeypatch.setattr(row_table.os, "access", lambda *_: False)  # root may write anywhere
    assert DocumentRows(shared, 4, 1, None).count == 5 and not any(tmp_path.iterdir())
