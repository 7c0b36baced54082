"""``tokenizer.json`` files of Hugging Face ``tokenizers`` (extra ``tokenizers``).

Knows that library and the names that published vocabularies give their special tokens; must not know any one of them.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t5x_like.core.errors import UserError, nearest
from t5x_like.input_pipeline.tokenizers.base import FileTokenizer, read_vocabulary
from t5x_like.input_pipeline.tokenizers.pieces import cut_text, encode_documents, groups_of, sentinel_piece

# Names that published vocabularies use, in the order in which they are looked for: Gemma has an </s> that is HTML's and
# Phi-3 one that is Llama's, so the unmistakable ones come first.
PAD_NAMES = ("<pad>", "[PAD]", "<|pad|>", "<|padding|>", "<PAD>", "<｜▁pad▁｜>", "<|finetune_right_pad_id|>")
EOS_NAMES = (
    "<eos>", "<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>", "<|END_OF_TURN_TOKEN|>", "</s>", "[EOS]",
    "[SEP]",
)  # fmt: skip
MASK_NAMES = ("<mask>", "[MASK]", "<|mask|>", "<MASK>", "<MASK_TOKEN>")

# Longer texts are cut, and at most this many characters encoded at once, to bound the memory: the library takes
# about 40 bytes for each.
_CHUNK = 1_000_000
_LONGEST = 1_100_000
_AT_ONCE = 4_000_000
# Around a border this many characters are encoded whole and in two, to check whether a cut changes ids.
_AROUND = 100


class JsonTokenizer(FileTokenizer):
    """A ``tokenizer.json``. What it adds by itself around a text, cuts off or fills up is left out.

    Args:
      path: the file.
      pad, eos, mask: pieces; empty: the first of the usual names that the vocabulary has. Where it has no padding, that
        is the EOS, and so is the unknown id where no text is unknown.
      sentinels: how many sentinels the vocabulary must have. Those that the file does not hold are put after its last
        id in descending order, the first one last.

    Raises:
      UserError: the package is not installed; no file, not a tokenizer, no EOS, a piece that it does not hold, ids that
        are drawn at random.
    """

    def __init__(self, path: str | Path, pad: str = "", eos: str = "", mask: str = "", sentinels: int = 0):
        self.path = Path(path)
        self._arguments = (str(path), pad, eos, mask, sentinels)
        content = read_vocabulary(self.path, "a tokenizer.json")
        self._tokenizer = _open(content, self.path)
        described = json.loads(content)
        self._vocabulary: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        self._file_size = max(self._vocabulary.values()) + 1  # ids may have holes
        added = [each for each, token in self._tokenizer.get_added_tokens_decoder().items() if token.special]
        eos_id = self._named("eos", eos, EOS_NAMES)
        if eos_id is None:
            special = ", ".join(piece for piece, identifier in self._vocabulary.items() if identifier in added)
            got = f"{path} has none of the usual names"
            raise UserError("data.corpus.tokenizer.eos", got, f"one of its pieces: {special}")
        self.eos_id = eos_id
        pad_id = self._named("pad", pad, PAD_NAMES)
        self.pad_id = eos_id if pad_id is None else pad_id
        self.mask_id = self._named("mask", mask, MASK_NAMES)
        unknown = _unknown(described["model"], self._vocabulary)
        self.unk_id = eos_id if unknown is None else unknown
        self.sentinel_ids = self._find_sentinels(sentinels)
        self.vocab_size = max([self._file_size - 1, *self.sentinel_ids]) + 1
        hidden = [*added, self.pad_id, eos_id, *self.sentinel_ids, *([] if self.mask_id is None else [self.mask_id])]
        holes = sorted({*range(self._file_size)}.difference(self._vocabulary.values()))
        self.special_ids = tuple(dict.fromkeys([self.pad_id, eos_id, self.unk_id, *hidden, *holes]))
        self._hidden = np.zeros(self.vocab_size, bool)
        self._hidden[[identifier for identifier in hidden if identifier != unknown]] = True
        decisive = repr((self.pad_id, eos_id, self.mask_id, self.sentinel_ids))
        self.fingerprint = hashlib.sha256(content + decisive.encode()).hexdigest()
        names = {sentinel_piece(i): sentinel for i, sentinel in enumerate(self.sentinel_ids)}
        self._beyond = {name: sentinel for name, sentinel in names.items() if sentinel >= self._file_size}
        self._names = {identifier: piece for piece, identifier in (self._vocabulary | self._beyond).items()}
        self._kind = type(self._tokenizer.model).__name__
        self._byte_level = '"ByteLevel"' in json.dumps(described.get("decoder"))

    def _find(self, piece: str) -> int | None:
        return self._vocabulary.get(piece)

    def piece(self, identifier: int) -> str:
        return self._names.get(identifier, f"<id {identifier}>")

    def encode(self, text: str) -> list[int]:
        ids = []
        for encoded in (self._of_prompts.encode(chunk, add_special_tokens=False) for chunk in self._cut(text)):
            # The library gives added pieces the first ids that it takes for free, which holes may lie below.
            ids += [self._beyond.get(piece, each) for piece, each in zip(encoded.tokens, encoded.ids, strict=True)]
        return ids

    def encode_batch(self, texts: Sequence[str], threads: int = 0) -> list[np.ndarray]:
        def encode(chunks: list[str]) -> list[np.ndarray]:
            # The library has no number of cores to set; what it is given at once, it spreads over all.
            groups = groups_of(chunks, 1 if threads == 1 else _AT_ONCE)
            encoded = (self._of_documents.encode_batch_fast(group, add_special_tokens=False) for group in groups)
            return [np.array(each.ids, np.int32) for group in encoded for each in group]

        return encode_documents(texts, _CHUNK, self._cut, encode, self._hidden, self._spell)

    def decode(self, ids: Sequence[int]) -> str:
        parts: list[str] = []
        shown = (each for each in map(int, ids) if each not in (self.pad_id, self.eos_id))
        # Others are sentinels beyond the file, or of a padded model but of no vocabulary.
        for in_file, run in itertools.groupby(shown, lambda each: each < self._file_size and each in self._names):
            each = list(run)
            parts += [self._decode_run(each, bool(parts))] if in_file else map(self.piece, each)
        return "".join(parts)

    def _cut(self, text: str) -> list[str]:
        return cut_text(text, _CHUNK, _LONGEST, self._resume)

    def _decode_run(self, run: list[int], inside: bool) -> str:
        # The first space of a text may not be shown; inside of one it is, so what is inside is shown after some piece.
        before = self._anchor if inside and run else []
        text = self._tokenizer.decode([*before, *run], skip_special_tokens=False)
        return text[len(self._tokenizer.decode(before, skip_special_tokens=False)) :]

    @functools.cached_property
    def _anchor(self) -> list[int]:
        return _ids(self._tokenizer, "a")

    @functools.cached_property
    def _of_prompts(self) -> Any:
        """The tokenizer that knows the sentinels beyond the file too."""
        if not self._beyond:
            return self._tokenizer
        tokenizer = _open(self._tokenizer.to_str().encode(), self.path)
        tokenizer.add_special_tokens(list(self._beyond))
        return tokenizer

    @functools.cached_property
    def _of_documents(self) -> Any:
        """The tokenizer that takes the names of special tokens for text."""
        tokenizer = _open(self._tokenizer.to_str().encode(), self.path)
        tokenizer.encode_special_tokens = True
        return tokenizer

    def _spell(self, identifier: int) -> np.ndarray:
        # Only for a special id that is a piece like any other: those of special tokens do not come out of documents.
        text = self._text_of(identifier)
        parts = [_ids(self._of_documents, part) for part in (text[:1], text[1:])]
        if identifier in parts[1]:
            parts = [_ids(self._of_documents, letter) for letter in text]
        return np.array([each for part in parts for each in part], np.int32)

    def _resume(self, text: str, border: int) -> int | None:
        left, right = text[max(0, border - _AROUND) : border], text[border : border + _AROUND]
        tokenizer = self._of_documents
        whole, first = _ids(tokenizer, left + right), _ids(tokenizer, left)
        for skipped in (0, 1):  # some put a space before every text they are given
            if whole == first + _ids(tokenizer, right[skipped:]):
                return border + skipped
        return None

    def _text_of(self, identifier: int) -> str:
        piece = self._names.get(identifier, "")
        if self._byte_level:
            return self._tokenizer.decoder.decode([piece])
        if self._kind == "WordPiece":
            return piece[2:] if piece.startswith("##") else f" {piece}"
        return piece.replace("\u2581", " ")

    def _named(self, which: str, given: str, usual: tuple[str, ...]) -> int | None:
        if given and given not in self._vocabulary:
            got, alike = f"{self.path} has no piece {given!r}", [each for each in self._vocabulary if each[:1] in "<["]
            raise UserError(f"data.corpus.tokenizer.{which}", got, "one of its pieces", nearest(given, alike))
        return next((self._vocabulary[name] for name in (given, *usual) if name in self._vocabulary), None)

    def _find_sentinels(self, count: int) -> tuple[int, ...]:
        names = map(sentinel_piece, range(count))
        found = [self._vocabulary.get(name, self._vocabulary.get(f"\u2581{name}")) for name in names]
        last = self._file_size + found.count(None)
        missing = iter(range(last - 1, self._file_size - 1, -1))
        return tuple(next(missing) if identifier is None else identifier for identifier in found)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def _unknown(model: dict, vocabulary: dict[str, int]) -> int | None:
    identifier = model.get("unk_id")
    return vocabulary.get(model.get("unk_token") or "") if identifier is None else identifier


def _open(content: bytes, path: Path) -> Any:
    where = "data.corpus.tokenizer"
    try:
        import tokenizers
    except ImportError:
        how = "pip install 't5x-like[tokenizers]'"
        raise UserError(where, "the package 'tokenizers' is not installed", "", how) from None
    try:
        tokenizer = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
    except Exception as error:  # the library raises nothing more special
        raise UserError(f"{where}.path", f"{path} is not a tokenizer.json: {error}", "") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if getattr(tokenizer.model, "dropout", None):
        raise UserError(f"{where}.path", f"{path} draws ids at random (dropout)", "a file whose model has no dropout")
    return tokenizer
