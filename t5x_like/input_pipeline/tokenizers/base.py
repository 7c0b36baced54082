"""What the rest of the library may ask of a vocabulary, and what vocabularies of a file share.

Must not know any one kind of vocabulary, nor objectives or models.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.tokenizers.pieces import sentinel_piece, word_starts


class Tokenizer(abc.ABC):
    """A vocabulary.

    Attributes:
      vocab_size: ids run from 0 to ``vocab_size - 1``, sentinels included; not each of them need be in use.
      pad_id: the EOS where the vocabulary has no padding: what is padding is told by segments, never by ids.
      eos_id: ends a text.
      unk_id: the id of what has no piece; the EOS where everything has one.
      sentinel_ids: ids of ``<extra_id_0>``, ``<extra_id_1>``, ...; empty where the vocabulary has none.
      mask_id: the id that hides a token in masked language modelling; None where the vocabulary has none.
      special_ids: ids that no text is made of: never masked, never put in at random.
      fingerprint: SHA-256 of what decides ids, as hexadecimal digits: stored with every cache and checkpoint.
    """

    vocab_size: int
    pad_id: int
    eos_id: int
    unk_id: int
    sentinel_ids: tuple[int, ...]
    mask_id: int | None
    special_ids: tuple[int, ...]
    fingerprint: str

    @functools.cached_property
    def word_starts(self) -> np.ndarray:
        """(vocab_size,) bool: whether a token with this id begins a word; all False where pieces do not tell."""
        return np.zeros(self.vocab_size, bool)

    @abc.abstractmethod
    def find(self, piece: str) -> int | None:
        """The id of exactly this piece, such as ``[NLU]`` or ``<extra_id_0>``; None where there is none."""

    @abc.abstractmethod
    def piece(self, identifier: int) -> str:
        """The piece with this id, as the vocabulary spells it."""

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of a prompt, no EOS added; special pieces in it, such as ``<extra_id_0>``, become what they name."""

    @abc.abstractmethod
    def encode_batch(self, texts: Sequence[str], threads: int = 0) -> list[np.ndarray]:
        """Ids of each document, no EOS added, as integer arrays; special pieces in it are text like any other.

        Args:
          texts: of any length.
          threads: cores to use, where the tokenizer can; 0: all.
        """

    @abc.abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``; padding and EOS are left out, sentinels shown as ``<extra_id_0>``, ..."""


class FileTokenizer(Tokenizer):
    """A vocabulary of a file, some of whose sentinels may lie beyond the file's last id. Pickled as the arguments that
    it was opened with."""

    _arguments: tuple
    _file_size: int  # one more than its last id
    _beyond: dict[str, int]  # sentinels beyond that, piece to id

    def __reduce__(self) -> tuple:
        return type(self), self._arguments

    @functools.cached_property
    def word_starts(self) -> np.ndarray:
        """A word brings its space along in its first piece, or all pieces but the first say that they go on with it."""
        starts = word_starts([self._text_of(identifier) for identifier in range(self._file_size)])
        return np.concatenate([starts, np.full(self.vocab_size - self._file_size, starts.any())])

    def find(self, piece: str) -> int | None:
        identifier = self._find(piece)
        if identifier is not None:
            return identifier
        return next((each for i, each in enumerate(self.sentinel_ids) if piece == sentinel_piece(i)), None)

    @abc.abstractmethod
    def _find(self, piece: str) -> int | None: ...

    @abc.abstractmethod
    def _text_of(self, identifier: int) -> str: ...


def read_vocabulary(path: Path, allowed: str) -> bytes:
    """The content of a vocabulary's file. Raises ``UserError`` where there is none."""
    try:
        return path.read_bytes()
    except OSError:
        raise UserError("data.corpus.tokenizer.path", f"no file {path}", allowed) from None
