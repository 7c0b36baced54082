"""Which documents are held out of training: decided by a hash of their text, so that it never changes.

A document stays on its side when others come or go, the order changes, or the tokenizer does, and two copies of one
text lie on the same side. The exceptions are corpora so small that one side would be empty (``division_of``). Knows
texts and their hashes only.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

SplitName = Literal["train", "heldout"]
SPLIT_NAMES: tuple[SplitName, ...] = ("train", "heldout")

ReadAgain = Callable[[], Iterable[str]]

# Documents are kept in memory until it is known which rule decides, up to this many characters; then they are read
# a second time instead.
_MOST_CHARACTERS = 16_000_000


@dataclass(frozen=True)
class Division:
    """How a corpus of two documents or more is divided.

    Attributes:
      border: a document whose ``hashed_share`` is below it is held out.
      first: the first document is held out in any case.
    """

    border: float
    first: bool = False

    def holds_out(self, share: float, index: int) -> bool:
        """Whether document ``index``, with this ``hashed_share``, is held out."""
        return share < self.border or (self.first and index == 0)


def division_of(heldout: float, least: float, greatest: float) -> Division:
    """The division that holds out ``heldout`` of the documents, but leaves neither side empty.

    Args:
      heldout: wanted share of held-out documents; 0 holds out none.
      least, greatest: least and greatest ``hashed_share`` of all documents.
    """
    if heldout <= 0.0:
        return Division(0.0)
    if least == greatest:  # copies of one text
        return Division(0.0, first=True)
    if least >= heldout:
        return Division(math.nextafter(least, 1.0))
    return Division(min(heldout, greatest))


def documents_of_split(read: ReadAgain, heldout: float, name: SplitName) -> Iterator[str]:
    """Yields the documents of one split, in order; at least one document lies on each side if ``heldout`` is not 0.

    A corpus of one document is split by its tail: see ``split_tail``.

    Args:
      read: function to all documents from the start; nearly always called once.
      heldout: share of held-out documents.
      name: name of the split to yield.
    """
    wanted = name == "heldout"
    if heldout <= 0.0:
        yield from () if wanted else read()
        return
    documents = iter(read())
    kept: list[str] | None = []
    characters, count, least, greatest = 0, 0, math.inf, -math.inf
    for text in documents:
        share = hashed_share(text)
        least, greatest = min(least, share), max(greatest, share)
        count += 1
        if kept is not None:
            kept.append(text)
            characters += len(text)
            if characters > _MOST_CHARACTERS and count > 1:
                kept = None
        if least < heldout <= greatest:  # both sides have a document: what comes cannot change the rule
            break
    if kept is not None and count == 1:
        yield from split_tail(kept[0], heldout)[wanted:][:1]
        return
    division = division_of(heldout, least, greatest)
    for index, text in enumerate(read() if kept is None else itertools.chain(kept, documents)):
        if division.holds_out(hashed_share(text), index) == wanted:
            yield text


def split_tail(text: str, heldout: float) -> tuple[str, ...]:
    """The only document of a corpus as (training part, held-out part).

    The last ``heldout`` of its characters, from the next white space on, is held out; where there is none, nothing is,
    and the tuple has one text.
    """
    border = max(1, int(len(text) * (1.0 - heldout)))
    while border < len(text) and not text[border].isspace():
        border += 1
    return (text[:border], text[border:]) if border < len(text) else (text,)


def hashed_share(text: str) -> float:
    """A number in [0, 1) that depends on ``text`` alone and is evenly spread over texts."""
    return int.from_bytes(text_hash(text.encode("utf-8", "surrogatepass"))[:6], "big") / 2**48


def text_hash(text: bytes) -> bytes:
    """The first 16 bytes of the SHA-256 of a UTF-8 text: texts with the same one are taken for copies."""
    return hashlib.sha256(text).digest()[:16]
