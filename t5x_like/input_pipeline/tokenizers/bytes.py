"""ByT5's vocabulary: UTF-8 bytes. Knows nothing but its own arithmetic."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence

import numpy as np

from t5x_like.input_pipeline.tokenizers.base import Tokenizer
from t5x_like.input_pipeline.tokenizers.pieces import SENTINEL, begins_word, sentinel_piece

_OFFSET = 3  # byte b is id b + 3
_NAMED = {"<pad>": 0, "</s>": 1, "<unk>": 2}


class ByteTokenizer(Tokenizer):
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

    @functools.cached_property
    def word_starts(self) -> np.ndarray:
        """White space and punctuation begin a word; letters, digits and bytes of longer characters continue it."""
        starts = [begins_word(chr(byte)) if byte < 128 else False for byte in range(256)]
        return np.array([True] * _OFFSET + starts)

    def find(self, piece: str) -> int | None:
        if piece in _NAMED:
            return _NAMED[piece]
        data = piece.encode("utf-8", "surrogatepass")
        return data[0] + _OFFSET if len(data) == 1 else _sentinels().get(piece)

    def piece(self, identifier: int) -> str:
        if identifier < _OFFSET:
            return list(_NAMED)[identifier]
        byte = identifier - _OFFSET
        return chr(byte) if byte < 128 else f"<0x{byte:02X}>"

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in SENTINEL.split(text):
            ids += [_sentinels()[part]] if part in _sentinels() else _ids(part).tolist()
        return ids

    def encode_batch(self, texts: Sequence[str], threads: int = 0) -> list[np.ndarray]:
        return [_ids(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        parts, run = [], bytearray()
        for identifier in map(int, ids):
            if _OFFSET <= identifier < self.vocab_size:
                run.append(identifier - _OFFSET)
            elif identifier not in (self.pad_id, self.eos_id):
                parts += [_decode_bytes(bytes(run)), "\ufffd" if identifier == self.unk_id else f"<id {identifier}>"]
                run.clear()
        return "".join([*parts, _decode_bytes(bytes(run))])


@functools.cache
def _sentinels() -> dict[str, int]:
    return {sentinel_piece(i): identifier for i, identifier in enumerate(ByteTokenizer.sentinel_ids)}


def _ids(text: str) -> np.ndarray:
    return np.add(np.frombuffer(text.encode("utf-8"), np.uint8), _OFFSET, dtype=np.uint16)


def _decode_bytes(data: bytes) -> str:
    parts = []
    while data:
        try:
            parts.append(data.decode("utf-8"))
            break
        except UnicodeDecodeError as error:
            parts.append(data[: error.start].decode("utf-8"))
            for byte in data[error.start : error.end]:
                sentinel = ByteTokenizer.sentinel_ids[0] - (byte + _OFFSET)
                known = sentinel < len(ByteTokenizer.sentinel_ids)
                parts.append(sentinel_piece(sentinel) if known else "\ufffd")
            data = data[error.end :]
    return "".join(parts)
