"""Which documents are dropped for their quality before they are tokenized. Knows one text at a time, nothing else."""

from __future__ import annotations

import functools
import sys
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

from t5x_like.core.config import Config
from t5x_like.core.errors import UserError

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

    min_characters: int = 0
    max_characters: int = 0
    min_letters: float = 0.0
    max_repeated_lines: float = 1.0
    max_mean_word_length: float = 0.0

    def __post_init__(self):
        for name in ("min_characters", "max_characters", "max_mean_word_length"):
            if getattr(self, name) < 0:
                raise UserError(f"data.corpus.filters.{name}", str(getattr(self, name)), "0 or more")
        for name in ("min_letters", "max_repeated_lines"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"data.corpus.filters.{name}", str(getattr(self, name)), "a share from 0 to 1")

    def drops(self, text: str) -> str:
        """The name of the first rule (a field) that drops ``text``; empty if it is kept."""
        if len(text) < self.min_characters:
            return "min_characters"
        if 0 < self.max_characters < len(text):
            return "max_characters"
        if self.min_letters > 0.0 and share_of_letters(text) < self.min_letters:
            return "min_letters"
        if self.max_repeated_lines < 1.0 and share_of_repeated_lines(text) > self.max_repeated_lines:
            return "max_repeated_lines"
        if self.max_mean_word_length > 0.0 and mean_word_length(text) > self.max_mean_word_length:
            return "max_mean_word_length"
        return ""


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

    return np.fromiter(
        (unicodedata.category(c)[0] in "LM" or c.isspace() for c in map(chr, range(sys.maxunicode + 1))), bool
    )
