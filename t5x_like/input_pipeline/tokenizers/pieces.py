"""What the tokenizers share about text: sentinels in it, where a long one may be cut, where words begin.

Knows strings and ids; must not know any one kind of vocabulary.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import TypeVar

import numpy as np

_Sized = TypeVar("_Sized", bound=Sized)
SENTINEL = re.compile(r"(<extra_id_\d+>)")
# Where a text is cut: before a single space or newline between letters or digits, the one place where no pre-tokenizer
# in use looks at both sides.
_BORDER = re.compile(r"(?<=\w)[ \n](?=\w)")
# Number of borders checked before a text is cut at its limit.
_MOST_QUESTIONS = 100

# Chinese characters, each a word as in BERT (google-research/bert, tokenization.py): scripts without spaces.
_IDEOGRAPHS = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2FA1F))


def sentinel_piece(number: int) -> str:
    """How vocabularies spell the sentinel with this number."""
    return f"<extra_id_{number}>"


def cut_text(text: str, wanted: int, most: int, resume: Callable[[str, int], int | None]) -> list[str]:
    """``text`` in chunks of about ``wanted`` characters and never more than ``most``.

    Args:
      text: text of any length.
      wanted: number of characters after which a chunk ends at the first good border.
      most: largest number of characters of a chunk without a good border; ids then differ from those of the uncut text.
      resume: where the next chunk begins if this one ends at a border (the place of a space or newline), such that the
        ids of both, joined, are those of the uncut text; None where there is no such place.
    """
    chunks, start = [], 0
    while len(text) - start > wanted:
        stop = start + most
        end, begin = min(stop, len(text)), stop
        borders = _BORDER.finditer(text, start + wanted, min(stop, len(text)))
        for match in itertools.islice(borders, _MOST_QUESTIONS):
            place = resume(text, match.start())
            if place is not None:
                end, begin = match.start(), place
                break
        chunks.append(text[start:end])
        start = begin
    if start < len(text) or not chunks:
        chunks.append(text[start:])
    return chunks


def groups_of(items: Iterable[_Sized], size_of_group: int) -> Iterator[list[_Sized]]:
    """``items`` in order, in groups whose lengths add up to so much or more, the last one to less: what is encoded, or
    written, at a time."""
    group, size = [], 0
    for item in items:
        group.append(item)
        size += len(item)
        if size >= size_of_group:
            yield group
            group, size = [], 0
    if group:
        yield group


def encode_documents(
    texts: Sequence[str], longest: int, cut: Callable[[str], list[str]],
    encode: Callable[[list[str]], list[np.ndarray]], is_special: np.ndarray, spelling: Callable[[int], np.ndarray],
) -> list[np.ndarray]:  # fmt: skip
    """The ids of each text; those longer than ``longest`` characters are cut for it, and no special id is among them.

    Args:
      texts: texts of any length.
      longest: largest number of characters that ``encode`` takes whole.
      cut: the chunks of a longer text.
      encode: ids of each of several texts.
      is_special: (vocab_size,) bool: ids that are not to come out.
      spelling: the ids to put in place of such an id, those of the letters of its piece.
    """
    if max(map(len, texts), default=0) <= longest:
        encoded = encode(list(texts))
    else:
        chunks = [cut(text) if len(text) > longest else [text] for text in texts]
        each = iter(encode([chunk for some in chunks for chunk in some]))
        encoded = [next(each) if len(some) == 1 else np.concatenate([next(each) for _ in some]) for some in chunks]
    if not encoded or not is_special[np.concatenate(encoded)].any():  # asked once, since asking costs 2 microseconds
        return encoded
    return [_spell_out(ids, is_special, spelling) for ids in encoded]


def _spell_out(ids: np.ndarray, is_special: np.ndarray, spelling: Callable[[int], np.ndarray]) -> np.ndarray:
    parts, end = [], 0
    for place in np.flatnonzero(is_special[ids]).tolist():
        parts += [ids[end:place], spelling(int(ids[place]))]
        end = place + 1
    return np.concatenate([*parts, ids[end:]])


def begins_word(text: str) -> bool:
    """Whether a token with this text begins a word: white space, a mark that is no letter or digit, an ideograph.

    Bytes that make no character are not taken for a beginning.
    """
    if not text or text[0] == "\ufffd":
        return False
    if text[0].isspace() or unicodedata.category(text[0])[0] not in "LNM":
        return True
    return any(first <= ord(text[0]) <= last for first, last in _IDEOGRAPHS)


def word_starts(texts: Sequence[str]) -> np.ndarray:
    """(len(texts),) bool: which tokens with these texts begin a word; all False if none brings its space along."""
    if not any(text[:1] == " " and len(text) > 1 for text in texts):
        return np.zeros(len(texts), bool)
    return np.fromiter(map(begins_word, texts), bool, len(texts))
