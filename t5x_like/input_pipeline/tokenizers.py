"""Text to token ids and back: SentencePiece models and bytes, behind one small protocol.

Knows vocabularies and their special ids; must not know corpora, objectives or models. Special ids are looked up by
their piece, never computed from the size of the vocabulary: a trained model has its sentinels among the lowest ids, the
published T5 model has them beyond its last piece.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.config import Bytes, Corpus
from t5x_like.input_pipeline.tokenizer_training import MASK_PIECE, trained_model_path

_SENTINEL = re.compile(r"<extra_id_(\d+)>")


@runtime_checkable
class Tokenizer(Protocol):
    """What the rest of the library may ask of a vocabulary."""

    @property
    def vocab_size(self) -> int:
        """Ids run from 0 to ``vocab_size - 1``, sentinels included."""
        ...

    @property
    def pad_id(self) -> int: ...

    @property
    def eos_id(self) -> int: ...

    @property
    def unk_id(self) -> int: ...

    @property
    def sentinel_ids(self) -> tuple[int, ...]:
        """Ids of ``<extra_id_0>``, ``<extra_id_1>``, ...; empty where the vocabulary has none."""
        ...

    @property
    def mask_id(self) -> int | None:
        """The id that hides a token in masked language modelling; None where the vocabulary has none."""
        ...

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Ids that no text is made of: never masked, never put in at random."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what decides ids, as hexadecimal digits: stored with every cache and checkpoint."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``, no EOS added; ``<extra_id_0>`` and its like become sentinels."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """``encode`` of each text, on several cores where the tokenizer can."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``; padding and EOS are left out, sentinels shown as ``<extra_id_0>``, ..."""
        ...


class SentencePieceTokenizer:
    """A SentencePiece model file.

    Args:
      path: the model file.
      sentinels: how many sentinels the vocabulary must have. Where the file holds no piece ``<extra_id_0>``, they are
        put after its last piece in descending order, ``<extra_id_0>`` last, as published T5 models expect.

    Raises:
      UserError: no file, not a SentencePiece model, fewer sentinels in it than asked for, no padding or EOS.
    """

    def __init__(self, path: str | Path, sentinels: int = 100):
        import sentencepiece

        self.path = Path(path)
        where = "data.corpus.tokenizer.path"
        if not self.path.is_file():
            raise UserError(where, f"no file {self.path}", "a SentencePiece model file, or empty to train one")
        model = self.path.read_bytes()
        try:
            self._processor: Any = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError:
            raise UserError(where, f"{self.path} is not a SentencePiece model", "a .model file") from None
        self._pieces = self._processor.get_piece_size()
        self.sentinel_ids = self._find_sentinels(sentinels)
        beyond = sum(identifier >= self._pieces for identifier in self.sentinel_ids)
        self.vocab_size = self._pieces + beyond
        self.pad_id, self.eos_id, self.unk_id = (
            self._processor.pad_id(), self._processor.eos_id(), self._processor.unk_id()
        )  # fmt: skip
        for name, identifier in (("padding", self.pad_id), ("EOS", self.eos_id)):
            if identifier < 0:
                raise UserError(where, f"{self.path} has no {name} piece", "a model with padding, EOS and unknown ids")
        self.mask_id: int | None = self._find(MASK_PIECE)
        named = (self.pad_id, self.eos_id, self.unk_id, *self.sentinel_ids)
        self.special_ids = named if self.mask_id is None else (*named, self.mask_id)
        self.fingerprint = hashlib.sha256(model + f"sentinels beyond: {beyond}".encode()).hexdigest()
        self._beyond = {f"<extra_id_{i}>": sentinel for i, sentinel in enumerate(self.sentinel_ids) if beyond}
        self._named = {identifier: name for name, identifier in self._beyond.items()}

    def encode(self, text: str) -> list[int]:
        if self._beyond and "<extra_id_" in text:
            return self._encode_with_sentinels(text)
        return self._processor.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        if self._beyond:
            return [self.encode(text) for text in texts]
        return self._processor.encode(list(texts), num_threads=-1)

    def decode(self, ids: Sequence[int]) -> str:
        ids = [int(identifier) for identifier in ids]
        if all(0 <= identifier < self._pieces for identifier in ids):
            return self._processor.decode(ids)
        parts, run = [], []
        for identifier in ids:  # sentinels after the last piece, and ids a padded model table has but no vocabulary
            if 0 <= identifier < self._pieces:
                run.append(identifier)
                continue
            parts += [self._decode_run(run, bool(parts)), self._named.get(identifier, f"<id {identifier}>")]
            run = []
        return "".join([*parts, self._decode_run(run, bool(parts))])

    def _decode_run(self, run: list[int], inside: bool) -> str:
        text = self._processor.decode(run)
        # A model with a dummy prefix (T5's) drops the first space of what it decodes; inside a text it belongs there.
        dropped = inside and run and self._processor.id_to_piece(run[0]).startswith("\u2581") and text[:1] != " "
        return f" {text}" if dropped else text

    def _find(self, piece: str) -> int | None:
        identifier = self._processor.piece_to_id(piece)
        return identifier if self._processor.id_to_piece(identifier) == piece else None

    def _find_sentinels(self, count: int) -> tuple[int, ...]:
        found = []
        for i in range(count):
            name = f"<extra_id_{i}>"
            identifier = self._find(name)
            identifier = self._find(f"\u2581{name}") if identifier is None else identifier  # as in mT5's model
            if identifier is None:
                break
            found.append(identifier)
        if count and not found:
            return tuple(self._pieces + count - 1 - i for i in range(count))
        if len(found) < count:
            raise UserError(
                "data.corpus.tokenizer.sentinels",
                f"{count}, but {self.path} has {len(found)}",
                f"{len(found)} or fewer",
            )
        return tuple(found)

    def _encode_with_sentinels(self, text: str) -> list[int]:
        ids, end = [], 0
        for match in _SENTINEL.finditer(text):
            if match.group() in self._beyond:
                ids += [*self._processor.encode(text[end : match.start()]), self._beyond[match.group()]]
                end = match.end()
        return ids + self._processor.encode(text[end:])


