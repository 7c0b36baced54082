"""What each filter measures, on texts whose measures are known."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_like.input_pipeline.config import Filters
from t5x_like.input_pipeline.sources.filters import (
    mean_word_length,
    share_of_letters,
    share_of_repeated_lines,
)


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("abcd", 1.0),
        ("ab12", 0.5),
        ("a b\n", 1.0),
        ("....", 0.0),
        ("", 0.0),
        ("\u0928\u092e\u0938\u094d\u0924\u0947", 1.0),  # Hindi: vowel signs are marks
        ("\u4f60\u597d\uff01", 2 / 3),
        ("\U00020000\U0001f600", 0.5),  # an ideograph and a face
        ("a\ud800", 0.5),  # half a character
    ],
)
def test_share_of_letters(text, share):
    assert share_of_letters(text) == pytest.approx(share)


@settings(deadline=None, max_examples=50)  # the first call makes a table
@given(st.text())
def test_letters_are_counted_as_python_does_where_there_are_no_marks(text):
    bare = "".join(character for character in text if not unicodedata.category(character).startswith("M"))
    expected = sum(c.isalpha() or c.isspace() for c in bare) / len(bare) if bare else 0.0
    assert share_of_letters(bare) == pytest.approx(expected)


def test_share_of_repeated_lines():
    assert share_of_repeated_lines("a\nb\n\n a\nc\n") == 0.25
    assert share_of_repeated_lines("\n \n") == 0.0
    assert share_of_repeated_lines("x\n" * 10) == pytest.approx(0.9)


def test_mean_word_length():
    assert mean_word_length("a bb  cccccc\n") == 3.0
    assert mean_word_length(" ") == 0.0


@pytest.mark.parametrize(
    ("filters", "text", "rule"),
    [
        (Filters(), "", ""),
        (Filters(min_characters=3), "ab", "min_characters"),
        (Filters(min_characters=3), "abc", ""),
        (Filters(max_characters=3), "abcd", "max_characters"),
        (Filters(max_characters=3), "abc", ""),
        (Filters(min_letters=0.5), "ab123", "min_letters"),
        (Filters(min_letters=0.5), "ab12", ""),
        (Filters(max_repeated_lines=0.3), "a\na\nb", "max_repeated_lines"),
        (Filters(max_repeated_lines=0.3), "a\na\nb\nc", ""),
        (Filters(max_mean_word_length=4), "abcde", "max_mean_word_length"),
        (Filters(max_mean_word_length=4), "abcd", ""),
        (Filters(min_characters=9, min_letters=1.0), "1", "min_characters"),
    ],
)
def test_the_first_rule_that_drops_is_named(filters, text, rule):
    assert filters.drops(text) == rule
