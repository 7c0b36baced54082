"""SentencePiece model files as tokenizers.

Knows the processor and its pieces; must not know how models are trained. Special ids are looked up by their piece,
never computed from the size of the vocabulary: a trained model has its sentinels among the lowest ids, the published
T5 model has them beyond its last piece.
"""

from __future__ import annotations

import functools
import hashlib
import re
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t5x_like.core.errors import UserError, require
from t5x_like.input_pipeline.tokenizers.base import FileTokenizer, read_vocabulary
from t5x_like.input_pipeline.tokenizers.pieces import SENTINEL, cut_text, encode_documents, sentinel_piece

MASK_PIECE = "<mask>"
SPACE = "\u2581"  # how pieces spell a space

# Texts are cut into chunks of about this many characters. SentencePiece takes 20 (Unigram) to 40 bytes (BPE) for each
# that it has at once, its BPE is a third faster on such chunks than on documents of 50,000 characters, and its Unigram
# adds up scores as float32, so that far into a long text ties fall this way or that.
_CHUNK = 8_000
# Where no white space lets a text be cut, it is cut anyway after this many characters.
_LONGEST = 1_000_000


class SentencePieceTokenizer(FileTokenizer):
    """A SentencePiece model file.

    Args:
      path: the model file.
      sentinels: how many sentinels the vocabulary must have. Where the file holds no piece ``<extra_id_0>``, they are
        put after its last piece in descending order, ``<extra_id_0>`` last, as published T5 models expect.
      symbols: further pieces that must be in the file and that no document is cut into, such as mode tokens.

    Raises:
      UserError: no file, not a SentencePiece model, no EOS or unknown id, fewer sentinels in it than asked for, a
        symbol that it does not hold.
    """

    def __init__(self, path: str | Path, sentinels: int = 100, symbols: Iterable[str] = ()):
        self.path = Path(path)
        self._arguments = (str(path), sentinels, tuple(symbols))
        model = read_vocabulary(self.path, "a SentencePiece model file, or empty to train one")
        self._processor = _open(model, self.path)
        self._file_size: int = self._processor.get_piece_size()
        self.sentinel_ids = self._find_sentinels(sentinels)
        beyond = sum(identifier >= self._file_size for identifier in self.sentinel_ids)
        self.vocab_size = self._file_size + beyond
        self.eos_id: int = self._processor.eos_id()
        self.unk_id: int = self._processor.unk_id()
        both = min(self.eos_id, self.unk_id) >= 0
        require(both, "data.corpus.tokenizer.path", f"{path} without EOS or unknown id", "a model trained with both")
        pad_id: int = self._processor.pad_id()
        self.pad_id = pad_id if pad_id >= 0 else self.eos_id
        self.mask_id = self._find(MASK_PIECE)
        hidden = [*self.sentinel_ids, *self._find_symbols(), *([] if self.mask_id is None else [self.mask_id])]
        silent = [i for i in range(self._file_size) if self._processor.is_control(i) or self._processor.is_unused(i)]
        self.special_ids = tuple(dict.fromkeys([self.pad_id, self.eos_id, self.unk_id, *hidden, *silent]))
        # Those that SentencePiece does make of texts, except for the unknown id, which documents may hold.
        self._hidden = np.zeros(self.vocab_size, bool)
        self._hidden[hidden] = True
        decisive = repr((beyond, sorted(hidden)))
        self.fingerprint = hashlib.sha256(model + decisive.encode()).hexdigest()
        # Prompts, unlike documents, have sentinels: those beyond the file are added to the model, as SeqIO does.
        self._space_first = self._processor.normalize("a").startswith(SPACE)
        mark = SPACE if self._space_first else ""
        added = [_symbol(f"{mark}{sentinel_piece(i)}") for i in reversed(range(beyond))]
        self._of_prompts = _open(model + b"".join(added), self.path) if added else self._processor
        pieces = enumerate(map(self._of_prompts.id_to_piece, self.sentinel_ids))
        self._marked = {sentinel_piece(i) for i, piece in pieces if piece.startswith(SPACE)}
        self._spellings: dict[int, np.ndarray] = {}

    def piece(self, identifier: int) -> str:
        if not 0 <= identifier < self.vocab_size:
            return f"<id {identifier}>"
        return self._of_prompts.id_to_piece(identifier)

    def encode(self, text: str) -> list[int]:
        chunks = self._cut(self._with_spaces(text))
        return [identifier for chunk in chunks for identifier in self._of_prompts.encode(chunk)]

    def decode(self, ids: Sequence[int]) -> str:
        return self._of_prompts.decode([self.piece(identifier) for identifier in map(int, ids)])

    def encode_batch(self, texts: Sequence[str], threads: int = 0) -> list[np.ndarray]:
        encode = functools.partial(self._encode_all, threads=threads or -1)
        return encode_documents(texts, _CHUNK, self._cut, encode, self._hidden, self._spell)

    def _with_spaces(self, text: str) -> str:
        """The text with a space before each sentinel whose piece has one; the model's own may be before the first."""
        first = " " if self._space_first else ""

        def with_space(match: re.Match[str]) -> str:
            bare = match.group() in self._marked and not match.string.endswith(" ", 0, match.start())
            return f" {match.group()}" if bare else match.group()

        return SENTINEL.sub(with_space, first + text)[len(first) :]

    def _encode_all(self, chunks: list[str], threads: int) -> list[np.ndarray]:
        return self._processor.encode(chunks, num_threads=threads, out_type="numpy")

    def _spell(self, identifier: int) -> np.ndarray:
        """Ids of the letters of a piece that documents must not be cut into, as they are inside a text."""
        if identifier not in self._spellings:
            text = self._processor.id_to_piece(identifier).replace(SPACE, " ")
            first = len(text) - len(text.lstrip()) + 1
            ids = np.concatenate([self._inside(identifier, part) for part in (text[:first], text[first:])])
            if self._hidden[ids].any():  # the rest is a symbol itself
                ids = np.concatenate([self._inside(identifier, letter) for letter in text])
            self._spellings[identifier] = ids
        return self._spellings[identifier]

    def _inside(self, identifier: int, text: str) -> np.ndarray:
        # A model may put a space before what it is given, but not between a piece of its own and what follows that.
        ids = self._processor.encode(self._processor.id_to_piece(identifier).replace(SPACE, " ") + text)
        if identifier not in ids:
            ids = self._processor.encode(text)
        return np.array(ids[ids.index(identifier) + 1 if identifier in ids else 0 :], np.int32)

    def _cut(self, text: str) -> list[str]:
        return cut_text(text, _CHUNK, _LONGEST, self._resume)

    def _resume(self, text: str, border: int) -> int | None:
        skipped = self._borders.get(text[border])
        return None if skipped is None else border + skipped

    @functools.cached_property
    def _borders(self) -> dict[str, int]:
        """Characters before which a text may be cut with no change of ids, and how many are left out when it is.

        No piece may reach across, and normalizing both parts must give what normalizing all gives. A model that puts a
        space before every text but keeps those that are there (Llama 2's) has the right one if the text's is left out.
        """
        normalize, found = self._processor.normalize, {}
        pieces = [self._processor.id_to_piece(identifier) for identifier in range(self._file_size)]
        for character in " \n":
            whole, left = normalize(f"a{character}b"), normalize("a")
            mark = whole[len(left) : -1]
            fits = [skip for skip in (0, 1) if whole == left + normalize(f"{character}b"[skip:])]
            if not fits or len(mark) != 1 or self._find(mark) is None:
                continue
            crossing = re.compile(f"[^{re.escape(mark)}]{re.escape(mark)}")
            if not any(map(crossing.search, pieces)):
                found[character] = fits[0]
        return found

    def _text_of(self, identifier: int) -> str:
        piece: str = self._processor.id_to_piece(identifier)
        if self._processor.is_byte(identifier):
            byte = int(piece[3:-1], 16)
            return chr(byte) if byte < 128 else ""
        return piece.replace(SPACE, " ")

    def _find(self, piece: str) -> int | None:
        identifier = self._processor.piece_to_id(piece)
        return identifier if self._processor.id_to_piece(identifier) == piece else None

    def _find_sentinels(self, count: int) -> tuple[int, ...]:
        found: list[int] = []
        for name in map(sentinel_piece, range(count)):
            identifier = self._find(name)
            identifier = self._find(f"{SPACE}{name}") if identifier is None else identifier  # as in mT5's model
            if identifier is None:
                break
            found.append(identifier)
        if not found:
            return tuple(self._file_size + count - 1 - i for i in range(count))
        if len(found) < count:
            got = f"{count}, but {self.path} has {len(found)}"
            raise UserError("data.corpus.tokenizer.sentinels", got, f"{len(found)} or fewer")
        return tuple(found)

    def _find_symbols(self) -> list[int]:
        symbols = self._arguments[2]
        require_symbols(symbols)
        found = {symbol: self._find(symbol) for symbol in symbols}
        if missing := [symbol for symbol, identifier in found.items() if identifier is None]:
            got, how = f"{self.path} has no {', '.join(map(repr, missing))}", "t5x-like tokenizer train --symbols"
            raise UserError("data.corpus.tokenizer.symbols", got, "pieces of the model", f"train one with them: {how}")
        return [identifier for identifier in found.values() if identifier is not None]


def require_symbols(symbols: Iterable[str]) -> None:
    """Raises ``UserError`` for a symbol of one character, which no document could hold as text, or with white space."""
    for symbol in symbols:
        fits = len(symbol) > 1 and not any(map(str.isspace, symbol))
        allowed = "two characters or more, none of them white space"
        require(fits, "data.corpus.tokenizer.symbols", repr(symbol), allowed)


def _symbol(piece: str) -> bytes:
    """A user-defined symbol of a model, to be appended to its file: one more ``ModelProto.pieces``."""
    name = piece.encode()
    content = b"\x0a" + bytes([len(name)]) + name + b"\x15" + struct.pack("<f", 0.0) + b"\x18\x04"
    return b"\x0a" + bytes([len(content)]) + content


def _open(model: bytes, path: Path) -> Any:
    import sentencepiece

    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model or b"nothing")
    except RuntimeError:
        raise UserError("data.corpus.tokenizer.path", f"{path} is not a SentencePiece model", "a .model file") from None
