"""Which documents are held out of training: decided by a hash of their text, so that it never changes.

A document stays on its side when others come or go, the order changes, or the tokenizer does, and two copies of one
text lie on the same side. Knows texts only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import numpy as np

SplitName = Literal["train", "heldout"]
SPLIT_NAMES: tuple[SplitName, ...] = ("train", "heldout")

ReadAgain = Callable[[], Iterable[str]]


def documents_of_split(read: ReadAgain, heldout: float, name: SplitName) -> Iterator[str]:
    """Yields the documents of one split; ``read`` gives the documents from the start at every call.

    A corpus of one document is split by its tail: the last ``heldout`` of its characters, from the next white space on,
    is held out. Otherwise at least one document lies on each side, if ``heldout`` is not 0.
    """
    for text, is_heldout in split_documents(read, heldout):
        if is_heldout == (name == "heldout"):
            yield text


def split_documents(read: ReadAgain, heldout: float) -> Iterator[tuple[str, bool]]:
    """Yields every document in order with True where it is held out; rules as in ``documents_of_split``."""
    shares = np.fromiter((hashed_share(text) for text in read()), np.float64)
    if heldout > 0.0 and len(shares) == 1:
        (text,) = read()
        border = _tail_border(text, heldout)
        yield text[:border], False
        if border < len(text):
            yield text[border:], True
        return
    chosen = shares < heldout
    if heldout > 0.0 and not chosen.any():
        chosen[np.argmin(shares)] = True
    if chosen.all():
        chosen[np.argmax(shares)] = False
    for text, is_heldout in zip(read(), chosen, strict=True):
        yield text, bool(is_heldout)


def hashed_share(text: str) -> float:
    """A number in [0, 1) that depends on ``text`` alone and is evenly spread over texts."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _tail_border(text: str, heldout: float) -> int:
    border = max(1, int(len(text) * (1.0 - heldout)))
    while border < len(text) and not text[border].isspace():
        border += 1
    return border
