"""Which documents are dropped for their quality before they are tokenized. Knows one text at a time, nothing else."""

from __future__ import annotations

import functools
import sys
import unicodedata
from collections.abc import Iterable, Iterator

import numpy as np

from t5x_like.input_pipeline.config import Filters


def dropped_by(filters: Filters, text: str) -> str:
    """The name of the first rule (a field of ``filters``) that drops ``text``; empty if it is kept."""
    if len(text) < filters.min_characters:
        return "min_characters"
    if 0 < filters.max_characters < len(text):
        return "max_characters"
    if filters.min_letters > 0.0 and share_of_letters(text) < filters.min_letters:
        return "min_letters"
    if filters.max_repeated_lines < 1.0 and share_of_repeated_lines(text) > filters.max_repeated_lines:
        return "max_repeated_lines"
    if filters.max_mean_word_length > 0.0 and mean_word_length(text) > filters.max_mean_word_length:
        return "max_mean_word_length"
    return ""


def kept_by(filters: Filters, texts: Iterable[str]) -> Iterator[str]:
    """Yields the texts that no rule drops."""
    if filters == Filters():
        yield from texts
    else:
        yield from (text for text in texts if not dropped_by(filters, text))


def share_of_letters(text: str) -> float:
    """The share of characters that are letters of any script, marks that belong to letters, or white space."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    return float(np.mean(_letters()[codes])) if len(codes) else 0.0


def share_of_repeated_lines(text: str) -> float:
    """The share of non-empty lines that are copies of an earlier one, white space around them aside."""
    lines = [line for line in map(str.strip, text.split("\n")) if line]
    return 1.0 - len(set(lines)) / len(lines) if lines else 0.0


def mean_word_length(text: str) -> float:
    """Mean length in characters of what stands between white space."""
    words = text.split()
    return sum(map(len, words)) / len(words) if words else 0.0


@functools.cache
def _letters() -> np.ndarray:
    """(1,114,112,) bool by code point; takes 0.2 s to make."""
    return np.fromiter(
        (unicodedata.category(c)[0] in "LM" or c.isspace() for c in map(chr, range(sys.maxunicode + 1))), bool
    )
