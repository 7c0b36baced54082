"""What a run shows on the console: an opening, one live line of progress, held-out results, a closing summary.

On a terminal the line of progress updates in place (rich); into a pipe or a file go plain lines, without colours or
carriage returns, at intervals that grow from one second to one minute. Only formats what it is given: must not know how
anything was measured.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TextIO

from t5x_like.core.text import duration, short
from t5x_like.report.clock import Share, account_table
from t5x_like.report.live import LiveLine

SMOOTHING = 0.8  # share of the past in the smoothed loss, per call of `progress`
_STYLES = {0: "bold", 1: "cyan", 2: "magenta", 3: "", 4: "cyan", 5: "dim", 6: "dim"}  # by importance


@dataclasses.dataclass(frozen=True)
class RunProgress:
    """Progress of training. None: not known (yet). ``statistics`` are further values by name.

    ``utilization`` is a fraction of the hardware's peak, named by ``utilization_of``: ``MFU`` or ``roofline``.
    """

    step: int
    loss: float | None = None
    tokens_per_second: float | None = None
    utilization: float | None = None
    utilization_of: str = "MFU"
    learning_rate: float | None = None
    seconds_left: float | None = None
    checkpoint_step: int | None = None
    statistics: Mapping[str, float] = dataclasses.field(default_factory=dict)


class Console:
    """The console of one run; silent in every process but 0. Close it before others write to the terminal.

    Args:
      total_steps: number of updates of the run.
      out: stream to write to; standard output by default.
      process_index: index of this process.
      now: function to seconds of a monotonic clock; given by tests.
      live: whether ``out`` is a terminal; detected by default.
    """

    def __init__(
        self, total_steps: int, *, out: TextIO | None = None, process_index: int = 0,
        now: Callable[[], float] = time.perf_counter, live: bool | None = None,
    ):
        self._total = total_steps
        self._line = LiveLine(out, now, live, silent=process_index > 0)
        self._loss, self._loss_weight = 0.0, 0.0

    def facts(self, title: str, facts: Mapping[str, str]) -> None:
        """Prints names and values under a title, leaving out empty values."""
        facts = {name: value for name, value in facts.items() if value}
        width = max(map(len, facts), default=0)
        if self._line.rich is None:
            return self._line.print("\n".join([title, *(f"  {name:<{width}}  {facts[name]}" for name in facts)]))
        from rich.panel import Panel
        from rich.text import Text

        body = Text("\n").join(Text.assemble((f"{name:<{width}}  ", "dim"), facts[name]) for name in facts)
        panel = Panel(body, title=Text(title, "bold"), title_align="left", border_style="blue", expand=False)
        self._line.rich.print(panel)

    def progress(self, progress: RunProgress) -> None:
        """Shows the progress of the run, if the last line is old enough or the run is at its end."""
        if progress.loss is not None and math.isfinite(progress.loss):
            self._loss = SMOOTHING * self._loss + (1 - SMOOTHING) * progress.loss
            self._loss_weight = SMOOTHING * self._loss_weight + (1 - SMOOTHING)
        if self._line.is_due() or progress.step >= self._total:
            self._line.show(self._parts(progress), progress.step, max(1, self._total), _STYLES)

    def evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """A line of held-out results, which stays: name and value, such as ``held_out/loss``."""
        results = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        width, mark = len(f"{self._total:,}"), "▸ " if self._line.rich else ""
        self._line.print(f"{mark}{step:>{width},}/{self._total:,}  {results}", "bold green")

    def note(self, message: str) -> None:
        """Prints a message that stays: a warning, a checkpoint restored, a step skipped."""
        self._line.print(message, "yellow" if message.startswith("WARNING") else "")

    def summary(self, outcome: str, facts: Mapping[str, str], account: Sequence[Share] = ()) -> None:
        """The end of a run.

        Args:
          outcome: the headline, such as ``complete`` or ``stopped at step 120``.
          facts: names and values, such as where the plot is.
          account: shares of the time, from `clock.Clock.account`.
        """
        self.close()
        self.facts(outcome, facts)
        if account:
            self._line.print("where the time went\n" + account_table(account))

    def close(self) -> None:
        """Ends the live line, leaving it as last shown."""
        self._line.close()

    # Within

    def _parts(self, progress: RunProgress) -> list[tuple[int, str]]:
        """(importance, text) in the order shown; a narrow terminal leaves the least important (highest) out."""
        width = len(f"{self._total:,}")
        share = progress.step / self._total if self._total else 1.0
        parts = [(0, f"{progress.step:>{width},}/{self._total:,}"), (3, f"{math.floor(share * 100):>3}%")]
        if progress.loss is not None:
            # A loss that is not finite must be seen, not smoothed away.
            shown = self._loss / self._loss_weight if math.isfinite(progress.loss) else progress.loss
            parts.append((0, f"loss {shown:<6.4g}" if abs(shown) >= 1000 else f"loss {shown:.3f}"))
        shown_if_known = (
            (1, progress.tokens_per_second, lambda speed: f"{short(speed):>5} tokens/s"),
            (4, progress.utilization, lambda share: f"{progress.utilization_of} {share:.0%}"),
            (6, progress.learning_rate, lambda rate: f"lr {rate:.2e}"),
            (2, progress.seconds_left if share < 1 else None, lambda seconds: f"{duration(seconds):>6} left"),
            (5, progress.checkpoint_step, lambda step: f"saved {step:,}"),
        )
        parts += [(rank, said(value)) for rank, value, said in shown_if_known if value is not None]
        return parts + [(7, f"{name} {value:.4g}") for name, value in progress.statistics.items()]
