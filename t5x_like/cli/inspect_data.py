"""``t5x-like inspect data``: a batch as text, where its rows come from, and a picture of lengths and fill."""

from __future__ import annotations

import argparse
import functools
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from t5x_like.core.errors import UserError, refuse
from t5x_like.core.ranges import NonNegativeInt
from t5x_like.core.structure import structure

if TYPE_CHECKING:
    from t5x_like.input_pipeline.batches.pipeline import Batches
    from t5x_like.input_pipeline.batches.windows import Windows
    from t5x_like.input_pipeline.prepare.token_cache import TokenCache
    from t5x_like.train.config import Run

_PLOTTED_ROWS = 512
_PLOTTED_DOCUMENTS = 1_000_000  # of a corpus; of more documents this many are taken at even distances


def inspect_data(run: Run, options: argparse.Namespace) -> int:
    """Prints rows of the batch of ``options.step``; draws ``options.plot`` if it is given."""
    from t5x_like.input_pipeline.batches.features import tokens_in
    from t5x_like.input_pipeline.batches.show import row_summary, show_row
    from t5x_like.report.batches import BatchConsole
    from t5x_like.report.preparing import Preparing
    from t5x_like.train.data import Data

    step = structure(NonNegativeInt, options.step or 0, "--step", text=False)
    refuse(options.rows < 0, "--rows", str(options.rows), "0 or more")
    with Preparing(sys.stderr) as preparing:
        data = Data.open(run, preparing, functools.partial(print, file=sys.stderr))
    console = BatchConsole(options.color)
    batch, sources = data.train.batch(step), data.train.sources_of(step)
    count = tokens_in(batch)
    console.title(f"{run.name}, step {step:,}, epoch {data.train.epoch_of(step):.3f}")
    full = f"{count.tokens:,} tokens in {count.slots:,} slots ({count.tokens / count.slots:.1%} full)"
    console.line(f"{len(batch['targets'])} rows, {full}, loss on {count.loss_tokens:,} targets\n")
    rows = Counter(name for name, _ in sources)
    console.table([
        ("corpus", "rows", "share", "tokens before this step", "epochs"),
        *((name, str(rows[name]), f"{rows[name] / len(sources):.1%}", f"{seen.tokens:,}", f"{seen.epochs:.3f}")
          for name, seen in data.train.seen(step).items()),
    ])  # fmt: skip
    objectives = Counter(str(objective) for _, objective in sources)
    if len(objectives) > 1:
        console.line()
        console.table([
            ("objective", "rows", "share"),
            *((name, str(count), f"{count / len(sources):.1%}") for name, count in objectives.most_common()),
        ])  # fmt: skip
    for name, cache in data.caches.items():
        for line in cache.left_out():
            console.line(f"left out when {name} was prepared: {line}")
    for row, (name, objective) in enumerate(sources[: options.rows]):
        console.row(f"row {row} · {name} · {objective}", row_summary(batch, row), show_row(batch, row, data.tokenizer))
    console.legend()
    if options.plot:
        console.line(f"\n{_plot(run, data.train, data.caches, step, Path(options.plot))}")
    return 0


def _plot(run: Run, train: Batches | Windows, caches: dict[str, TokenCache], step: int, picture: Path) -> Path:
    import numpy as np

    from t5x_like.input_pipeline.batches.show import fill
    from t5x_like.report.batches import Lengths, plot_lengths

    lengths = []
    for name, cache in caches.items():
        split = cache.split("train")
        chosen = np.arange(0, len(split), -(-len(split) // _PLOTTED_DOCUMENTS))
        lengths.append(Lengths(name, len(split), split.offsets[chosen + 1] - split.offsets[chosen]))
    row_tokens = [stream.objective.piece_length(run.data, run.model.shape) for stream in train.streams]
    fills = []
    for each in range(step, step + -(-_PLOTTED_ROWS // run.train.batch_size)):
        try:
            fills.append(fill(train.batch(each)))
        except UserError:  # the text is used up, though not before the first of them, which has been shown
            break
    shares = {side: np.concatenate([each[side] for each in fills])[:_PLOTTED_ROWS] for side in fills[0]}
    try:
        return plot_lengths(f"{run.name}, from step {step:,}", lengths, row_tokens, shares, picture)
    except OSError as error:
        raise UserError("--plot", f"{picture}: {error.strerror}", "a file that can be written") from None
