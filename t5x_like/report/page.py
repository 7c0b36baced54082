"""The report of a run: one HTML page that opens without a network, for readers who never saw the run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from t5x_like import __version__
from t5x_like.core.config import flatten
from t5x_like.core.paths import write_atomically
from t5x_like.core.text import duration, short
from t5x_like.report import sections
from t5x_like.report.markup import Text, escaped, markup
from t5x_like.report.told import Told, read_run

PAGE = "report.html"
STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1080px; padding: 24px 16px 64px; background: #fff; color: #222;
  font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; }
h1 { font-size: 26px; line-height: 1.2; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 20px; margin: 40px 0 8px; padding-top: 12px; border-top: 2px solid #222; }
h3 { font-size: 16px; margin: 24px 0 6px; }
p { margin: 6px 0; max-width: 80ch; }
.note { color: #555; font-size: 13px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 10px; margin: 18px 0; }
.tile { background: #f4f6f8; border-radius: 8px; padding: 10px 12px; }
.tile b { display: block; font-size: 21px; line-height: 1.25; }
.tile span { color: #555; font-size: 13px; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 20px; }
figure { margin: 12px 0 0; max-width: 560px; }
figcaption { font-weight: 600; }
svg { display: block; width: 100%; height: auto; font: 12px system-ui, "DejaVu Sans", sans-serif; }
svg text { fill: #444; }
.grid { stroke: #e6e6e6; }
.mark { stroke: #777; stroke-dasharray: 1 3; stroke-width: 1.5; }
.gap { fill: #e9e9e9; }
polyline { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
polyline.faint { opacity: .3; stroke-width: 1; }
polyline.dashed { stroke-dasharray: 5 4; stroke-width: 1.4; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 14px; font-size: 13px; color: #333; }
.box { display: inline-block; width: 11px; height: 11px; border-radius: 2px; margin-right: 6px; }
.bar { position: relative; display: flex; height: 26px; border-radius: 4px; overflow: hidden; background: #f4f6f8;
  margin: 8px 0; }
.part { display: block; height: 100%; }
.lap { position: absolute; top: 0; height: 100%; min-width: 1px; }
.row { display: flex; align-items: center; gap: 10px; }
.row .name { flex: 0 0 82px; font-size: 13px; }
.row .bar { flex: 1; height: 18px; margin: 3px 0; }
.scroll { overflow-x: auto; margin: 8px 0; }
table { border-collapse: collapse; font-size: 13.5px; }
th { text-align: left; color: #555; font-weight: 600; }
th, td { padding: 4px 14px 4px 0; border-bottom: 1px solid #e6e6e6; vertical-align: top; }
td { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; min-width: 2ch; }
td.short { white-space: nowrap; }
td:not(.short) { min-width: 190px; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f4f6f8; border-radius: 6px; padding: 10px 12px;
  font-size: 13px; margin: 6px 0; }
summary { cursor: pointer; font-weight: 600; margin-top: 20px; }
"""


def write_report(
    directory: Path, other: Path | None = None, out: Path | None = None, names: Sequence[str] = ()
) -> Path:
    """Writes the report of a run, or of two beside each other; by default to report.html in the first one's folder.

    Args:
      directory, other: the runs' folders.
      out: the page.
      names: what the folders are called there, such as addresses; empty: their paths.

    Raises:
      UserError: a folder without ledger and metrics; a file that cannot be written.
    """
    runs = [read_run(each) for each in (directory, other) if each is not None]
    runs = [dataclasses.replace(run, directory=name) for run, name in zip(runs, names, strict=True)] if names else runs
    if len({run.name for run in runs}) < len(runs):
        runs = [dataclasses.replace(run, name=str(run.directory)) for run in runs]
    path = out or directory / PAGE
    write_atomically(path, page(runs))
    return path


def page(runs: list[Told]) -> str:
    """The page of one run, or of two."""
    run, shown = runs[0], [_head(runs[0])]

    def add(title: str, note: str, content: Text) -> None:
        if content:
            shown.extend([markup("h2", title), markup("p", note) if note else Text(""), content])

    if len(runs) > 1:
        note = f"{runs[0].name} beside {runs[1].name}; the sections after the curves are of {runs[0].name}."
        add("Comparison", note, sections.comparison(*runs))
    add("Curves", "", sections.curves(runs))
    add("Where the time went", "", sections.times(run))
    add("Attempts, faults and other events", "An attempt is one start of the run, from its command to its end.",
        sections.attempts(run))  # fmt: skip
    add("Data", "", sections.data(run))
    add("Config and versions", "", sections.config(run))
    title, style = escaped(f"{run.name}: report"), f"<style>{STYLE}</style>"
    head = (f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{title}</title>{style}")  # fmt: skip
    made = markup("p", f"Made by t5x-like {__version__} from the ledger and metrics in {run.directory}.", kind="note")
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>{"".join(shown)}{made}</body></html>\n'


def _head(run: Told) -> Text:
    account, fields, values = run.account, flatten(run.config), run.values
    total, name = fields.get("train.steps"), fields.get("name")
    of = f" of {total:,}" if isinstance(total, int) else ""
    attempts = account.attempts
    said = f"{run.last:,}{of} updates made"
    if attempts:
        said += f" in {len(attempts):,} attempt{'s' * (len(attempts) > 1)}, the first on "
        said += f"{sections.moment(attempts[0].began)}; the last one: {attempts[-1].ending}"
    tiles: list[tuple[str, str]] = [(f"{run.last:,}", f"updates made{of}")]
    held_out = [metric for metric in values if metric.endswith("/loss") and metric != "train/loss"]
    for metric in ("train/loss", *held_out[:2]):
        if metric in values:
            step = max(values[metric])
            what = metric.rsplit("/", 1)[0].replace("_", "-").replace("train", "training")
            tiles.append((f"{values[metric][step]:.4g}", f"{what} loss, step {step:,}"))
    if account.total:
        tiles += [(f"{account.goodput:.1%}", "goodput: time in kept training steps"),
                  (duration(account.total), "since the first start")]  # fmt: skip
    tokens = [max(curve.items())[1] for metric, curve in values.items() if metric.endswith("/tokens")]
    tiles += [(short(sum(tokens)), "tokens of text seen")] if tokens else []
    tiles += [(f"{run.faults:,}", "faults and kills"), (f"{len(run.of('skipped')):,}", "updates skipped")]
    return markup(
        "header", markup("h1", f"{run.name}: report"), markup("p", f"{_what(fields, name)}{said}."),
        markup("div", *(markup("div", markup("b", value), markup("span", what), kind="tile") for value, what in tiles),
               kind="tiles"),
    )  # fmt: skip


def _what(fields: dict[str, Any], name: Any) -> str:
    objective, corpus = fields.get("objective.kind"), fields.get("data.corpus.name")
    words = [f"Run {name}" if name else "", f"trained by {objective}" if objective else "",
             f"on {corpus}" if corpus else ""]  # fmt: skip
    return " ".join(word for word in words if word) + ": " if any(words) else ""
