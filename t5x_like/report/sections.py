"""The sections of the report page, each from what one or two runs tell to a piece of HTML."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from typing import Any

from t5x_like.core.config import diff, flatten
from t5x_like.core.text import duration, short
from t5x_like.report.account import KEPT, LOST, MEANING, Attempt
from t5x_like.report.compare import common_values
from t5x_like.report.markup import Text, details, figure, markup, table
from t5x_like.report.metrics import changes, gaps
from t5x_like.report.plots import COLOURS, HELD_OUT, SMOOTHED_OVER, smooth
from t5x_like.report.svg import Line, chart
from t5x_like.report.told import Told

TIME_COLOURS = dict(zip(MEANING, ("#2e8b57", "#d1495b", "#e08e45", "#8e5ea2", "#4c9f9f", "#2a6fbb", "#7fb069",
                                  "#b0a18f", "#9aa5b1", "#e3e6ea"), strict=True))  # fmt: skip
FIRST = ("loss", "gradient_norm", "learning_rate", "tokens_per_second")
NOTES = {
    "loss": "Nats per target: minus the logarithm of the probability that the model gave to the right token. Lower is "
            "better. The bold line is a running mean of the pale one; dots are on text that is never trained on.",
    "gradient_norm": "Length of the gradient of all parameters, before it is clipped. Jumps announce trouble.",
    "learning_rate": "Factor of each update, as the schedule sets it.",
    "tokens_per_second": "Tokens read and predicted per second by all devices, without saves and evaluations.",
    "perplexity": "The exponential of the loss: among how many equally likely tokens the model chooses.",
    "accuracy": "Share of targets that the model finds most likely.",
    "utilization": "Share of the devices' peak operations per second that the model's own arithmetic takes.",
    "peak_bytes": "Most memory ever taken on the first device, in bytes.",
    "fill": "Share of the places of a batch that hold a token, the rest being padding.",
    "targets": "Number of targets with weight in a step.",
    "nll": "The loss without what is added to it, such as a z loss. Nats per target.",
}  # fmt: skip
UNITS = {"loss": "nats per target", "nll": "nats per target", "tokens_per_second": "tokens/s", "peak_bytes": "bytes"}
OTHER_PANELS, EVENTS, SAMPLES = 10, 200, 3


def moment(seconds: float) -> str:
    """Seconds since 1970 as a date and a time."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def curves(runs: Sequence[Told]) -> Text:
    """A panel for each statistic, both runs in it."""
    names = {name for run in runs for name in run.values if "/" in name and not name.endswith(("/tokens", "/epochs"))}
    lasts = sorted({name.rsplit("/", 1)[1] for name in names} - {*FIRST})
    panels, span = [], (0, max(run.last for run in runs))
    for last in (*FIRST, *lasts[:OTHER_PANELS]):
        lines = [line for number, run in enumerate(runs) for line in _lines(run, last, number, len(runs) == 1)]
        lost = [gap for run in runs for gap in gaps(run.rows)]
        from_zero = last in ("learning_rate", "tokens_per_second")
        drawn = chart(lines, "step", last.replace("_", " "), span, _marks(runs), lost, from_zero)
        if drawn:
            unit = f", {UNITS[last]}" if last in UNITS else ""
            panels.append(figure(last.replace("_", " ") + unit, drawn, NOTES.get(last, "A statistic of the run."),
                                 [(line.name, line.colour) for line in lines if line.name]))  # fmt: skip
    note = ("Each value is a mean over the steps since the value before. Dotted upright lines: a new attempt or a "
            "changed config; point at one to read which. Grey: rows of metrics that were lost.")  # fmt: skip
    return markup("section", markup("p", note), markup("div", *panels, kind="panels")) if panels else Text("")


def _lines(run: Told, last: str, number: int, single: bool) -> Iterable[Line]:
    prefix = "" if single else f"{run.name}: "
    for name, values in sorted(run.values.items()):
        if name.rsplit("/", 1)[-1] != last or "/" not in name:
            continue
        label, colour = prefix + name.rsplit("/", 1)[0].replace("_", "-"), COLOURS[number]
        points = [*values.items()]
        if not name.startswith(("train/", "data/", "memory/")):
            yield Line(label, points, HELD_OUT if single else colour, dots=True)
            continue
        points = sorted([*points, *((first, math.nan) for first, _ in gaps(run.rows))])
        if last in ("learning_rate", "tokens_per_second") or len(points) < 30:
            yield Line(label, points, colour)
            continue
        yield Line("", points, colour, faint=True)
        smoothed = smooth([y for _, y in points], SMOOTHED_OVER * len(points))
        yield Line(label, [*zip([x for x, _ in points], smoothed, strict=True)], colour)


def _marks(runs: Sequence[Told]) -> list[tuple[float, str]]:
    marks = []
    for run in runs:
        changed = changes(run.rows)
        of = f"{run.name}: " if len(runs) > 1 else ""
        marks += [(step, f"{of}step {step:,}: {', '.join(fields)} changed") for step, fields in changed.items()]
        marks += [(attempt.first, f"{of}attempt {attempt.number}, from step {attempt.first:,}")
                  for attempt in run.account.attempts[1:] if attempt.first not in changed]  # fmt: skip
    return marks


