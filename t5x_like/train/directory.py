"""A run's folder: the config, how it came to be, and whether a config may resume it.

    config.json        the resolved config of the last start, all fields
    code/              copies of the user's own files that define classes of it (core.own_code)
    ledger/            one line per event (report.ledger); of a start with versions, devices and config
    metrics.jsonl      metrics; also tensorboard/
    .training          while one runs: its process, host, and since when
    checkpoints/       one folder per saved step, each with the config that it was trained with
    curves.png         drawn when the run ends
    profile/           profiles, and report.html, the page of t5x-like report, where they were asked for
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from t5x_like import __version__
from t5x_like.core.config import diff, drop_unknown, read_json, structure, to_json, to_plain
from t5x_like.core.errors import UserError, refuse
from t5x_like.core.own_code import accept, keep_code, own_code, require_code, run_code
from t5x_like.core.paths import make_writable, write_atomically
from t5x_like.report.ledger import Ledger
from t5x_like.train.config import Run, why_free

HARMLESS = (
    "report.", "checkpoint.", "job.", "data.cache", "data.prepare_processes", "data.read_threads", "data.prefetch",
)  # fmt: skip
CONFIG, CHECKPOINTS, TRAINING = "config.json", "checkpoints", ".training"
PACKAGES = ("jax", "jaxlib", "flax", "tensorstore", "array-record", "sentencepiece", "numpy")


def read_config(directory: Path) -> Run:
    """The config that a run was last started with. Runs no code of the folder: a class that a file not yet run defines
    stands as ``core.config.Unknown``.

    Raises:
      UserError: the folder is not a run's, or its config is of another version.
    """
    return _structured(_read_plain(directory), directory)


def load_config(
    directory: Path, code: Sequence[str] = (), accept_changed: Sequence[str] = (), partial: bool = False,
    plain: Any = None,
) -> Run:  # fmt: skip
    """``read_config``, with the user's own files that it names run where they may be.

    Args:
      directory: the run's folder.
      code: the user's files to run, named on the command line.
      accept_changed: names of files that may differ from those of the training.
      partial: whether a class whose file may not be run stands as ``Unknown``; else it is refused.
      plain: the config's JSON, of a checkpoint; None: that of the last start.

    Raises:
      UserError: as ``read_config`` and ``core.own_code.run_code``; or a class whose file may not be run.
    """
    plain = _read_plain(directory) if plain is None else plain
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


def _read_plain(directory: Path, silent: bool = False) -> Any:
    """The JSON of the config: of config.json, or where that is lost or torn of the latest checkpoint; then that is
    said."""
    _refuse_address(directory)
    try:
        return _config_file(directory)
    except OSError:
        got = "is not the folder of a run: it has no config.json"
        problem = UserError(str(directory), got, "a folder made by train")
    except UserError as error:
        problem = error
    if not _has_checkpoint(directory):
        raise problem
    from t5x_like.checkpoint.checkpoints import Checkpoints
    from t5x_like.checkpoint.job import Job

    # Alone: this process may be the only one that could not read the file.
    with Checkpoints(directory / CHECKPOINTS, read_only=True, job=Job()) as checkpoints:
        for step in reversed(checkpoints.steps()):
            with contextlib.suppress(UserError):  # damaged: the one before it has a config too
                config = checkpoints.metadata(step)["config"]
                if not silent:
                    said = f"{problem.where}: {problem.got}; using the config in checkpoint {step:,}"
                    print(f"note: {said}", file=sys.stderr, flush=True)
                return config
    raise problem


def _config_file(directory: Path) -> Any:
    found = read_json((directory / CONFIG).read_bytes(), str(directory / CONFIG))
    if not isinstance(found, dict) or not found:
        raise UserError(str(directory / CONFIG), "has no fields", "the config.json of a run")
    return found


def config_is_lost(directory: Path) -> bool:
    """Whether config.json is missing or torn."""
    try:
        _config_file(directory)
    except (OSError, UserError):
        return True
    return False


def _has_checkpoint(directory: Path) -> bool:
    return any(path.name.isdigit() for path in (directory / CHECKPOINTS).glob("*"))


def _refuse_address(directory: str | Path) -> None:
    """Raises UserError for an address such as gs://bucket/run; as a path it would make a folder named ``gs:``."""
    scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]+(?=:/)", str(directory))
    refuse(scheme is not None, "directory", f"{directory} is an address, and run folders lie on disks",
           "a folder on a disk that all processes share", "a bucket mounted as a folder: --directory /mnt/bucket/run")


