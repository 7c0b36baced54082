"""A vocabulary of numbers, for tests that ask what becomes of each token: what an id is can be told from the id."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

MODES = ("[NLU]", "[NLG]", "[S2S]")


@dataclasses.dataclass(frozen=True)
class FakeTokenizer:
    """Padding 0, EOS 1, unknown 2, 200 sentinels from 202 down to 3, <mask> 203, modes 204 to 206; the text is made of
    id 0 and of ids from 210. Every third id begins a word."""

    pad_id: int = 0
    eos_id: int = 1
    unk_id: int = 2
    sentinel_ids: tuple[int, ...] = tuple(range(202, 2, -1))
    mask_id: int | None = 203
    modes: tuple[str, ...] = MODES
    vocab_size: int = 1000
    fingerprint: str = "fake"

    @property
    def special_ids(self) -> tuple[int, ...]:
        return (self.eos_id, self.unk_id, *range(3, 210))  # not padding: id 0 inside a text is data

    @functools.cached_property
    def word_starts(self) -> np.ndarray:
        return np.arange(self.vocab_size) % 3 == 0

    @functools.cached_property
    def _names(self) -> dict[str, int]:
        names = {f"<extra_id_{i}>": identifier for i, identifier in enumerate(self.sentinel_ids)}
        return names | {mode: 204 + i for i, mode in enumerate(self.modes)}

    def find(self, piece: str) -> int | None:
        return self._names.get(piece)

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def encode_batch(self, texts) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids) -> str:
        return " ".join(map(str, ids))
