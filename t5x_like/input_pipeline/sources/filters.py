"""Which documents are dropped for their quality before they are tokenized. Knows one text at a time, nothing else."""

from __future__ import annotations

import functools
import sys
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

from t5x_like.core.config import Config
from t5x_like.core.ranges import NonNegativeFloat, Probability, Size

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Filters(Config, where="data.corpus.filters"):
    """Documents to drop before they are tokenized; the cache's manifest has their number by rule.

    Attributes:
      min_characters, max_characters: bounds of a document's characters; 0 is no limit.
      min_letters: least share of characters that are letters or white space.
      max_repeated_lines: greatest share of non-empty lines that are copies of an earlier one (Rae et al. 2021,
        Gopher, table A1: 0.3).
      max_mean_word_length: greatest mean length of words, in characters (Gopher: 10); 0 is no limit.
    """

    min_characters: Size = 0
    max_characters: Size = 0
    min_letters: Probability = 0.0
    max_repeated_lines: Probability = 1.0
    max_mean_word_length: NonNegativeFloat = 0.0

    def drops(self, text: str) -> str:
        """The name of the first rule (a field) that drops ``text``; empty if it is kept."""
        rules = {
            "min_characters": lambda least: len(text) < least,
            "max_characters": lambda most: 0 < most < len(text),
            "min_letters": lambda least: least > 0.0 and share_of_letters(text) < least,
            "max_repeated_lines": lambda most: most < 1.0 and share_of_repeated_lines(text) > most,
            "max_mean_word_length": lambda most: most > 0.0 and mean_word_length(text) > most,
        }
        return next((name for name, drops in rules.items() if drops(getattr(self, name))), "")


def share_of_letters(text: str) -> float:
    """The share of characters that are letters of any script, marks that belong to letters, or white space."""
    import numpy as np

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
    import numpy as np

    characters = map(chr, range(sys.maxunicode + 1))
    return np.fromiter((unicodedata.category(each)[0] in "LM" or each.isspace() for each in characters), bool)
