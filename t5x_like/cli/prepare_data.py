"""``t5x-like prepare``: makes the token caches of a run's corpora, and prints their contents."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from t5x_like.core.errors import refuse
from t5x_like.core.text import table

if TYPE_CHECKING:
    from t5x_like.input_pipeline.prepare.progress import Progress
    from t5x_like.input_pipeline.prepare.token_cache import TokenCache
    from t5x_like.train.config import Run


def prepare_data(run: Run, options: argparse.Namespace) -> int:
    """Prepares every corpus of ``run`` that is not prepared; prints a table of each."""
    from t5x_like.input_pipeline.config import corpora
    from t5x_like.input_pipeline.prepare.beam import prepare_with_beam
    from t5x_like.input_pipeline.prepare.prepare import prepare
    from t5x_like.input_pipeline.prepare.vocabulary import tokenizer_config
    from t5x_like.report.preparing import Preparing

    refuse(options.processes < 0, "--processes", str(options.processes), "0 (one for each core) or more")
    refuse(bool(options.beam_options) and not options.beam, "--", "options of Apache Beam without --beam",
           "--beam -- " + " ".join(options.beam_options))
    tokenizer = tokenizer_config(run.data.corpus, run.data.cache, print)
    processes = options.processes or run.data.prepare_processes
    for whole in corpora(run.data.corpus):
        corpus = whole.window_of(0) if whole.window else whole  # later windows are prepared during training
        began = time.perf_counter()
        with Preparing() as bar:
            if options.beam:
                cache = prepare_with_beam(corpus, tokenizer, run.data.cache, options.beam_options, bar)
            else:
                cache = prepare(corpus, tokenizer, run.data.cache, bar, processes)
        _print(cache, bar.last, time.perf_counter() - began)
    return 0


def _print(cache: TokenCache, last: Progress | None, seconds: float) -> None:
    manifest = cache.manifest
    made = last is not None and last.doing == "merging"  # by this process, and not before
    print(manifest["name"] + ("" if made else ": prepared already"))
    splits = manifest["splits"]
    rows = [(name, f"{s['documents']:,} documents", f"{s['tokens']:,} tokens") for name, s in splits.items()]
    print("\n".join(table(rows, indent="  ")))
    for line in cache.left_out():
        print(f"  left out {line}")
    text = manifest["counts"]["text_bytes"]
    tokens = sum(split["tokens"] for split in splits.values())
    print(f"  text     {text / 1e6:,.1f} MB, {text / max(1, tokens):.2f} bytes per token")
    if last is not None and made:
        rate = f"resumed from {last.resumed / 1e6:,.1f} MB" if last.resumed else f"{text / 1e6 / seconds:,.1f} MB/s"
        print(f"  time     {seconds:,.1f} s, {rate}")
    print(f"  cache    {cache.size / 1e6:,.1f} MB in {cache.path}", flush=True)
