"""Metrics on their way to files and services: JSONL, TensorBoard, Weights & Biases, behind one `Reporter`.

metrics.jsonl in the run's folder is the record that plots and `diff` read; the rest are copies. A resumed run writes
each step once. Must not know what is measured, nor jax: the caller says which process it is.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from t5x_like.core.errors import UserError, refuse
from t5x_like.core.paths import write_atomically
from t5x_like.report.config import ReportConfig
from t5x_like.report.ledger import LEDGER
from t5x_like.report.metrics import CHANGED, METRICS, read_metrics


class Jsonl:
    """One JSON object a line: ``step``, ``time`` (seconds since 1970), then the values; null for those not finite."""

    def __init__(self, path: Path, first_step: int, now: Callable[[], float]):
        self._now = now
        if path.exists():
            # Rows after the checkpoint will be logged again, and changes made since it.
            kept = [row for row in read_metrics(path) if row["step"] < first_step - (CHANGED in row)]
            write_atomically(path, "".join(_line(row) for row in kept))
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.line(step, {name: value if math.isfinite(value) else None for name, value in values.items()})

    def line(self, step: int, values: Mapping[str, Any]) -> None:
        self._file.write(_line({"step": step, "time": round(self._now(), 3), **values}))
        self._file.flush()  # so that a kill loses nothing, and a plot of a running run is up to date

    def close(self) -> None:
        self._file.close()


class TensorBoard:
    """TensorBoard event files, by tensorboardX: no TensorFlow."""

    def __init__(self, folder: Path, first_step: int):
        from tensorboardX import SummaryWriter  # heavy: only when asked for

        self._writer = SummaryWriter(str(folder), purge_step=first_step, flush_secs=30)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """Weights & Biases, resumed under the same id, which is kept in the run's folder."""

    def __init__(self, project: str, folder: Path, run_config: Mapping[str, Any] | None):
        wandb = _wandb(project)
        kept = folder / "wandb_id"
        identity = kept.read_text().strip() if kept.exists() else wandb.util.generate_id()
        write_atomically(kept, identity)
        self._run = wandb.init(project=project, name=folder.name, id=identity, dir=str(folder), resume="allow",
                               config=dict(run_config or {}))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


def _wandb(project: str) -> Any:
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError("report.wandb", f"project {project!r}, but the package wandb is not installed", "",
                        "pip install wandb, or report.wandb=''") from None
    return wandb


def check_outputs(directory: Path, config: ReportConfig) -> None:
    """Finds at the start what else would be found when the first row is written, or at the end of the run.

    Raises:
      UserError: a package that is not installed; a file or folder of the run that cannot be written.
    """
    if config.wandb:
        _wandb(config.wandb)
    for name in (METRICS, LEDGER, "code", "wandb_id", "curves.png", "tensorboard", "profile"):
        path, is_folder = directory / name, "." not in name and "_" not in name
        if path.exists():
            kind = "folder" if is_folder else "file"
            refuse(path.is_dir() != is_folder or not os.access(path, os.W_OK), str(path),
                   f"is no {kind} that can be written", f"a {kind} of yours, or none")


class Reporter:
    """Writes metrics to all destinations of the config, from process 0 only; in other processes it does nothing.

    Args:
      directory: the run's folder; made if absent.
      config: destinations and intervals.
      first_step: first step that this process will log. Earlier rows of that step and later are dropped, as a resumed
        run writes them again; 0 drops all.
      process_index: index of this process.
      run_config: the run's config as JSON, for Weights & Biases.
      now: function to seconds since 1970; given by tests.

    Raises:
      UserError: Weights & Biases is asked for and not installed.
    """

    def __init__(
        self, directory: str | Path, config: ReportConfig | None = None, *, first_step: int = 0,
        process_index: int = 0, run_config: Mapping[str, Any] | None = None, now: Callable[[], float] = time.time,
    ):
        self._config = config or ReportConfig()
        self._directory = Path(directory)
        self._writers: list[Jsonl | TensorBoard | Wandb] = []
        if process_index:
            return
        self._directory.mkdir(parents=True, exist_ok=True)
        if self._config.wandb:
            self._writers.append(Wandb(self._config.wandb, self._directory, run_config))
        self._writers.append(Jsonl(self._directory / METRICS, first_step, now))
        if self._config.tensorboard:
            self._writers.append(TensorBoard(self._directory / "tensorboard", first_step))

    def due(self, step: int) -> bool:
        """Whether the config asks for a row after ``step`` updates."""
        return step % self._config.every == 0

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes one row.

        Args:
          step: step of the values, counted as ``first_step`` is.
          values: numbers by name, such as ``train/loss``, ``held_out/loss``, ``train/learning_rate``.
        """
        row = {name: float(value) for name, value in values.items()}
        for writer in self._writers:
            writer.write(step, row)

    def mark(self, step: int, changes: Mapping[str, tuple[Any, Any]]) -> None:
        """Writes what has changed in the config after ``step`` updates to metrics.jsonl; curves show it as a line.

        Args:
          step: number of updates made.
          changes: field to its values before and from now on.
        """
        for writer in self._writers:
            if isinstance(writer, Jsonl):
                shown = {field: [_plain(value) for value in pair] for field, pair in changes.items()}
                writer.line(step, {CHANGED: shown})

    def close(self) -> Path | None:
        """Closes the files and draws the curves if the config asks for it; a second call does nothing.

        Returns:
          The picture, if one was drawn.
        """
        writers, self._writers = self._writers, []
        for writer in writers:
            writer.close()
        if not writers or not self._config.plots:
            return None
        from t5x_like.report.plots import plot_curves  # matplotlib is heavy: only at the end

        return plot_curves(self._directory)


def _plain(value: Any) -> Any:
    """Without numbers that JSON does not have."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"
