"""A run's folder: the resolved config, a log of its starts, and whether a config may resume it.

    config.json        the resolved config, all fields
    code/              copies of the user's own files that define classes of it (core.own_code)
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
from typing import Any

from t5x_like import __version__
from t5x_like.core.config import diff, drop_unknown, read_json, structure, to_json
from t5x_like.core.errors import refuse
from t5x_like.core.own_code import accept, keep_code, own_code, require_code, run_code
from t5x_like.core.paths import make_writable, write_atomically
from t5x_like.train.config import Run, free_to_change

HARMLESS = ("report.", "checkpoint.", "data.cache", "data.prepare_processes", "data.read_threads", "data.prefetch")
CONFIG, STARTS, CHECKPOINTS = "config.json", "starts.jsonl", "checkpoints"
PACKAGES = ("jax", "jaxlib", "flax", "orbax-checkpoint", "array-record", "sentencepiece", "numpy")


def read_config(directory: Path) -> Run:
    """The config that a run was last started with. Runs no code of the folder: a class that a file not yet run defines
    stands as ``core.config.Unknown``.

    Raises:
      UserError: the folder is not a run's, or its config is of another version.
    """
    return _structured(_read_plain(directory), directory)


def load_config(
    directory: Path, code: Sequence[str] = (), accept_changed: Sequence[str] = (), partial: bool = False
) -> Run:
    """``read_config``, with the user's own files that it names run where they may be.

    Args:
      directory: the run's folder.
      code: the user's files to run, named on the command line.
      accept_changed: names of files that may differ from those of the training.
      partial: whether a class whose file may not be run stands as ``Unknown``; else it is refused.

    Raises:
      UserError: as ``read_config`` and ``core.own_code.run_code``; or a class whose file may not be run.
    """
    plain = _read_plain(directory)
    refused = run_code(plain, directory, code, accept_changed)
    run = _structured(plain, directory)
    if not partial:
        require_code(run, refused)
    return run


def _structured(plain: Any, directory: Path, training: bool = False) -> Run:
    """The config of plain values. Fields that another version wrote and this one does not know are left out with a
    note; in training only where they do not change what is computed."""
    path, unknown = directory / CONFIG, drop_unknown(Run, plain)
    run = structure(Run, plain, str(path))
    for name, value in unknown.items():
        got = f"is {value!r} in {path}, but no field of this version ({__version__})"
        refuse(training and not name.startswith(HARMLESS), name, got, "the version that the run was begun with",
               "another folder for a run of this version; eval, generate, inspect and diff leave the field out")
        if not training:
            print(f"note: {name} {got}: left out", file=sys.stderr, flush=True)
    return run


def _read_plain(directory: Path) -> Any:
    path, got = directory / CONFIG, "is not the folder of a run: it has no config.json"
    refuse(not path.is_file(), str(directory), got, "a folder made by train")
    return read_json(path.read_text(encoding="utf-8"), str(path))


def open_directory(directory: Path, run: Run, accept_changed: Sequence[str] = ()) -> None:
    """Makes the folder, and checks that a run already there can resume with this config. Writes nothing else.

    Args:
      directory: the run's folder.
      run: the resolved config.
      accept_changed: names of the user's own files that may have changed.

    Raises:
      UserError: two files of the user's own have one name; the folder cannot be written, or holds a run whose
        parameters or batches would differ. The folder is unchanged then.
    """
    own = own_code(run)
    make_writable(directory, "directory")
    has_checkpoint = any(path.name.isdigit() for path in (directory / CHECKPOINTS).glob("*"))
    if has_checkpoint and (directory / CONFIG).is_file():
        plain = _read_plain(directory)
        accept(plain, run, accept_changed)
        before = _structured(plain, directory, training=True)
        changed = {k: v for k, v in diff(before, run).items() if not free_to_change(k)}
        lines = "".join(f"\n    {name}: {old} -> {new}" for name, (old, new) in changed.items())
        accepting = f", or --accept-changed {next(iter(own), '')}" if any(k.endswith(".code") for k in changed) else ""
        refuse(bool(changed), str(directory), f"holds a run that this config cannot continue; it differs in{lines}",
               "the same values, or another folder", f"--directory {directory}-2{accepting}")


def versions() -> dict[str, str]:
    """Versions that decide numbers: this package, its main dependencies, Python."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"t5x_like": __version__, "python": platform.python_version(), **found}


def record_start(directory: Path, run: Run, step: int, devices: str) -> None:
    """Writes the config, and adds a line on how this start came about; called once nothing can be refused any more."""
    keep_code(run, directory)
    write_atomically(directory / CONFIG, to_json(run))
    at = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    start = {"time": at, "step": step, "command": list(sys.argv), "devices": devices, "versions": versions()}
    with (directory / STARTS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(start) + "\n")
