"""All that a run's folder tells of it, read for the report page. Loads no JAX and runs no code of the folder."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from pathlib import Path
from typing import Any

from t5x_like.core.config import read_json
from t5x_like.core.errors import UserError
from t5x_like.report.account import Account, account_of
from t5x_like.report.ledger import read_ledger
from t5x_like.report.metrics import METRICS, curves, read_metrics


@dataclasses.dataclass(frozen=True)
class Told:
    """What a run's folder tells.

    Attributes:
      name: what the page calls it.
      directory: the folder, or its address.
      rows: those of metrics.jsonl.
      events: the lines of the ledger.
      account: where the time went.
      config: the config of the last start, as JSON; empty if it cannot be read.
    """

    name: str
    directory: Path | str
    rows: list[dict[str, Any]]
    events: list[dict[str, Any]]
    account: Account
    config: dict[str, Any]

    def of(self, *events: str) -> list[dict[str, Any]]:
        """Lines of these events."""
        return [event for event in self.events if event["event"] in events]

    @property
    def starts(self) -> list[dict[str, Any]]:
        """The start of each attempt, as its first process wrote it."""
        return [event for event in self.of("start") if event["process"] == 0]

    @property
    def faults(self) -> int:
        """Number of faults that were told, and of attempts that ended without a word."""
        return len(self.of("fault")) + sum(not attempt.ending for attempt in self.account.attempts)

    @functools.cached_property
    def values(self) -> dict[str, dict[int, float]]:
        """Metric to step to value."""
        return curves(self.rows)

    @property
    def last(self) -> int:
        """The last step that is known."""
        return max([attempt.last for attempt in self.account.attempts] + [row["step"] for row in self.rows], default=0)


def read_run(directory: Path) -> Told:
    """Reads a run's folder.

    Raises:
      UserError: it has neither metrics nor a ledger.
    """
    events = read_ledger(directory)
    rows = read_metrics(directory) if (directory / METRICS).is_file() else []
    if not events and not rows:
        raise UserError(str(directory), "has no ledger and no metrics", "the folder of a run that has begun")
    config: Any = None
    with contextlib.suppress(OSError, UserError):
        config = read_json((directory / "config.json").read_bytes())
    starts = [event["config"] for event in events if isinstance(event.get("config"), dict)]
    config = config if isinstance(config, dict) and config else starts[-1] if starts else {}
    return Told(directory.resolve().name, directory, rows, events, account_of(events), config)