def times(run: Told) -> Text:
    """The account, a bar for each attempt, and the time of a step."""
    account = run.account
    if not account.total:
        return markup("p", "The ledger has no line, so that nothing is known of the time.")
    rows = [[markup("span", kind="box", style=f"background:{TIME_COLOURS[name]}"), duration(seconds),
             f"{seconds / account.total:.1%}", _explained(name, meaning)]
            for name, meaning in MEANING.items() if (seconds := account.seconds[name])]  # fmt: skip
    whole_time = _explained("in all", "from the first start to the last line of the ledger")
    rows.append(["", duration(account.total), "100%", whole_time])
    whole = _bar([(name, seconds) for name, seconds in account.seconds.items()], account.total)
    bars = [markup("div", markup("span", f"attempt {attempt.number}", kind="name"), _timeline(attempt, run), kind="row")
            for attempt in account.attempts]  # fmt: skip
    lost = f" {account.lost_steps:,} updates were made twice." if account.lost_steps else ""
    goodput = (f"Goodput {account.goodput:.1%}: of {duration(account.total)} since the first start, "
               f"{duration(account.seconds[KEPT])} went into training steps that were kept.{lost}")  # fmt: skip
    steps = [(lap.last, (lap.seconds.get(KEPT, 0.0) + lap.seconds.get(LOST, 0.0)) / (lap.last - lap.first))
             for attempt in account.attempts for lap in attempt.laps[1:] if lap.last > lap.first]  # fmt: skip
    milli = [(x, 1000 * y) for x, y in sorted(steps)]
    drawn = chart([Line("", milli, COLOURS[0])], "step", "time of a step", (0, run.last), from_zero=True)
    note = "Mean over stretches of a second to a minute; waiting for data, saves and evaluations left out."
    return markup(
        "section", markup("p", goodput), whole, table(("", "time", "share", "spent on"), rows),
        markup("h3", "Attempts over time"), *bars[-40:],
        markup("p", "Each line is one start of the run; its place and length are those on the clock.", kind="note"),
        markup("div", figure("time of a step, ms", drawn, note) if drawn else "", kind="panels"),
    )  # fmt: skip


def _explained(name: str, meaning: str) -> Text:
    return Text(markup("b", name) + markup("div", meaning, kind="note"))


def _bar(parts: Iterable[tuple[str, float]], total: float) -> Text:
    spans = [markup("span", kind="part", style=f"width:{100 * seconds / total:.3f}%;background:{TIME_COLOURS[name]}",
                    title=f"{name}: {duration(seconds)}") for name, seconds in parts if seconds > 0]  # fmt: skip
    return markup("div", *spans, kind="bar")


def _timeline(attempt: Attempt, run: Told) -> Text:
    """The attempt's laps in their places between the first start and the last line."""
    begun, ended = run.account.attempts[0].began, max(each.ended for each in run.account.attempts)
    total = max(ended - begun, 1e-9)
    spans, gathered, since = [], dict[str, float](), attempt.began
    for number, lap in enumerate(attempt.laps):
        for name, seconds in lap.seconds.items():
            gathered[name] = gathered.get(name, 0.0) + seconds
        if lap.ended - since < total / 150 and number + 1 < len(attempt.laps):
            continue  # too short to be seen
        width = sum(gathered.values())
        left, scale = since, (lap.ended - since) / width if width else 0.0
        for name, seconds in gathered.items():
            style = (f"left:{100 * (left - begun) / total:.3f}%;width:{100 * seconds * scale / total:.3f}%;"
                     f"background:{TIME_COLOURS[name]}")  # fmt: skip
            spans.append(markup("span", kind="lap", style=style, title=f"{name}: {duration(seconds)}"))
            left += seconds * scale
        gathered, since = {}, lap.ended
    return markup("div", *spans, kind="bar")


def attempts(run: Told) -> Text:
    """A table of the starts, and one of what happened."""
    hosts: dict[int, list[str]] = {}
    for start in run.of("start"):
        hosts.setdefault(start["attempt"], []).append(str(start.get("host", "?")))
    rows = [[str(attempt.number), moment(attempt.began), duration(attempt.ended - attempt.began),
             f"{attempt.first:,} to {attempt.last:,}", str(attempt.start.get("devices", "?")),
             ", ".join(sorted(set(hosts.get(attempt.number, ["?"])))[:8]), attempt.ending or "killed, without a word"]
            for attempt in run.account.attempts]  # fmt: skip
    quiet = ("steps", "save", "evaluation", "sample", "compile", "data", "restore", "start")
    happened = [event for event in run.events if event["event"] not in quiet]
    told = [[moment(event["time"]), str(event["attempt"]), str(event["process"]),
             "" if event["step"] is None else f"{event['step']:,}", event["event"], _words(event)]
            for event in happened[-EVENTS:]]  # fmt: skip
    left = f" The last {EVENTS} of {len(happened):,}." if len(happened) > EVENTS else ""
    note = f"Faults and kills: {run.faults:,}. Updates skipped: {len(run.of('skipped')):,}.{left}"
    return markup(
        "section", markup("h3", "Attempts"),
        table(("attempt", "began", "lasted", "steps", "devices", "hosts", "how it ended"), rows),
        markup("h3", "What happened"), markup("p", note),
        table(("time", "attempt", "process", "step", "event", "details"), told) if told else "",
    )  # fmt: skip