@contextlib.contextmanager
def locked(directory: str | Path, first: bool = True, agree: Callable[[bool], bool] = bool) -> Iterator[Path]:
    """Makes the folder and keeps it for one training on this machine; leaves no empty folder behind.

    The lock is the operating system's on the folder itself: a process that is killed frees it. ``TRAINING`` says to
    others who holds it.

    Args:
      directory: the run's folder.
      first: whether this process takes the lock: of the processes of a job only the first.
      agree: function from whether the folder is free, as this process sees it, to what the first one has seen.

    Raises:
      UserError: the folder cannot be written, or another training runs in it.
    """
    _refuse_address(directory)
    directory = Path(directory)
    # os.path, because Path.exists raises for a name that is too long
    made = [path for path in (directory, *directory.parents) if not os.path.exists(path)]
    make_writable(directory, "directory")
    descriptor, free = os.open(directory, os.O_RDONLY), False
    try:
        free = agree(not first or _lock(descriptor))
        refuse(not free, str(directory), f"another training is running in this folder{_holder(directory)}",
               "one training in a folder", f"another folder (--directory {directory}-2), or wait for its end")
        if first:
            holder = f"process {os.getpid()} on {platform.node()} since {time.strftime('%Y-%m-%d %H:%M:%S %z')}"
            with contextlib.suppress(OSError):  # a full disk: told when something matters
                write_atomically(directory / TRAINING, f"{holder}\n")
        yield directory
    finally:
        if first and free:
            (directory / TRAINING).unlink(missing_ok=True)
        for path in (directory / CHECKPOINTS, *made) * free:  # where it is not, they are those of the other training
            with contextlib.suppress(OSError):  # not empty, so not of a start that failed
                path.rmdir()
        os.close(descriptor)  # last, so that nobody takes a folder that is about to go


def _holder(directory: Path) -> str:
    """Who holds the lock, in words; empty where it does not say."""
    with contextlib.suppress(OSError, ValueError):
        return f": {(directory / TRAINING).read_text(encoding='utf-8').strip()}"
    return ""


def _lock(descriptor: int) -> bool:
    """Whether nobody else holds the lock; on a file system without locks nobody does."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def open_directory(directory: Path, run: Run, accept_changed: Sequence[str] = ()) -> None:
    """Checks that a run already in the folder can resume with this config. Writes nothing.

    Args:
      directory: the run's folder.
      run: the resolved config.
      accept_changed: names of the user's own files that may have changed.

    Raises:
      UserError: two files of the user's own have one name; or the folder holds a run whose parameters or batches would
        differ.
    """
    own = own_code(run)
    if not _has_checkpoint(directory):
        return
    plain = _read_plain(directory, silent=True)
    accept(plain, run, accept_changed)
    changed = diff(_structured(plain, directory, training=True), run)
    accepting = f", or --accept-changed {next(iter(own), '')}" if any(k.endswith(".code") for k in changed) else ""
    refuse_changes(directory, changed, accepting)


def refuse_changes(directory: Path, changed: Mapping[str, tuple[Any, Any]], accepting: str = "") -> None:
    """Raises UserError if one of the fields (to values before and now) is one that a resumed run may not change."""
    lines = [f"\n    {name}: {old} -> {new}" for name, (old, new) in changed.items()
             if not why_free(name) or _is_of_one_file(name, old, new)]  # fmt: skip
    got = f"holds a run that this config cannot continue; it differs in{''.join(lines)}"
    refuse(bool(lines), str(directory), got, "the same values, or another folder",
           f"--directory {directory}-2{accepting}")


def _is_of_one_file(field: str, old: Any, new: Any) -> bool:
    """Whether two values of a field are digests of a file of the user's own that has changed."""
    return field.endswith(".code") and str(old).split(" ")[0] == str(new).split(" ")[0]


def versions() -> dict[str, str]:
    """Versions that decide numbers: this package, its main dependencies, Python."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"t5x_like": __version__, "python": platform.python_version(), **found}


def record_start(
    directory: Path, run: Run, ledger: Ledger, step: int, devices: str, changed: Mapping[str, tuple[Any, Any]],
    peak_flops: float | None = None, restored: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Writes the config, and how this start came about; called once nothing can be refused any more. Of the processes
    of a job the first does so; the others say that they are there.

    Args:
      directory, run, ledger: folder, config and ledger of the run.
      step: number of updates made before.
      devices: the devices, in words.
      changed: field to its values in the checkpoint's config and in this one.
      peak_flops: peak operations per second of all devices; None if unknown.
      restored: seconds and bytes of the restore.
    """
    where = {"host": platform.node(), "pid": os.getpid()}
    if step:
        ledger.add("restore", step, **(restored or {}))
    if ledger.process:
        ledger.add("start", step, **where)
        return
    keep_code(run, directory)
    write_atomically(directory / CONFIG, to_json(run))
    ledger.add("start", step, **where, command=list(sys.argv), devices=devices, peak_flops=peak_flops,
               versions=versions(), changed=changed, config=to_plain(run))  # fmt: skip
