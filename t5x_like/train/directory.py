"""A run's folder: the resolved config, what it was started with, and whether a config may go on from it.

    config.json        the resolved config, all fields
    starts.jsonl       one line per start: time, command, versions, devices
    metrics.jsonl      metrics; also tensorboard/
    checkpoints/       one folder per saved step
    curves.png         drawn when the run ends
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from t5x_like import __version__
from t5x_like.core.config import diff, from_json, to_json
from t5x_like.core.errors import UserError
from t5x_like.core.paths import make_writable, write_atomically
from t5x_like.train.config import Run, free_to_change

CONFIG, STARTS, CHECKPOINTS = "config.json", "starts.jsonl", "checkpoints"
PACKAGES = ("jax", "jaxlib", "flax", "orbax-checkpoint", "array-record", "sentencepiece", "numpy")


def read_config(directory: Path) -> Run:
    """The config that a run was last started with.

    Raises:
      UserError: the folder is not a run's, or its config is of another version.
    """
    path = directory / CONFIG
    if not path.is_file():
        raise UserError(str(directory), "is not the folder of a run: it has no config.json", "a folder made by train")
    return from_json(Run, path.read_text(encoding="utf-8"), str(path))


def open_directory(directory: Path, run: Run) -> None:
    """Makes the folder, and checks that a run already there can go on with this config. Writes nothing else.

    Args:
      directory: the run's folder.
      run: the resolved config.

    Raises:
      UserError: the folder cannot be written, or holds a run whose parameters or batches would differ; nothing in it
        has been changed then.
    """
    make_writable(directory, "directory")
    has_checkpoint = any(path.name.isdigit() for path in (directory / CHECKPOINTS).glob("*"))
    if has_checkpoint and (directory / CONFIG).is_file():
        changed = {k: v for k, v in diff(read_config(directory), run).items() if not free_to_change(k)}
        if changed:
            lines = "".join(f"\n    {name}: {old} -> {new}" for name, (old, new) in changed.items())
            raise UserError(
                str(directory),
                f"holds a run that this config cannot continue; it differs in{lines}",
                "the same values, or another folder",
                f"--directory {directory}-2",
            )


def versions() -> dict[str, str]:
    """What decides numbers: this package, its main dependencies, Python."""
    return {
        "t5x_like": __version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }


def record_start(
    directory: Path, run: Run, step: int, devices: str, command: Sequence[str] | None = None
) -> None:
    """Writes the config, and adds a line on how this start came about; called once nothing can be refused any more."""
    write_atomically(directory / CONFIG, to_json(run))
    start = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "step": step,
        "command": list(command if command is not None else sys.argv),
        "devices": devices,
        "versions": versions(),
    }
    with (directory / STARTS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(start) + "\n")
