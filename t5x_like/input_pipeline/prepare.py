"""Tokenizes a corpus once, into a token cache that training reads by memory map.

Knows documents, tokenizers and files; must not know objectives, lengths or batches, so that one cache serves every run
over the same text and vocabulary. The cache of a corpus is a folder that appears whole, by one rename, or not at all:

  manifest.json                      what was tokenized with what; counts and SHA-256 of the files below
  train.tokens, heldout.tokens       the ids of all documents end to end, little-endian uint16 or uint32, no EOS
  train.offsets, heldout.offsets     where each document starts, int64, one more than there are documents
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from t5x_like.core.errors import UserError
from t5x_like.core.paths import write_atomically
from t5x_like.input_pipeline.config import Corpus, cache_folder
from t5x_like.input_pipeline.locks import held_lock
from t5x_like.input_pipeline.sources import read_documents, source_digest
from t5x_like.input_pipeline.splits import SPLIT_NAMES, SplitName, split_documents
from t5x_like.input_pipeline.tokenizers import Tokenizer, load_tokenizer

# Bump when the layout changes, so that older caches are built anew instead of misread.
FORMAT_VERSION = 1
# Caches up to this size are checked byte by byte when opened (about 0.1 s); larger ones by the sizes of their files.
VERIFY_BYTES = 64 * 2**20
# Documents go to the tokenizer in groups of about this many characters, so that it can use several cores.
_GROUP_CHARACTERS = 4_000_000


@dataclass(frozen=True)
class Progress:
    """How far ``prepare`` is: documents and tokens written so far."""

    documents: int
    tokens: int


@dataclass(frozen=True)
class TokenSplit:
    """The documents of one split, as one array of ids.

    Attributes:
      name: ``train`` or ``heldout``.
      tokens: (tokens,) uint16 or uint32, the documents end to end, read from disk when touched.
      offsets: (documents + 1,) int64; document i is ``tokens[offsets[i] : offsets[i + 1]]``.
    """

    name: SplitName
    tokens: np.ndarray
    offsets: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """(documents,) int64, tokens of each document."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def document(self, index: int) -> np.ndarray:
        """(length,) the ids of document ``index``."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]


@dataclass(frozen=True)
class TokenCache:
    """A tokenized corpus on disk.

    Attributes:
      path: its folder.
      manifest: what ``manifest.json`` holds: corpus, tokenizer fingerprint, and for each split documents, tokens and
        digests of its files.
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

    def split(self, name: SplitName) -> TokenSplit:
        """The documents of ``train`` or ``heldout``. Raises ``UserError`` for a split without documents."""
        if name not in SPLIT_NAMES:
            raise UserError("split", repr(name), ", ".join(SPLIT_NAMES))
        recorded = self.manifest["splits"][name]
        if not recorded["documents"]:
            raise UserError(
                "data.corpus.heldout", f"the {name} split of {self.manifest['name']} is empty", "a share above 0"
            )
        tokens = np.memmap(self.path / f"{name}.tokens", self.manifest["dtype"], "r", shape=(recorded["tokens"],))
        return TokenSplit(name, tokens, np.fromfile(self.path / f"{name}.offsets", "<i8"))


def prepare(corpus: Corpus, cache: str = "", progress: Callable[[Progress], None] | None = None) -> TokenCache:
    """The token cache of ``corpus``, made now if it is not there yet.

    The folder's name holds a digest of the source files, the tokenizer and the options: a change of any of them is
    noticed and makes a new cache. Any number of processes may call this at once; one builds, the others wait for it,
    and where the file system has no locks all build and the first rename wins.

    Args:
      corpus: what to tokenize.
      cache: the cache folder, as ``DataConfig.cache``.
      progress: called now and then while tokenizing; not called where the cache is there already.

    Raises:
      UserError: from the source and the tokenizer; or a cache whose files are damaged; or a folder or disk that cannot
        be written.
    """
    folder = cache_folder(cache) / "corpora"
    tokenizer = load_tokenizer(corpus, cache)
    key = (FORMAT_VERSION, source_digest(corpus.source), repr(corpus.source), tokenizer.fingerprint, corpus.heldout)
    path = folder / f"{corpus.name}-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}"
    if not (path / "manifest.json").is_file():
        with held_lock(path.with_name(f"{path.name}.lock")):
            if not (path / "manifest.json").is_file():
                if path.exists():  # a rename brings the folder whole: somebody has been in it
                    open_cache(path)
                _build(corpus, tokenizer, path, progress)
    return open_cache(path)


