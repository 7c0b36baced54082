"""Tokenizes a corpus once, into a token cache that training reads by memory map.

Knows documents, tokenizers and files; must not know objectives, lengths or batches, so that one cache serves every run
over the same text and vocabulary. The corpus is cut into parts, which this process or several tokenize into a work
folder (``parts``), and which are then merged (``merge``). The work folder, ``.NAME.work`` beside the cache, stays where
a process is killed, and the next one resumes from it; it may be removed by hand at any time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from t5x_like.core.config import to_plain
from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.config import Corpus, TokenizerConfig, cache_folder
from t5x_like.input_pipeline.disk import NewFolder, held_lock, is_left_behind, room_in, temporary_name
from t5x_like.input_pipeline.prepare import parts
from t5x_like.input_pipeline.prepare.merge import CACHE_FILES, CacheWriter, PartFiles, mark_copies, merge, survey
from t5x_like.input_pipeline.prepare.parts import Counts, Part, SourceChanged, Work, cut_into_parts
from t5x_like.input_pipeline.prepare.progress import Progress, Show, Tally
from t5x_like.input_pipeline.prepare.published import make_once
from t5x_like.input_pipeline.prepare.token_cache import FORMAT_VERSION, TokenCache, TokenSplit, open_cache, token_type
from t5x_like.input_pipeline.processes import available_cores
from t5x_like.input_pipeline.sources.files import File
from t5x_like.input_pipeline.sources.splits import SPLIT_NAMES, division_of, split_tail, text_hash
from t5x_like.input_pipeline.tokenizers.base import Tokenizer
from t5x_like.input_pipeline.tokenizers.tokenizer import open_tokenizer

__all__ = ["Progress", "TokenCache", "TokenSplit", "open_cache", "prepare", "prepare_by"]

# Bytes per process started: to start costs as much as to tokenize one to five million of them. Below
# twice that this process does all by itself, with as many threads as the tokenizer can use.
_BYTES_PER_PROCESS = 32_000_000
# Approximate characters of a part of a source that is read by one process.
_GENERATED_PART_CHARACTERS = 16_000_000

# Tokenizes the given parts into the work folder, showing how far it is; returns the counts of each part by its number.
TokenizeParts = Callable[[Work, list[Part], Tokenizer, Tally], dict[int, Counts]]


def prepare(
    corpus: Corpus, tokenizer: TokenizerConfig, cache: str = "", progress: Show | None = None, processes: int = 0
) -> TokenCache:
    """The token cache of ``corpus``, made now if it is not there yet.

    The folder's name holds a digest of the source files, the tokenizer and the options: a change of any of them is
    noticed and makes a new cache. Any number of processes may call this at once; one builds, the others wait for it,
    and where the file system has no locks all build and the first rename wins. What is made depends neither on the
    number of processes nor on how often it was stopped.

    Args:
      corpus: corpus to tokenize; its own tokenizer is not read.
      tokenizer: the vocabulary, with its path.
      cache: cache folder, as ``DataConfig.cache``.
      progress: function of the progress, called a few times a second while tokenizing; not called for a finished cache.
      processes: number of processes that tokenize; 0: one per core, or this one for a small corpus. The documents of a
        Python function are tokenized by this one in any case.

    Raises:
      UserError: from the source and the tokenizer; or a cache whose files are damaged; or a folder or disk that cannot
        be written; or a worker process that was killed.
    """

    def tokenize(work: Work, wanted: list[Part], opened: Tokenizer, tally: Tally) -> dict[int, Counts]:
        count = processes or min(available_cores(), sum(part.size for part in wanted) // _BYTES_PER_PROCESS)
        if min(count, len(wanted)) > 1:
            return parts.tokenize_in_processes(work, wanted, count, tally)
        return {
            part.number: parts.tokenize_part(
                work, part, opened, functools.partial(tally.advance, part.number), threads=processes != 1
            )
            for part in wanted
        }

    return prepare_by(tokenize, corpus, tokenizer, cache, progress)


def prepare_by(
    tokenize: TokenizeParts, corpus: Corpus, tokenizer: TokenizerConfig, cache: str, progress: Show | None
) -> TokenCache:
    """``prepare`` with another way to tokenize parts."""
    opened = open_tokenizer(tokenizer)
    files, path = corpus.source.files(), cache_path(corpus, opened, cache)
    name = path.name
    work = path.with_name(f".{name}.work")
    if not (path / "manifest.json").is_file():
        left_out = corpus.source.left_out()
        notes = [*(f"left out: {line}" for line in left_out), *_note_unfinished(work, corpus.name)]
        tally = Tally(corpus.name, progress, "; ".join(notes))
        with held_lock(path.with_name(f"{name}.lock"), lambda: tally.say("waiting")) as alone:
            if not (path / "manifest.json").is_file():
                if path.exists():  # a folder appears whole, by a rename: it was changed since
                    open_cache(path)
                build = _Build(corpus, tokenizer, opened, files, left_out, path, work, tally)

                def make() -> None:
                    with build.work_folder(alone):
                        build.run(tokenize)

                make_once(cache, path, make, lambda: tally.say("waiting"))
    if work.is_dir():  # left by a process that was killed between publishing the cache and removing its work folder
        with contextlib.suppress(UserError), held_lock(path.with_name(f"{name}.lock")) as alone:
            if alone:
                shutil.rmtree(work, ignore_errors=True)
    return open_cache(path)


def cache_path(corpus: Corpus, tokenizer: Tokenizer, cache: str) -> Path:
    """Where the token cache of ``corpus`` is, or will be."""
    key = (
        FORMAT_VERSION, corpus.source.digest(), corpus.source.reading(), tokenizer.fingerprint, corpus.heldout,
        corpus.deduplicate, repr(corpus.filters), corpus.bad_documents,
    )  # fmt: skip
    return cache_folder(cache) / "corpora" / f"{corpus.name}-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}"


@dataclasses.dataclass(frozen=True, eq=False)
class _Build:
    """A cache that is being made.

    Attributes:
      corpus: corpus to prepare.
      config, tokenizer: the vocabulary, and the same opened.
      files: files of the source at the start.
      left_out: what ``Source.left_out`` says of others.
      path: path of the cache.
      folder: the work folder.
      tally: counter that shows the progress.
    """

    corpus: Corpus
    config: TokenizerConfig
    tokenizer: Tokenizer
    files: list[File]
    left_out: list[str]
    path: Path
    folder: Path
    tally: Tally

    @contextlib.contextmanager
    def work_folder(self, alone: bool) -> Iterator[None]:
        """Makes the work folder; removes it at the end, and at an error if nothing in it is of use.

        Args:
          alone: whether no other process can be at work in it.
        """
        with room_in(self.path.parent):
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in self.folder.glob(".*") if alone else ():
                if is_left_behind(left.name):
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
        try:
            yield
        except BaseException as error:
            # Where there are no locks, another process was first and took the folder away under this one, which may
            # have gone on writing into it while that happened.
            overtaken = isinstance(error, Exception) and (self.path / "manifest.json").is_file()
            useless = isinstance(error, parts.BadDocument | SourceChanged) or not any(self.folder.glob("[0-9]*"))
            if alone and useless:
                shutil.rmtree(self.folder, ignore_errors=True)
            if not overtaken:
                raise
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, tokenize: TokenizeParts) -> None:
        """Makes the parts that are not finished, and the cache of all parts."""
        source = self.corpus.source
        skip_bad, folder = self.corpus.bad_documents == "skip", str(self.folder.absolute())
        work = Work(source, self.config, self.tokenizer.fingerprint, self.corpus.filters, skip_bad, folder)
        found = self._tokenize_units(work, tokenize) if source.by_units else list(self._tokenize_items(work))
        if source.files() != self.files:
            raise parts.source_changed()
        total = Counts()
        for counts in found:
            total.add(counts)
        if not total.documents:
            dropped = f"; {sum(total.dropped.values()):,} dropped by data.corpus.filters" if total.dropped else ""
            got = f"no documents in {source.describe()}{dropped}"
            raise UserError("data.corpus.source", got, "at least one that has text")
        self.tally.say("merging")
        files = [PartFiles(parts.part_path(self.folder, i), counts.documents) for i, counts in enumerate(found)]
        with room_in(self.folder):
            self._merge(files, total)

    def _tokenize_units(self, work: Work, tokenize: TokenizeParts) -> list[Counts]:
        files = {file.address: file for file in self.files}
        cut = cut_into_parts(work.source.units())
        cut = [dataclasses.replace(part, stamp=parts.stamp_of(part.units, files)) for part in cut]
        self.tally.expect(sum(part.size for part in cut))
        finished: dict[int, Counts] = {}
        for part in cut:
            counts = parts.finished_part(self.folder, part.number, part.identity)
            if counts is not None:
                finished[part.number] = counts
                self.tally.resume(part.number, counts.documents, counts.tokens, part.size)
        if waiting := [part for part in cut if part.number not in finished]:
            self.tally.say("tokenizing")
            finished |= tokenize(work, waiting, self.tokenizer, self.tally)
        return [finished[part.number] for part in cut]

    def _tokenize_items(self, work: Work) -> Iterator[Counts]:
        """The same for a source that one process reads from its beginning, also to resume."""
        identity = f"generated, {_GENERATED_PART_CHARACTERS}"
        for number, documents in enumerate(_cut_documents(work.source.items())):
            counts = parts.finished_part(self.folder, number, identity)
            if counts is None:
                report = functools.partial(self.tally.advance, number)
                counts = parts.tokenize_documents(work, number, identity, documents, self.tokenizer, report, True)
                report(counts.documents, counts.tokens, 0)
            else:
                self.tally.resume(number, counts.documents, counts.tokens, 0)
                self._pass_over(work, number, documents)
            yield counts

    def _pass_over(self, work: Work, number: int, documents: Iterator[str | UserError]) -> None:
        """Reads the documents of a finished part, to come to those after it."""
        recorded = parts.part_path(self.folder, number) / "documents"
        hashes = iter(np.fromfile(recorded, parts.DOCUMENT)["hash"])
        wanted = next(hashes, None)
        for text in parts.kept_documents(documents, work, Counts()):
            if wanted is not None and text_hash(text.encode("utf-8", "surrogatepass")) == wanted.tobytes():
                wanted = next(hashes, None)
            elif len(self.tokenizer.encode_batch([text])[0]):  # documents of no tokens are not recorded
                raise _other_documents(work, number)
        if wanted is not None:
            raise _other_documents(work, number)

    def _merge(self, files: list[PartFiles], counts: Counts) -> None:
        """Makes the cache from finished parts."""
        copies = mark_copies(files, self.folder) if self.corpus.deduplicate else None
        least, greatest, only = survey(files, copies)
        dtype = token_type(self.tokenizer.vocab_size)
        with NewFolder(self.folder / temporary_name("cache"), CACHE_FILES) as folder:
            cache = CacheWriter(folder.files, dtype)
            if only is not None and self.corpus.heldout > 0.0:
                for name, text in zip(SPLIT_NAMES, self._split_only(only), strict=False):
                    ids = self.tokenizer.encode_batch([text])[0].astype(dtype)
                    if len(ids):
                        cache.write(name, [ids], np.asarray([len(ids)]))
            else:
                merge(files, dtype, copies, division_of(self.corpus.heldout, least, greatest), cache)
            manifest = self._manifest(dtype, counts, copies.count() if copies else 0)
            folder.publish(self.path, "manifest.json", {**manifest, "splits": cache.splits(folder.close())})

    def _manifest(self, dtype: str, counts: Counts, copies: int) -> dict:
        corpus, tokenizer = self.corpus, self.tokenizer
        as_given = ("name", "licence", "origin", "heldout", "deduplicate", "bad_documents")
        counted = {name: getattr(counts, name) for name in ("text_bytes", "empty", "dropped", "bad")}
        return {
            "format": FORMAT_VERSION, **{name: getattr(corpus, name) for name in as_given},
            "source": repr(corpus.source), "filters": to_plain(corpus.filters),
            "tokenizer": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size, "dtype": dtype,
            "counts": {"files": self.left_out, **counted, "duplicates": copies},
        }  # fmt: skip

    def _split_only(self, wanted: bytes) -> tuple[str, ...]:
        for item in self.corpus.source.items():
            if isinstance(item, str) and text_hash(item.encode("utf-8", "surrogatepass")) == wanted:
                return split_tail(item, self.corpus.heldout)
        raise UserError("data.corpus.source", "gave other documents the second time", "the same ones each time")


def _other_documents(work: Work, number: int) -> SourceChanged:
    got = f"{work.source.describe()} gave other documents in part {number} than before preparing was stopped"
    allowed = "a function that yields the same documents in the same order each time"
    return SourceChanged("data.corpus.source", got, allowed, "sort what it reads; run again: preparing begins anew")


def _note_unfinished(work: Path, name: str) -> list[str]:
    """Says which other states of a corpus have work folders: they are resumed only if that state comes back."""
    pattern = re.compile(rf"\.{re.escape(name)}-[0-9a-f]{{16}}\.work")
    others = sorted(path for path in work.parent.glob(".*.work") if pattern.fullmatch(path.name) and path != work)
    if not others:
        return []
    of = "another state of it was" if len(others) == 1 else f"{len(others)} other states of it were"
    return [f"{of} begun and not finished; to make room remove {', '.join(map(str, others))}"]


def _cut_documents(items: Iterable[str | UserError]) -> Iterator[Iterator[str | UserError]]:
    """Cuts documents into parts; each must be read to its end before the next one is asked for."""
    iterator = iter(items)

    def part(first: str | UserError) -> Iterator[str | UserError]:
        characters = 0
        for item in itertools.chain([first], iterator):
            yield item
            characters += len(item) if isinstance(item, str) else 0
            if characters >= _GENERATED_PART_CHARACTERS:
                return

    for first in iterator:
        yield part(first)
