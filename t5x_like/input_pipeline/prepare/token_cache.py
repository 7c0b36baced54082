"""The token cache: the folder that training reads by memory map, opened and checked.

Knows files of token ids; must not know texts, tokenizers, lengths or batches. The cache of a corpus is a folder that
appears whole, by one rename, or not at all:

  manifest.json                      what was tokenized with what; counts and SHA-256 of the files below
  train.tokens, heldout.tokens       the ids of all documents end to end, little-endian uint16 or uint32, no EOS
  train.offsets, heldout.offsets     where each document starts, int64, one more than there are documents
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from t5x_like.core.errors import UserError, require
from t5x_like.input_pipeline.disk import check_files, map_array
from t5x_like.input_pipeline.sources.splits import SPLIT_NAMES, SplitName

# Bump when the layout changes, so that older caches are built anew instead of misread.
FORMAT_VERSION = 2
# Caches up to this size are checked byte by byte when opened (about 0.1 s); larger ones by the sizes of their files.
VERIFY_BYTES = 64 * 2**20


@dataclass(frozen=True)
class TokenSplit:
    """The documents of one split, as one array of ids. Pickled as the place it was opened from, if it has one.

    Attributes:
      name: name of the split, ``train`` or ``heldout``.
      tokens: (tokens,) uint16 or uint32, the documents end to end, read from disk when touched.
      offsets: (documents + 1,) int64, read likewise; document i is ``tokens[offsets[i] : offsets[i + 1]]``.
      folder: the cache that it was opened from; None for one made in memory.
    """

    name: SplitName
    tokens: np.ndarray
    offsets: np.ndarray
    folder: Path | None = None

    @property
    def lengths(self) -> np.ndarray:
        """(documents,) int64, tokens of each document."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def document(self, index: int) -> np.ndarray:
        """(length,) the ids of document ``index``."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    def __reduce__(self) -> tuple[Callable, tuple]:
        if self.folder is None:
            return TokenSplit, (self.name, self.tokens, self.offsets)
        return _open_split, (self.folder, self.name)


@dataclass(frozen=True)
class TokenCache:
    """A tokenized corpus on disk.

    Attributes:
      path: path of its folder.
      manifest: content of ``manifest.json``: corpus, tokenizer fingerprint, what was counted while preparing, and for
        each split documents, tokens and digests of its files.
    """

    path: Path
    manifest: dict

    @property
    def tokenizer_fingerprint(self) -> str:
        return self.manifest["tokenizer"]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all token and offset files: equal exactly where the tokens are, on whatever machine."""
        digests = [file["sha256"] for name in SPLIT_NAMES for file in self.manifest["splits"][name]["files"].values()]
        return hashlib.sha256("".join(digests).encode()).hexdigest()

    @property
    def size(self) -> int:
        """Bytes of its token and offset files."""
        return sum(file["bytes"] for split in self.manifest["splits"].values() for file in split["files"].values())

    def split(self, name: SplitName) -> TokenSplit:
        """The documents of ``train`` or ``heldout``. Raises ``UserError`` for a split without documents."""
        require(name in SPLIT_NAMES, "split", repr(name), ", ".join(SPLIT_NAMES))
        recorded = self.manifest["splits"][name]
        if not recorded["documents"]:
            raise self._empty(name)
        tokens = map_array(self.path / f"{name}.tokens", self.manifest["dtype"])
        offsets = map_array(self.path / f"{name}.offsets", "<i8")
        return TokenSplit(name, tokens, offsets, self.path)

    def _empty(self, name: SplitName) -> UserError:
        got = f"the {name} split of {self.manifest['name']} is empty"
        if not self.manifest["heldout"]:
            return UserError("data.corpus.heldout", got, "a share above 0")
        got += f": it is one document, with no white space in its last {self.manifest['heldout']:.4g} to divide it at"
        return UserError("data.corpus.heldout", got, "two documents or more, or 0", "data.corpus.heldout=0")

    def left_out(self) -> list[str]:
        """Files and documents left out of the cache, a line for each reason; empty if none are."""
        counts = self.manifest["counts"]
        lines = list(counts.get("files", ()))
        lines += [f"{counts['empty']:,} empty"] if counts["empty"] else []
        lines += [f"{count:,} dropped by {rule}" for rule, count in counts["dropped"].items()]
        lines += [f"{counts['duplicates']:,} copies of an earlier document"] if counts["duplicates"] else []
        for kind, bad in counts["bad"].items():
            lines.append(f"{bad['count']:,} that could not be read: {kind}; the first: {bad['first']}")
        return lines


def token_type(vocab_size: int) -> str:
    """The numpy type in which ids of a vocabulary are stored."""
    return "<u2" if vocab_size <= 2**16 else "<u4"


def open_cache(path: Path) -> TokenCache:
    """Opens a finished cache folder, checking sizes, and digests too where it is small.

    Raises:
      UserError: not a cache, one of another version, or a file that is missing or not as it was written.
    """
    manifest = _read_manifest(path)
    files = {name: file for split in manifest["splits"].values() for name, file in split["files"].items()}
    check_files(path, files, by_content=sum(file["bytes"] for file in files.values()) <= VERIFY_BYTES)
    return TokenCache(path, manifest)


def _read_manifest(path: Path) -> dict:
    try:
        manifest = json.loads((path / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        suggestion = "remove the folder; it will be made again"
        raise UserError(str(path), f"not a token cache: {error}", "", suggestion) from None
    found = manifest.get("format") if isinstance(manifest, dict) else None
    require(found == FORMAT_VERSION, str(path), f"a token cache of format {found}", str(FORMAT_VERSION), "remove it")
    return manifest


def _open_split(path: Path, name: SplitName) -> TokenSplit:
    # In another process of the same run: the digests have been checked by the first one.
    return TokenCache(path, _read_manifest(path)).split(name)
