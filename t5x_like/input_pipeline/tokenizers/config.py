"""The choice of a corpus's vocabulary: one frozen dataclass per kind, which opens its tokenizer.

Types that go to JSON and back only; imports neither numpy nor any tokenizer before one is opened.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from t5x_like.core.config import Config
from t5x_like.core.errors import UserError, require
from t5x_like.core.ranges import NonNegativeInt

if TYPE_CHECKING:
    from t5x_like.input_pipeline.tokenizers.base import Tokenizer

SentencePieceModel = Literal["bpe", "unigram"]


class TokenizerConfig(Config, abc.ABC, where="data.corpus.tokenizer"):
    """A vocabulary: the base of frozen dataclasses. One of a user's own has a method ``open``.

    Attributes:
      path: its file; empty: none, or not made yet.
      vocab_size: ids in all, sentinels included; 0: whatever the file has.
    """

    places: ClassVar[tuple[str, ...]] = ("path",)

    path: str
    vocab_size: int

    def open(self) -> Tokenizer:
        """The tokenizer; ``open_tokenizer`` is for those who call it."""
        raise TypeError(f"{type(self).__name__} does not say how it is opened")


@dataclass(frozen=True)
class SentencePiece(TokenizerConfig):
    """A SentencePiece vocabulary.

    Attributes:
      vocab_size: ids in all: 3 special ones, the sentinels, ``<mask>``, newline, the symbols, 256 bytes and the learned
        pieces. With ``path`` it is what the file must hold (sentinels included), or 0 for whatever it holds.
      model: the algorithm that learns the pieces (read only when training).
      sentinels: number of ``<extra_id_i>`` markers of the vocabulary.
      symbols: further pieces that no text is cut into otherwise, such as the mode tokens ``[NLU]``, ``[NLG]``,
        ``[S2S]`` of UL2; with ``path`` they must be in the file.
      path: a model file to use; empty: one is trained on the training part of the corpus, once, into the cache.
    """

    vocab_size: NonNegativeInt = 8192
    model: SentencePieceModel = "unigram"
    sentinels: NonNegativeInt = 100
    symbols: tuple[str, ...] = ()
    path: str = ""

    def __post_init__(self):
        where, symbols = "data.corpus.tokenizer", len(self.symbols)
        fits = len(set(self.symbols)) == symbols and all(self.symbols)
        require(fits, f"{where}.symbols", self.symbols, "different texts, none of them empty")
        smallest = 0 if self.path else 3 + 256 + 2 + self.sentinels + symbols + 1
        what = f"3 special ids, 256 bytes, newline, <mask>, {self.sentinels} sentinels, {symbols} symbols, pieces"
        if self.vocab_size < smallest:
            allowed, suggestion = f"{smallest} or more: {what}", "8192 suits a corpus of 10 MB"
            raise UserError(f"{where}.vocab_size", str(self.vocab_size), allowed, suggestion)

    def open(self) -> Tokenizer:
        from t5x_like.input_pipeline.tokenizers.sentencepiece import SentencePieceTokenizer

        return SentencePieceTokenizer(Path(self.path).expanduser(), self.sentinels, self.symbols)


@dataclass(frozen=True)
class Bytes(TokenizerConfig):
    """ByT5's vocabulary of 259 ids: pad, EOS, unknown, then the 256 bytes. Nothing is trained."""

    path: ClassVar[str] = ""
    vocab_size: ClassVar[int] = 259

    def open(self) -> Tokenizer:
        from t5x_like.input_pipeline.tokenizers.bytes import ByteTokenizer

        return ByteTokenizer()


@dataclass(frozen=True)
class HuggingFaceTokenizer(TokenizerConfig):
    """A ``tokenizer.json`` of Hugging Face ``tokenizers`` (extra ``tokenizers``).

    Attributes:
      path: the file.
      pad, eos, mask: the pieces for padding, the end of a text and a hidden token; empty: found among the usual names.
        A vocabulary without padding (GPT-2's) pads with its EOS: what is padding is told by segments, never by ids.
      sentinels: number of ``<extra_id_i>`` markers; those that the file does not hold come after its last id.
      vocab_size: ids in all, sentinels included, that the file must have; 0: whatever it has.
    """

    path: str
    pad: str = ""
    eos: str = ""
    mask: str = ""
    sentinels: NonNegativeInt = 0
    vocab_size: NonNegativeInt = 0

    def open(self) -> Tokenizer:
        from t5x_like.input_pipeline.tokenizers.hugging_face import JsonTokenizer

        return JsonTokenizer(Path(self.path).expanduser(), self.pad, self.eos, self.mask, self.sentinels)