def open_cache(path: Path) -> TokenCache:
    """Opens a finished cache folder, checking sizes, and digests too where it is small.

    Raises:
      UserError: not a cache, one of another version, or a file that is missing or not as it was written.
    """
    try:
        manifest = json.loads((path / "manifest.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(
            str(path), f"not a token cache: {error}", "", "remove the folder; it will be made again"
        ) from None
    if manifest.get("format") != FORMAT_VERSION:
        raise UserError(
            str(path), f"a token cache of format {manifest.get('format')}", str(FORMAT_VERSION), "remove it"
        )
    files = {name: file for split in manifest["splits"].values() for name, file in split["files"].items()}
    small = sum(file["bytes"] for file in files.values()) <= VERIFY_BYTES
    for name, file in files.items():
        size = (path / name).stat().st_size if (path / name).is_file() else -1
        if size != file["bytes"] or (small and _digest(path / name) != file["sha256"]):
            raise UserError(
                str(path / name),
                "missing" if size < 0 else "not as it was written",
                f"{file['bytes']} bytes with SHA-256 {file['sha256'][:16]}...",
                f"remove {path}; it will be made again",
            )
    return TokenCache(path, manifest)


def _build(corpus: Corpus, tokenizer: Tokenizer, path: Path, progress: Callable[[Progress], None] | None) -> None:
    """Tokenizes into a temporary folder beside ``path`` and renames it there."""
    dtype = "<u2" if tokenizer.vocab_size <= 2**16 else "<u4"
    temporary = None
    try:
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        documents = split_documents(lambda: read_documents(corpus.source), corpus.heldout)
        counts = _write_splits(documents, tokenizer, temporary, dtype, progress)
        splits = {
            name: {
                "documents": counts[name][0],
                "tokens": counts[name][1],
                "files": {file: _describe_file(temporary / file) for file in (f"{name}.tokens", f"{name}.offsets")},
            }
            for name in SPLIT_NAMES
        }
        manifest = {
            "format": FORMAT_VERSION,
            "name": corpus.name,
            "licence": corpus.licence,
            "origin": corpus.origin,
            "source": repr(corpus.source),
            "heldout": corpus.heldout,
            "tokenizer": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "dtype": dtype,
            "splits": splits,
        }
        write_atomically(temporary / "manifest.json", json.dumps(manifest, indent=2).encode())
        temporary.chmod(0o755)  # mkdtemp's folders are closed to others; a cache may be shared
        try:
            os.rename(temporary, path)
        except OSError:
            if not (path / "manifest.json").is_file():  # else another process was first, with the same content
                raise
    except OSError as error:
        raise UserError(
            "data.cache",
            f"{path.parent}: {error.strerror}",
            "a folder on a disk with room",
            "set data.cache or $T5X_LIKE_CACHE",
        ) from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _write_splits(
    documents: Iterable[tuple[str, bool]],
    tokenizer: Tokenizer,
    folder: Path,
    dtype: str,
    progress: Callable[[Progress], None] | None,
) -> dict[str, tuple[int, int]]:
    """Writes tokens and offsets of both splits; returns documents and tokens of each."""
    offsets: dict[str, list[int]] = {name: [0] for name in SPLIT_NAMES}
    with (folder / "train.tokens").open("wb") as train, (folder / "heldout.tokens").open("wb") as heldout:
        files: dict[str, BinaryIO] = {"train": train, "heldout": heldout}
        for group in _groups(documents):
            for ids, (_, is_heldout) in zip(tokenizer.encode_batch([text for text, _ in group]), group, strict=True):
                name = "heldout" if is_heldout else "train"
                files[name].write(np.asarray(ids, dtype).tobytes())
                offsets[name].append(offsets[name][-1] + len(ids))
            if progress is not None:
                progress(Progress(sum(map(len, offsets.values())) - 2, sum(each[-1] for each in offsets.values())))
    for name in SPLIT_NAMES:
        np.asarray(offsets[name], "<i8").tofile(folder / f"{name}.offsets")
    return {name: (len(offsets[name]) - 1, offsets[name][-1]) for name in SPLIT_NAMES}


def _groups(documents: Iterable[tuple[str, bool]]) -> Iterator[list[tuple[str, bool]]]:
    group, size = [], 0
    for document in documents:
        group.append(document)
        size += len(document[0])
        if size >= _GROUP_CHARACTERS:
            yield group
            group, size = [], 0
    if group:
        yield group


def _describe_file(path: Path) -> dict:
    return {"bytes": path.stat().st_size, "sha256": _digest(path)}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
