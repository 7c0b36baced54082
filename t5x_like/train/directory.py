"""A run's folder: the config, how it came to be, and whether a config may resume it.

    config.json        the resolved config of the last start, all fields
    code/              copies of the user's own files that define classes of it (core.own_code)
    ledger/            one line per event (report.ledger); of a start with versions, devices and config
    metrics.jsonl      metrics; also tensorboard/
    .lock/             while one runs: its process, host, and since when (core.lock)
    checkpoints/       one folder per saved step, each with the config that it was trained with
    curves.png         drawn when the run ends
    profile/           profiles, and report.html, the page of t5x-like report, where they were asked for
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from t5x_like import __version__
from t5x_like.checkpoint.folder import Folder
from t5x_like.core.config import diff, drop_unknown, read_json, structure, to_json, to_plain
from t5x_like.core.errors import UserError, refuse
from t5x_like.core.lock import LOCK, Lock, job_name
from t5x_like.core.own_code import accept, keep_code, own_code, require_code, run_code
from t5x_like.core.paths import make_writable, write_atomically
from t5x_like.core.storage import make_writable as make_place_writable
from t5x_like.core.storage import place
from t5x_like.report.ledger import Ledger
from t5x_like.train.config import Run, why_free
from t5x_like.train.working import CHECKPOINTS, Working, checkpoints_of, say, shown

HARMLESS = (
    "report.", "checkpoint.", "job.", "data.cache", "data.prepare_processes", "data.read_threads", "data.prefetch",
)  # fmt: skip
CONFIG = "config.json"
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
    try:
        return _config_file(directory)
    except OSError:
        got = "is not the folder of a run: it has no config.json"
        problem = UserError(shown(directory), got, "a folder made by train")
    except UserError as error:
        problem = error
    if not _has_checkpoint(directory):
        raise problem
    from t5x_like.checkpoint.checkpoints import Checkpoints
    from t5x_like.checkpoint.job import Job

    # Alone: this process may be the only one that could not read the file.
    with Checkpoints(checkpoints_of(directory), read_only=True, job=Job()) as checkpoints:
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
    return bool(Folder(checkpoints_of(directory)).steps())


@dataclasses.dataclass(frozen=True)
class Held:
    """A run's folder that is this training's alone.

    Attributes:
      path: the folder; of one at an address that on this machine's disk.
      lock: what keeps others out, in the first process of a job.
      working: what sends the folder to its address; None: it lies on a disk.
    """

    path: Path
    lock: Lock
    working: Working | None = None

    def before_commit(self) -> None:
        """To be called before a checkpoint is made whole. Raises ``core.lock.Lost`` where another has taken over."""
        self.lock.check()
        if self.working is not None:
            self.working.before_commit()


@contextlib.contextmanager
def locked(directory: str | Path, first: bool = True, agree: Callable[[bool], bool] = bool) -> Iterator[Held]:
    """Makes the folder and keeps it for one training; leaves no empty folder behind.

    Args:
      directory: the run's folder, or its address: then this process works in a folder of its own on the disk.
      first: whether this process takes the lock: of the processes of a job only the first.
      agree: function from whether the folder is free, as this process sees it, to what the first one has seen.

    Raises:
      UserError: the folder cannot be written, or another training runs in it; at the end: what was written last could
        not be sent to its address.
    """
    where = place(directory)
    # os.path, because Path.exists raises for a name that is too long
    made = [path for path in (where.disk, *where.disk.parents) if not os.path.exists(path)] if where.disk else []
    if where.disk:
        make_writable(where.disk, "directory")
    elif first:
        make_place_writable(where, "directory")
    lock, holder, free = Lock(where, job=job_name()), "", False
    try:
        if first:
            try:
                holder = lock.acquire()
            except OSError as error:
                raise UserError("directory", f"{where} cannot be locked: {error}", "a folder to write in") from error
        free = agree(not holder)
        who = f": {holder}" if holder else ""
        refuse(not free, str(where), f"another training is running in this folder{who}",
               "one training in a folder", f"another folder (--directory {where}-2), or wait for its end")
        if where.disk:
            yield Held(where.disk, lock)
        else:
            with Working(where, first, lock.check, say) as working:
                yield Held(working.path, lock, working)
    finally:
        lock.release()
        emptied = (where.disk / CHECKPOINTS, where.disk / LOCK, *made) if where.disk and free else ()
        for path in emptied:  # where it is not free, they are those of the other training
            with contextlib.suppress(OSError):  # not empty, so not of a start that failed
                path.rmdir()


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
    refuse(bool(lines), shown(directory), got, "the same values, or another folder",
           f"--directory {shown(directory)}-2{accepting}")


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
