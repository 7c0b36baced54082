"""Metrics on their way to files and services: JSONL, TensorBoard, Weights & Biases, behind one `Reporter`.

metrics.jsonl in the run's folder is the record that plots and `diff` read; the rest are copies. A resumed run writes
each step once. Must not know what is measured, nor jax: the caller says which process it is.
"""

from __future__ import annotations

import functools
import json
import math
import os
import platform
import struct
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from t5x_like.core.errors import UserError, refuse
from t5x_like.core.paths import write_atomically
from t5x_like.report.appended import Appended
from t5x_like.report.config import ReportConfig
from t5x_like.report.ledger import LEDGER
from t5x_like.report.metrics import CHANGED, LOST, METRICS, lost_rows, read_metrics


class Jsonl:
    """One JSON object a line: ``step``, ``time`` (seconds since 1970), then the values; null for those not finite."""

    def __init__(self, path: Path, first_step: int, now: Callable[[], float]):
        self._now = now
        # Rows after the checkpoint will be logged again, and changes made since it.
        before = read_metrics(path) if path.exists() else []
        self.kept = [row for row in before if row["step"] < first_step - (CHANGED in row)]
        write_atomically(path, b"".join(map(_line, self.kept)))
        self._lines = Appended(path)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.line(step, {name: value if math.isfinite(value) else None for name, value in values.items()})

    def line(self, step: int, values: Mapping[str, Any]) -> None:
        self._lines.add(_line({"step": step, "time": round(self._now(), 3), **values}))

    def close(self) -> None:
        return


class TensorBoard:
    """TensorBoard event files with the messages of tensorboardX: no TensorFlow. Not by its writer, whose thread ends on
    a full disk, and whose queue, once full, then holds the run up. Made with the first row: tensorboardX imports
    PyTorch where that is installed, which would take 1.5 s before the first step."""

    def __init__(self, folder: Path, first_step: int):
        name = f"events.out.tfevents.{time.time_ns() // 1000}.{platform.node()}.{os.getpid()}"
        self._path, self._first_step = folder / name, first_step

    @functools.cached_property
    def _file(self) -> Appended:
        return Appended(self._path, ends=b"")

    @functools.cached_property
    def _messages(self) -> Any:
        from tensorboardX.proto import event_pb2

        return event_pb2  # the names in it are made when it is imported

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if "_file" not in vars(self):
            self._add(file_version="brain.Event:2")
            began = {"status": self._messages.SessionLog.START}  # hides what an earlier start wrote
            self._add(step=self._first_step, session_log=began)
        scalars = [{"tag": name, "simple_value": value} for name, value in values.items()]
        self._add(step=step, summary={"value": scalars})

    def _add(self, **event: Any) -> None:
        from tensorboardX.record_writer import masked_crc32c

        data = self._messages.Event(wall_time=time.time(), **event).SerializeToString()
        size = struct.pack("<Q", len(data))
        self._file.add(b"".join((size, struct.pack("<I", masked_crc32c(size)), data,
                                 struct.pack("<I", masked_crc32c(data)))))  # fmt: skip

    def close(self) -> None:
        return


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
        import wandb  # pyright: ignore[reportMissingImports]: optional
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

    def mark_lost(self, starts: Sequence[Mapping[str, Any]], step: int) -> list[tuple[int, int]]:
        """Marks rows up to ``step`` that a run with these starts has written and that are not in metrics.jsonl.

        Returns:
          The first and last step of each stretch of them.
        """
        found: list[tuple[int, int]] = []
        for writer in self._writers:
            if isinstance(writer, Jsonl):
                found = lost_rows(writer.kept, starts, step)
                for pair in found:
                    writer.line(pair[1], {LOST: pair})
        return found

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

        try:
            return plot_curves(self._directory)
        except UserError as error:  # a full disk: the run itself is saved
            print(f"WARNING: {error}", file=sys.stderr, flush=True)
            return None


def _plain(value: Any) -> Any:
    """Without numbers that JSON does not have."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, allow_nan=False).encode() + b"\n"