def _words(event: dict[str, Any]) -> str:
    known = ("time", "event", "step", "spent", "attempt", "process")
    said = [str(event[name]) for name in ("kind", "message") if event.get(name)]
    said += [f"{name} {value}" for name, value in event.items() if name not in (*known, "kind", "message")]
    text = "; ".join(said)
    return text if len(text) <= 500 else text[:497] + "..."


def data(run: Told) -> Text:
    """Tokens and epochs of each corpus, rows of a batch as text, and what the model wrote last."""
    rows = []
    for name, values in run.values.items():
        if name.startswith("data/") and name.endswith("/tokens"):
            corpus = name.removeprefix("data/").removesuffix("/tokens")
            epochs = run.values.get(f"data/{corpus}/epochs", {})
            step = max(values)
            rows.append([corpus, short(values[step]), f"{epochs[step]:.3f}" if step in epochs else "", f"{step:,}"])
    shown = [markup("h3", "Text seen"), table(("corpus", "tokens", "epochs", "up to step"), rows)] if rows else []
    if seen := run.of("data"):
        lines = [line for line in seen[-1].get("rows") or [] if isinstance(line, str)]
        title = f"Rows of the first batch of attempt {seen[-1]['attempt']}, as the model gets them"
        shown += [markup("h3", title), *(markup("pre", line[:2000]) for line in lines)] if lines else []
    samples = [event for event in run.of("sample") if isinstance(event.get("text"), dict) and event["text"]]
    if samples:
        shown += [markup("h3", "What the model wrote"),
                  markup("p", "Of a held-out text, which it was not trained on: what it was given, what it wrote, and "
                              "what the text says. Brackets are around what the model filled in.")]  # fmt: skip
    for event in [*{event["step"]: event for event in samples}.values()][-SAMPLES:]:
        lines = [[name, str(text)[:1500]] for name, text in event["text"].items()]
        shown += [markup("p", f"after step {event['step'] or 0:,}"), table(("", "text"), lines)]
    return markup("section", *shown) if shown else Text("")


def config(run: Told) -> Text:
    """What changed over the attempts, all fields, versions."""
    rows = [[str(start["attempt"]), f"{start['step'] or 0:,}", name, _value(pair[0]), _value(pair[1])]
            for start in run.starts for name, pair in (start.get("changed") or {}).items()
            if isinstance(pair, list) and len(pair) == 2]  # fmt: skip
    shown = [markup("h3", "Changes over the attempts"),
             table(("attempt", "from step", "field", "before", "from then on"), rows) if rows
             else markup("p", "The config was the same in all attempts.")]  # fmt: skip
    found = [(start["attempt"], start["versions"]) for start in run.starts if isinstance(start.get("versions"), dict)]
    distinct = [pair for number, pair in enumerate(found) if not number or pair[1] != found[number - 1][1]]
    if distinct:
        packages = dict.fromkeys(name for _, versions in distinct for name in versions)
        title = "Versions" + (", which changed" if len(distinct) > 1 else ", the same in all attempts")
        rows = [[name, *(str(versions.get(name, "")) for _, versions in distinct)] for name in packages]
        shown += [markup("h3", title), table(("package", *(f"from attempt {number}" for number, _ in distinct)), rows)]
    fields = [[name, _value(value)] for name, value in flatten(run.config).items()]
    command = run.starts[-1].get("command") if run.starts else None
    shown += [markup("h3", "Last command"), markup("pre", " ".join(map(str, command)))] if command else []
    shown += [details(f"All {len(fields):,} fields of the last start", table(("field", "value"), fields))]
    return markup("section", *shown)


def comparison(run: Told, other: Told) -> Text:
    """Two runs' last common values, configs and times."""
    values = [[name, f"{step:,}", f"{a:.6g}", f"{b:.6g}", f"{b - a:+.3g}"]
              for name, step, a, b in common_values(run.values, other.values)]  # fmt: skip
    fields = [[name, _value(one), _value(two)] for name, (one, two) in diff(run.config, other.config).items()]
    both = [(each.account.seconds, each.account.total or 1.0) for each in (run, other)]
    spent = [[name, *(f"{duration(seconds[name])} ({seconds[name] / total:.1%})" for seconds, total in both)]
             for name in MEANING if any(seconds[name] for seconds, _ in both)]  # fmt: skip
    names = (run.name, other.name)
    return markup(
        "section", markup("h3", "Values"), markup("p", "At the last step that both runs have a value of."),
        table(("metric", "step", *names, "difference"), values), markup("h3", "Time"), table(("", *names), spent),
        markup("h3", "Config"),
        table(("field", *names), fields) if fields else markup("p", "The configs are the same."),
    )  # fmt: skip


def _value(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 300 else text[:297] + "..."
