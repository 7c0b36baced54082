"""What a run shows on the console: an opening, one live line of progress, held-out results, a closing summary.

On a terminal the line of progress updates in place (rich); into a pipe or a file go plain lines, without colours or
carriage returns, at intervals that grow from one second to one minute. Only formats what it is given: must not know how
anything was measured.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

from t5x_like.core.text import duration, short
from t5x_like.report.clock import Share, account_table
from t5x_like.report.live import LiveLine

SMOOTHING = 0.8  # share of the past in the smoothed loss, per call of `progress`
_STYLES = {0: "bold", 1: "cyan", 2: "magenta", 3: "", 4: "cyan", 5: "dim", 6: "dim"}  # by importance


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

    def progress(
        self, step: int, loss: float | None = None, tokens_per_second: float | None = None,
        utilization: float | None = None, utilization_of: str = "MFU", learning_rate: float | None = None,
        seconds_left: float | None = None, checkpoint_step: int | None = None,
        statistics: Mapping[str, float] | None = None,
    ):  # fmt: skip
        """Shows the progress of training, if the last line is old enough or the run is at its end.

        Args: None is a value that is not known (yet).
          utilization: fraction of the hardware's peak, named by ``utilization_of``: ``MFU`` or ``roofline``.
          statistics: further values by name.
        """
        if loss is not None and math.isfinite(loss):  # else it must be seen, not smoothed away
            self._loss = SMOOTHING * self._loss + (1 - SMOOTHING) * loss
            self._loss_weight = SMOOTHING * self._loss_weight + (1 - SMOOTHING)
            loss = self._loss / self._loss_weight
        if not self._line.is_due() and step < self._total:
            return
        known: Any = (  # (importance, value, how it is shown): a narrow terminal leaves the highest out
            (0, step, self._of_all),
            (3, step, lambda step: f"{math.floor(100 * step / self._total):>3}%"),
            (0, loss, lambda loss: f"loss {loss:<6.4g}" if abs(loss) >= 1000 else f"loss {loss:.3f}"),
            (1, tokens_per_second, lambda speed: f"{short(speed):>5} tokens/s"),
            (4, utilization, lambda share: f"{utilization_of} {share:.0%}"),
            (6, learning_rate, lambda rate: f"lr {rate:.2e}"),
            (2, seconds_left if step < self._total else None, lambda seconds: f"{duration(seconds):>6} left"),
            (5, checkpoint_step, lambda step: f"saved {step:,}"),
            *((7, value, lambda value, name=name: f"{name} {value:.4g}") for name, value in (statistics or {}).items()),
        )
        parts = [(importance, said(value)) for importance, value, said in known if value is not None]
        self._line.show(parts, step, self._total, _STYLES)

    def evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """A line of held-out results, which stays: name and value, such as ``held_out/loss``."""
        results = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        self._line.print(f"{'▸ ' if self._line.rich else ''}{self._of_all(step)}  {results}", "bold green")

    def doing(self, what: str) -> contextlib.AbstractContextManager[None]:
        """Shows, while inside, what is being done and for how long."""
        return self._line.waiting(what)

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
            width = self._line.rich.width if self._line.rich else 80
            self._line.print("where the time went\n" + account_table(account, width))

    def close(self) -> None:
        """Ends the live line, leaving it as last shown."""
        self._line.close()

    def _of_all(self, step: int) -> str:
        total = f"{self._total:,}"
        return f"{step:>{len(total)},}/{total}"