class ByteTokenizer:
    """ByT5's ids: pad 0, EOS 1, unknown 2, byte b at b + 3; sentinels are ids 258, 257, ..., as published.

    The published sentinels lie on byte ids. The first 11 (bytes 0xFF to 0xF5) never occur in UTF-8; the others do,
    inside multi-byte characters, so ``decode`` shows a sentinel only where the bytes around it make no character.
    """

    vocab_size = 259
    pad_id = 0
    eos_id = 1
    unk_id = 2
    sentinel_ids = tuple(range(258, 158, -1))
    # The lowest id whose byte (0xF5) no UTF-8 text holds. The last sentinel would be 0x9C: part of a quotation mark.
    mask_id: int | None = 248
    special_ids = (pad_id, eos_id, unk_id)  # sentinels and mask share their ids with bytes
    fingerprint = hashlib.sha256(b"ByT5: pad 0, EOS 1, unknown 2, byte + 3; 100 sentinels from 258 down").hexdigest()

    def encode(self, text: str) -> list[int]:
        ids, end = [], 0
        if "<extra_id_" in text:
            for match in _SENTINEL.finditer(text):
                if int(match[1]) < len(self.sentinel_ids):
                    ids += [byte + 3 for byte in text[end : match.start()].encode("utf-8")]
                    ids.append(self.sentinel_ids[int(match[1])])
                    end = match.end()
        return ids + [byte + 3 for byte in text[end:].encode("utf-8")]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        parts, run = [], bytearray()
        for identifier in map(int, ids):
            if 3 <= identifier < 259:
                run.append(identifier - 3)
            elif identifier not in (self.pad_id, self.eos_id):
                parts += [_decode_bytes(bytes(run)), "\ufffd" if identifier == self.unk_id else f"<id {identifier}>"]
                run.clear()
        return "".join([*parts, _decode_bytes(bytes(run))])


def _decode_bytes(data: bytes) -> str:
    parts = []
    while data:
        try:
            parts.append(data.decode("utf-8"))
            break
        except UnicodeDecodeError as error:
            parts.append(data[: error.start].decode("utf-8"))
            for byte in data[error.start : error.end]:
                sentinel = 258 - (byte + 3)
                parts.append(f"<extra_id_{sentinel}>" if sentinel < len(ByteTokenizer.sentinel_ids) else "\ufffd")
            data = data[error.end :]
    return "".join(parts)


def load_tokenizer(corpus: Corpus, cache: str = "") -> Tokenizer:
    """The tokenizer of ``corpus``; a SentencePiece model without a path is trained into the cache at the first call.

    Args:
      corpus: its tokenizer, and the text to train on where there is no model yet.
      cache: the cache folder, as ``DataConfig.cache``.

    Raises:
      UserError: from ``SentencePieceTokenizer``, ``train_sentencepiece`` and ``read_documents``; or a model file whose
        vocabulary is not of the size that the corpus file says.
    """
    config = corpus.tokenizer
    if isinstance(config, Bytes):
        return ByteTokenizer()
    path = Path(config.path).expanduser() if config.path else trained_model_path(corpus, cache)
    status = path.stat() if path.is_file() else None
    tokenizer = _open(path, config.sentinels, (status.st_size, status.st_mtime_ns) if status else (0, 0))
    if config.vocab_size not in (0, tokenizer.vocab_size):
        raise UserError(
            "data.corpus.tokenizer.vocab_size",
            f"{config.vocab_size}, but {path} holds {tokenizer.vocab_size} ids (sentinels included)",
            f"{tokenizer.vocab_size}, or 0 for whatever the file holds",
        )
    return tokenizer


@functools.lru_cache(maxsize=8)
def _open(path: Path, sentinels: int, status: tuple[int, int]) -> SentencePieceTokenizer:
    # ``status`` (size and time of change) is part of the key only, so that a file that has changed is read again.
    return SentencePieceTokenizer(path, sentinels)


def check_vocabulary(tokenizer: Tokenizer, model_vocab_size: int) -> None:
    """Raises ``UserError`` unless every id of ``tokenizer`` has a row in a model with ``model_vocab_size`` of them."""
    if tokenizer.vocab_size > model_vocab_size:
        padded = -(-tokenizer.vocab_size // 128) * 128
        raise UserError(
            "model.vocab_size",
            f"{model_vocab_size}, but the tokenizer has {tokenizer.vocab_size} ids",
            f"{tokenizer.vocab_size} or more",
            f"{padded}, the next multiple of 128",
        )
