"""A window of an endless source: n of its documents, as a source of their own.

Knows documents and their hashes; must not know tokens.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from t5x_like.core.errors import UserError
from t5x_like.core.ranges import BelowOne, Size
from t5x_like.input_pipeline.sources.files import Unit
from t5x_like.input_pipeline.sources.source import Source
from t5x_like.input_pipeline.sources.splits import SplitName, hashed_share


@dataclass(frozen=True)
class Window(Source):
    """The documents of one split among the ``number``-th ``documents`` documents of a source, counted from 0.

    Files count by name alone: new ones may come behind those that were read, and what a window holds is checked against
    what it held before by whoever makes it again.

    Attributes:
      source: source that is read.
      number: number of the window, from 0.
      documents: number of documents per window, empty and unreadable ones included.
      heldout: share of held-out documents, chosen by a hash of their text.
      side: name of the split.
    """

    source: Source
    number: Size
    documents: Size
    heldout: BelowOne
    side: SplitName

    def read(self, unit: Unit) -> Iterator[str | UserError]:
        count = 0
        for item in itertools.islice(self.source.items(self.number * self.documents), self.documents):
            count += 1
            is_text = isinstance(item, str)
            if (is_text and hashed_share(item) < self.heldout) == (self.side == "heldout"):
                yield item
        if count < self.documents:
            got = f"{self.source.describe()} ended {count:,} documents after the start of window {self.number}"
            allowed = f"{self.documents:,} documents for each window that is trained on"
            raise UserError("data.corpus.window", got, allowed, "add documents and resume, or train fewer steps")

    def digest(self) -> str:
        return hashlib.sha256(b"files by name").hexdigest() if self.source.files() else self.source.digest()

    def left_out(self) -> list[str]:
        return self.source.left_out()

    def describe(self) -> str:
        return f"window {self.number} ({self.side}) of {self.source.describe()}"
