"""The folder of a run's checkpoints as files: whole ones, what is set aside, leftovers, room. Loads without jax.

    200/                                 a checkpoint, whole since its name appeared
    200/_CHECKPOINT_METADATA             JSON that Orbax keeps with it, with our block
    200.orbax-checkpoint-tmp*            one that was not finished, or is being deleted
    300.aside-1/                         a later step of a past that the run has left
    measured.json                        step to values measured there, for the rules of what to keep

Knows names and sizes; arrays are written and read by Orbax.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from t5x_like.checkpoint.keep import Saved
from t5x_like.core.errors import UserError
from t5x_like.core.paths import write_atomically

T = TypeVar("T")
BLOCK = "t5x_like"  # our part of the metadata that Orbax keeps with each checkpoint
METADATA, MEASURED = "_CHECKPOINT_METADATA", "measured.json"
TEMPORARY = ".orbax-checkpoint-tmp"  # in the name of a folder that Orbax has not committed
WAITS = (0.2, 1.0, 5.0)  # seconds before something that was not read well is read again: storage errs at times
ASIDE = 2  # checkpoints of a past that was left which stay, the newest
SLACK = 1.02  # bytes needed for a save / bytes of its arrays: metadata, rounding to blocks of the file system


class Damaged(Exception):
    """A checkpoint that cannot be read or is not what was saved.

    Attributes:
      proof: what was found instead; None where nothing could be read. Two readings with one proof confirm the damage.
    """

    def __init__(self, message: str, proof: object = None):
        super().__init__(message)
        self.proof = proof


def patiently(read: Callable[[], T]) -> T:
    """``read()``, which is called again after each of ``WAITS`` if it raises ``Damaged``, unless it finds the same."""
    proof = None
    for seconds in WAITS:
        try:
            return read()
        except Damaged as error:
            if error.proof is not None and error.proof == proof:
                raise
            proof = error.proof
        time.sleep(seconds)
    return read()


def steps_in(directory: Path) -> list[int]:
    """Steps of the whole checkpoints, ascending.

    Raises:
      UserError: the folder cannot be listed.
    """
    return sorted(int(name) for name in _names(directory) if name.isdigit())


def saved_in(directory: Path) -> list[Saved]:
    """The whole checkpoints, ascending, with times and measured values; raises as ``steps_in``."""
    values = read_measured(directory)
    found = []
    for step in steps_in(directory):
        with contextlib.suppress(OSError):  # gone meanwhile
            found.append(Saved(step, (directory / str(step)).stat().st_mtime, values.get(step, {})))
    return found


def aside_in(directory: Path) -> dict[Path, int]:
    """Folders that were set aside and their steps, the oldest first."""
    found = {directory / name: int(name.split(".")[0]) for name in _names(directory)
             if re.fullmatch(r"\d+\.aside-\d+", name)}  # fmt: skip
    return {path: found[path] for path in sorted(found, key=_time)}


def leftovers_in(directory: Path) -> list[Path]:
    """What killed processes have left: unfinished saves and deletions, probes."""
    names = _names(directory)
    return [directory / name for name in names if TEMPORARY in name or name.startswith((".shared.", ".writable."))]


def remove(path: Path) -> None:
    """Removes a file or folder; a folder first loses its name, so that half of one never looks whole."""
    if path.is_dir():
        gone = path if TEMPORARY in path.name else path.with_name(f"{path.name}{TEMPORARY}-deleted")
        with contextlib.suppress(OSError):
            if gone != path:
                path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def set_aside(directory: Path, steps: Iterable[int]) -> list[tuple[int, str]]:
    """Renames checkpoints; returns (step, new name) of each."""
    renamed = []
    for later in steps:
        free = next(n for n in range(1, sys.maxsize) if not (directory / f"{later}.aside-{n}").exists())
        (directory / str(later)).rename(directory / f"{later}.aside-{free}")
        renamed.append((later, f"{later}.aside-{free}"))
    return renamed


def superseded(directory: Path, step: int) -> list[Path]:
    """What was set aside and may go now that a good checkpoint of ``step`` is written: what is not of a later step, and
    of the others all but the ``ASIDE`` newest."""
    found = aside_in(directory)
    later = [path for path, its in found.items() if its > step]
    return [path for path, its in found.items() if its <= step] + later[:-ASIDE]


def free_bytes(directory: Path) -> int:
    """Bytes that this user may still write there."""
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


def bytes_in(path: Path) -> int:
    """Bytes of all files below a path."""
    return sum(each.stat().st_size for each in [path, *path.rglob("*")] if each.is_file())


# What is written beside the arrays


def block_of(user: Mapping[str, Any], arrays: Mapping[str, Any], layout: int) -> dict[str, Any]:
    """Our metadata of a checkpoint, as Orbax is to keep it."""
    body = {"user": user, "arrays": arrays, "layout": layout}
    return {BLOCK: {**body, "crc": _crc(body)}}


def read_block(path: Path) -> dict[str, Any]:
    """Our metadata of the checkpoint in a folder, verified.

    Raises:
      Damaged: it cannot be read, or is not what was saved.
    """
    try:
        custom = json.loads((path / METADATA).read_bytes()).get("custom_metadata") or {}
    except (OSError, ValueError, AttributeError) as error:
        raise Damaged(f"its metadata cannot be read: {reason(error)}") from error
    if BLOCK not in custom:
        raise Damaged("was not written by t5x_like", "another program")
    block = dict(custom[BLOCK])
    if block.pop("crc", None) != (crc := _crc(block)):
        raise Damaged("its metadata is not what was saved", crc)
    return {"layout": 1, **block}  # the first layout was not numbered


def read_measured(directory: Path) -> dict[int, dict[str, float]]:
    """Step to the values measured there; empty where the file is missing or torn: then nothing is best."""
    try:
        found = json.loads((directory / MEASURED).read_bytes())
        return {int(step): {name: float(value) for name, value in values.items()} for step, values in found.items()}
    except (OSError, ValueError, AttributeError):
        return {}


def write_measured(directory: Path, values: Mapping[int, Mapping[str, float]]) -> None:
    write_atomically(directory / MEASURED, json.dumps({str(step): dict(values[step]) for step in sorted(values)}))


def reason(error: BaseException) -> str:
    """The first line of an error, whose rest is often a page of file names."""
    text = str(error).strip() or type(error).__name__
    first = text.splitlines()[0]
    return first if len(first) <= 300 else first[:300] + "..."


def _names(directory: Path) -> list[str]:
    """Names in the folder; none where it does not exist, though an error that passes is waited for."""

    def read() -> list[str]:
        try:
            return os.listdir(directory)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise Damaged(reason(error)) from error

    try:
        return patiently(read)
    except Damaged as error:
        raise UserError("checkpoints", f"{directory} cannot be listed: {error}", "a folder that can be read") from error


def _time(path: Path) -> float:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return 0.0


def _crc(body: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(body, sort_keys=True).encode())
