"""Checks of texts, vocabulary and token caches. Prepare nothing."""

from __future__ import annotations

import itertools
from pathlib import Path

from t5x_like.check.case import Case
from t5x_like.check.said import Said
from t5x_like.check.storage import free_bytes
from t5x_like.core.errors import refuse
from t5x_like.core.paths import make_writable
from t5x_like.core.storage import make_writable as make_place_writable
from t5x_like.core.storage import place
from t5x_like.core.text import duration, short
from t5x_like.input_pipeline.config import Corpus, cache_address, cache_folder, corpora
from t5x_like.input_pipeline.disk import check_files
from t5x_like.input_pipeline.prepare.published import is_there
from t5x_like.input_pipeline.prepare.token_cache import TokenCache, open_cache
from t5x_like.input_pipeline.processes import available_cores
from t5x_like.input_pipeline.tokenizers.tokenizer import check_vocabulary
from t5x_like.plan.memory import in_bytes

READ_WHOLE = 20e9  # bytes of a token cache up to which its digests are checked: about 20 s
RATE = 3e6  # bytes of text that a core prepares in a second: SentencePiece, benchmarks/input.py
BYTES_PER_BYTE = 1.5  # of cache and work folder to a byte of text, at most


def corpus(case: Case) -> Said:
    """Every source is there, and the first document of each that is not prepared can be read."""
    told = []
    for each in corpora(case.run.data.corpus):
        files = case.sources[each.name]
        size = f"{len(files):,} files, {in_bytes(sum(file.size for file in files))}" if files else "made by code"
        told.append(f"{each.name}: {size}")
        if not _is_prepared(case, each):
            next(iter(each.source.texts(each.bad_documents)))
    return Said("; ".join(told))


def _is_prepared(case: Case, corpus: Corpus) -> bool:
    """Whether some cache of it is there: of which text and tokenizer, another check says."""
    return any(cache_folder(case.run.data.cache).glob(f"corpora/{corpus.name}-*/manifest.json"))


def tokenizer(case: Case) -> Said:
    """The vocabulary opens and fits the model."""
    if (found := case.tokenizer) is None:
        return Said(f"will be trained on {case.run.data.corpus.name} when that is prepared", "warning")
    check_vocabulary(found, case.run.model.vocab_size)
    return Said(f"{found.vocab_size:,} ids, of {case.run.model.vocab_size:,} in the model")


def cache(case: Case) -> Said:
    """Every token cache is whole, or there is room to make it; and the text lasts for the steps."""
    told, missing, whole = [], 0.0, True
    for name, (_, path) in case.caches.items():
        if path is not None and path.exists():
            told.append(f"{name}: {_whole(open_cache(path))}")
        elif path is not None and is_there(case.run.data.cache, path):
            told.append(f"{name}: in {cache_address(case.run.data.cache)}, from where each machine copies it")
        else:
            missing, whole = missing + sum(file.size for file in case.sources[name]), False
            told.append(f"{name}: not prepared")
    if (data := case.data) is not None:
        data.train.check(case.run.train.steps)
        return Said("; ".join(told))
    folder = cache_folder(case.run.data.cache)
    if whole:
        return Said("; ".join(told))
    if address := cache_address(case.run.data.cache):
        make_place_writable(place(address, "data.cache"), "data.cache")
    make_room(folder, missing * BYTES_PER_BYTE)
    time = duration(missing / RATE / available_cores())
    cost = f"about {time} on {available_cores()} cores" if missing else "the time depends on your code"
    told.append(f"the first process prepares it before it trains ({cost}); t5x-like prepare does it now")
    return Said("; ".join(told), "warning")


def make_room(folder: Path, needed: float) -> None:
    """Raises UserError unless the folder can be written and has room."""
    existed = [path for path in (folder, *folder.parents) if not path.exists()]
    make_writable(folder, "data.cache")
    free = free_bytes(folder)
    for path in existed:
        path.rmdir()
    refuse(needed > free, "data.cache", f"{in_bytes(free)} free in {folder}",
           f"{in_bytes(needed)}, which preparing may take", "make room, or set data.cache or $T5X_LIKE_CACHE")


def _whole(cache: TokenCache) -> str:
    """What a cache holds, all of it read unless it is very large."""
    splits = cache.manifest["splits"]
    files = dict(itertools.chain.from_iterable(split["files"].items() for split in splits.values()))
    check_files(cache.path, files, by_content=cache.size <= READ_WHOLE)
    read = "every byte as written" if cache.size <= READ_WHOLE else "sizes as written"
    return f"{short(sum(split['tokens'] for split in splits.values()))} tokens, {read}"
