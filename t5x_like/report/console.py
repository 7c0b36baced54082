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
        self._silent = bool(process_index)
        self._line = LiveLine(out, now, False if self._silent else live)
        self._out, self._rich = self._line.out, self._line.rich
        self._loss, self._loss_weight = 0.0, 0.0

    def opening(self, opening: Opening) -> None:
        """Prints the facts of the run at its start."""
        model = f"{opening.model}, {short(opening.parameters)} parameters ({opening.parameters:,})"
        steps, each = opening.steps, opening.tokens_per_step
        steps = f"{steps:,} of {short(each)} tokens, {short(steps * each)} tokens in all"
        steps += f"; resuming from step {opening.first_step:,}" if opening.first_step else ""
        facts = {"model": model, "devices": opening.devices, "attention": opening.attention, "steps": steps}
        facts |= {"gradients": opening.gradients} if opening.gradients else {}
        self._facts(opening.name, facts | {"directory": opening.directory})

    def progress(self, progress: RunProgress) -> None:
        """Shows the progress of the run, if the last line is old enough or the run is at its end."""
        if self._silent:
            return
        if progress.loss is not None and math.isfinite(progress.loss):
            self._loss = SMOOTHING * self._loss + (1 - SMOOTHING) * progress.loss
            self._loss_weight = SMOOTHING * self._loss_weight + (1 - SMOOTHING)
        if self._line.is_due() or progress.step >= self._total:
            self._line.show(self._parts(progress), progress.step, max(1, self._total), _STYLES)

    def evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """A line of held-out results, which stays: name and value, such as ``held_out/loss``."""
        results = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        width = len(f"{self._total:,}")
        self._print(f"{step:>{width},}/{self._total:,}  {results}", style="bold green", mark="▸ ")

    def note(self, message: str) -> None:
        """Prints a message that stays: a warning, a checkpoint restored, a step skipped."""
        self._print(message, style="yellow" if message.startswith("WARNING") else "")

    def summary(self, outcome: str, facts: Mapping[str, str], account: Sequence[Share] = ()) -> None:
        """The end of a run.

        Args:
          outcome: the headline, such as ``complete`` or ``stopped at step 120``.
          facts: names and values, such as where the plot is.
          account: shares of the time, from `clock.Clock.account`.
        """
        self.close()
        self._facts(outcome, facts)
        if account:
            self._print("where the time went\n" + account_table(list(account)))

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
        width = max(map(len, facts), default=0)
        if self._rich is None:
            lines = [f"  {name:<{width}}  {value}" for name, value in facts.items()]
            return print("\n".join([title, *lines]), file=self._out, flush=True)
        from rich.panel import Panel
        from rich.text import Text

        lines = [Text.assemble((f"{name:<{width}}  ", "dim"), value) for name, value in facts.items()]
        body = Text("\n").join(lines)
        self._rich.print(Panel(body, title=Text(title, "bold"), title_align="left", border_style="blue", expand=False))
