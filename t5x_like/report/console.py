"""What a run shows on the console: an opening, one live line of progress, held-out results, a closing summary.

On a terminal the line of progress updates in place (rich); into a pipe or a file go plain lines, without colours or
carriage returns, at intervals that grow from one second to one minute. Only formats what it is given: must not know how
anything was measured.
"""

from __future__ import annotations

import dataclasses
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TextIO

from t5x_like.report.clock import Share, account_table

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.console import RenderableType
    from rich.live import Live

SMOOTHING = 0.8  # share of the past in the smoothed loss, per call of `progress`
FASTEST, SLOWEST, GROWTH = 1.0, 60.0, 0.1  # seconds between plain lines: 10% of the time so far, within these bounds
REFRESH = 0.1  # seconds between updates of the live line, at least


@dataclasses.dataclass(frozen=True)
class Opening:
    """What a run is. ``tokens_per_step`` counts what the model reads and predicts in one update of all devices;
    ``first_step`` is above 0 for a resumed run."""

    name: str
    model: str
    devices: str
    attention: str
    parameters: int
    tokens_per_step: int
    steps: int
    directory: str
    first_step: int = 0
    gradients: str = ""  # how they are added up over devices


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a run is. None for what is not known (yet).

    ``utilization`` is a fraction of what the hardware could do, and ``utilization_of`` says of what: ``MFU`` or
    ``roofline``.
    """

    step: int
    loss: float | None = None
    tokens_per_second: float | None = None
    utilization: float | None = None
    utilization_of: str = "MFU"
    learning_rate: float | None = None
    seconds_left: float | None = None
    checkpoint_step: int | None = None


class Console:
    """The console of one run; silent in every process but 0. Close it before others write to the terminal.

    Args:
      total_steps: how many updates the run makes.
      out: where to write; standard output by default.
      process_index: which process this is.
      now: seconds from a clock that never goes back; given by tests.
      live: whether ``out`` is a terminal; found out by default.
    """

    def __init__(
        self, total_steps: int, *, out: TextIO | None = None, process_index: int = 0,
        now: Callable[[], float] = time.perf_counter, live: bool | None = None,
    ):
        self._total = total_steps
        self._out = out or sys.stdout
        self._silent = bool(process_index)
        self._now = now
        self._began = now()
        self._next = -math.inf  # when the next line may be shown
        self._loss, self._loss_weight = 0.0, 0.0
        self._live: Live | None = None
        self._rich: RichConsole | None = None
        terminal = self._out.isatty() and os.environ.get("TERM") != "dumb" if live is None else live
        if terminal and not self._silent:
            from rich.console import Console as RichConsole  # 50 ms: only for those who see it

            self._rich = RichConsole(file=self._out, force_terminal=True, highlight=False)

    def opening(self, opening: Opening) -> None:
        """Says what is about to run."""
        facts = {
            "model": f"{opening.model}, {short(opening.parameters)} parameters ({opening.parameters:,})",
            "devices": opening.devices,
            "attention": opening.attention,
            "steps": f"{opening.steps:,} of {short(opening.tokens_per_step)} tokens, "
                     f"{short(opening.steps * opening.tokens_per_step)} tokens in all"
                     + (f"; going on from step {opening.first_step:,}" if opening.first_step else ""),
            **({"gradients": opening.gradients} if opening.gradients else {}),
            "directory": opening.directory,
        }
        self._facts(opening.name, facts)

    def progress(self, progress: Progress) -> None:
        """Shows where the run is, if the last time is long enough ago or the run is at its end."""
        if self._silent:
            return
        if progress.loss is not None and math.isfinite(progress.loss):
            self._loss = SMOOTHING * self._loss + (1 - SMOOTHING) * progress.loss
            self._loss_weight = SMOOTHING * self._loss_weight + (1 - SMOOTHING)
        now = self._now()
        if now < self._next and progress.step < self._total:
            return
        parts = self._parts(progress)
        if self._rich is not None:
            self._next = now + REFRESH
            self._show(self._line(parts, progress.step))
        else:
            self._next = now + min(SLOWEST, max(FASTEST, GROWTH * (now - self._began)))
            print("  ".join(text for _, text in parts), file=self._out, flush=True)

    def evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """A line of held-out results, which stays: name and value, such as ``held_out/loss``."""
        results = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        width = len(f"{self._total:,}")
        self._print(f"{step:>{width},}/{self._total:,}  {results}", style="bold green", mark="▸ ")

    def note(self, message: str) -> None:
        """A message that stays: a warning, a checkpoint restored, a step skipped."""
        self._print(message, style="yellow" if message.startswith("WARNING") else "")

    def summary(self, outcome: str, facts: Mapping[str, str], account: Sequence[Share] = ()) -> None:
        """The end of a run.

        Args:
          outcome: the headline, such as ``complete`` or ``stopped at step 120``.
          facts: names and values, such as where the plot is.
          account: where the time went, from `clock.Clock.account`.
        """
        self.close()
        self._facts(outcome, facts)
        if account:
            self._print("where the time went\n" + account_table(list(account)))

    def close(self) -> None:
        """Ends the live line, leaving it as last shown."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    # Within

    def _parts(self, progress: Progress) -> list[tuple[int, str]]:
        """(importance, text) in the order shown; a narrow terminal leaves the least important (highest) out."""
        width = len(f"{self._total:,}")
        share = progress.step / self._total if self._total else 1.0
        parts = [(0, f"{progress.step:>{width},}/{self._total:,}"), (3, f"{math.floor(share * 100):>3}%")]
        if progress.loss is not None:
            # A loss that is not finite must be seen, not smoothed away.
            shown = self._loss / self._loss_weight if math.isfinite(progress.loss) else progress.loss
            parts.append((0, f"loss {shown:<6.4g}" if abs(shown) >= 1000 else f"loss {shown:.3f}"))
        if progress.tokens_per_second is not None:
            parts.append((1, f"{short(progress.tokens_per_second):>5} tokens/s"))
        if progress.utilization is not None:
            parts.append((4, f"{progress.utilization_of} {progress.utilization:.0%}"))
        if progress.learning_rate is not None:
            parts.append((6, f"lr {progress.learning_rate:.2e}"))
        if progress.seconds_left is not None and progress.step < self._total:
            parts.append((2, f"{duration(progress.seconds_left):>6} left"))
        if progress.checkpoint_step is not None:
            parts.append((5, f"saved {progress.checkpoint_step:,}"))
        return parts

    def _line(self, parts: list[tuple[int, str]], step: int) -> RenderableType:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        room = self._rich.width - 1 if self._rich is not None else 80
        kept = list(parts)
        while len(kept) > 1 and sum(len(text) + 2 for _, text in kept) > room:
            kept.remove(max(kept))
        left = room - sum(len(text) + 2 for _, text in kept)
        bar = min(30, left - 2)
        grid = Table.grid(padding=(0, 2))
        cells: list[RenderableType] = []
        if bar >= 8:
            cells.append(ProgressBar(total=max(1, self._total), completed=step, width=bar))
        styles = {0: "bold", 1: "cyan", 2: "magenta", 3: "", 4: "cyan", 5: "dim", 6: "dim"}
        for importance, text in kept:
            cells.append(Text(text, styles[importance]))
        for _ in cells:
            grid.add_column(no_wrap=True)
        grid.add_row(*cells)
        return grid

    def _show(self, line: RenderableType) -> None:
        from rich.live import Live

        if self._live is None:
            # No thread of its own: it would take time from the CPU that trains.
            self._live = Live(line, console=self._rich, auto_refresh=False)
            self._live.start()
        self._live.update(line, refresh=True)

    def _print(self, text: str, style: str = "", mark: str = "") -> None:
        if self._silent:
            return
        if self._rich is None:
            print(text, file=self._out, flush=True)
        else:
            from rich.text import Text

            # A styled object, not a style for the call, which would also paint the live line drawn after it.
            self._rich.print(Text(mark + text, style))

    def _facts(self, title: str, facts: Mapping[str, str]) -> None:
        if self._silent:
            return
        width = max((len(name) for name in facts), default=0)
        lines = [f"{name:<{width}}  {value}" for name, value in facts.items()]
        if self._rich is None:
            print("\n".join([title, *(f"  {line}" for line in lines)]), file=self._out, flush=True)
            return
        from rich.panel import Panel
        from rich.text import Text

        body = Text("\n").join(
            Text.assemble((f"{name:<{width}}  ", "dim"), value) for name, value in facts.items()
        )
        self._rich.print(Panel(body, title=Text(title, "bold"), title_align="left", border_style="blue", expand=False))


def short(number: float) -> str:
    """Three digits and a letter: 950, 18.2k, 76.9M, 2.85B."""
    for limit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= limit * 0.9995:
            scaled = number / limit
            return f"{scaled:.0f}{letter}" if abs(scaled) >= 99.95 else f"{scaled:.3g}{letter}"
    return f"{number:.0f}" if abs(number) >= 99.5 else f"{number:.3g}"


def duration(seconds: float) -> str:
    """The two largest units: 8s, 2m10s, 3h05m, 12d04h."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"
