"""``t5x-like explain``: the rows and parameters of a step that stand out, with texts and sources."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from t5x_like.core.errors import refuse

if TYPE_CHECKING:
    from t5x_like.train.explain import Parameter, Row

_PARAMETERS = 8  # shown of each ranking


def explain(options: argparse.Namespace) -> int:
    """Prints how a step came about, of several processes the first; 1 if it could not be replayed bit for bit."""
    import jax

    from t5x_like.input_pipeline.batches.show import row_summary, show_row
    from t5x_like.report.batches import BatchConsole
    from t5x_like.train.explain import explain_step

    refuse(options.rows < 1, "--rows", str(options.rows), "1 or more")
    found = explain_step(options.run, options.step, options.code, options.accept_changed, not options.no_proof)
    code = 0 if all(same for _, same in found.proofs) else 1
    if jax.process_index():
        return code
    console, metrics = BatchConsole(options.color), found.metrics
    console.title(f"{options.run}, step {found.step:,}, replayed from step {found.replayed_from:,}")
    console.line(f"loss {metrics['loss']:.6g}, gradient norm {metrics['gradient_norm']:.6g}, "
                 f"learning rate {metrics['learning_rate']:.3g}" + "; its update was left out" * (not metrics["made"]))
    for what, same in found.proofs:
        console.line(f"bit for bit {what}" if same else f"WARNING: not bit for bit {what}: other devices or versions?")
    if not found.proofs:
        console.line("nothing is recorded that this replay could be compared with")
    by_norm = sorted(found.rows, key=lambda row: -row.gradient_norm)
    by_loss = sorted(found.rows, key=lambda row: -row.loss)
    for title, rows in (("gradient", by_norm), ("loss", by_loss)):
        console.line()
        console.title(f"rows with the largest {title}")
        console.table([("row", "loss", "gradient norm", "targets", "documents"), *map(_row, rows[: options.rows])])
    for index, row in {row.index: row for row in (*by_norm[: options.rows], *by_loss[: options.rows])}.items():
        text = show_row(found.batch, index, found.data.tokenizer)
        console.row(f"row {index} · {_documents(row)}", row_summary(found.batch, index), text)
    console.legend()
    for title, key in (("gradient", "gradient_norm"), ("update", "update_ratio")):
        console.line()
        console.title(f"parameters with the largest {title}")
        ranked = sorted(found.parameters, key=lambda each: -getattr(each, key))
        console.table(_parameters(ranked[:_PARAMETERS]))
    return code


def _documents(row: Row) -> str:
    """Such as ``tiny 3, 4``."""
    by_corpus: dict[str, list[str]] = {}
    for corpus, index in row.documents:
        by_corpus.setdefault(corpus, []).append(f"{index}")
    return "; ".join(f"{corpus} {', '.join(indices)}" for corpus, indices in by_corpus.items())


def _row(row: Row) -> tuple[str, ...]:
    return f"{row.index}", f"{row.loss:.4f}", f"{row.gradient_norm:.4g}", f"{row.targets:,}", _documents(row)


def _parameters(found: Sequence[Parameter]) -> list[tuple[str, ...]]:
    names = [each.path + (f" [{each.layer}]" if each.layer is not None else "") for each in found]
    numbers = ((f"{p.gradient_norm:.4g}", f"{p.norm:.4g}", f"{p.update_ratio:.3g}") for p in found)
    rows = ((name, *of_it) for name, of_it in zip(names, numbers, strict=True))
    return [("parameter", "gradient norm", "norm", "update / norm"), *rows]
