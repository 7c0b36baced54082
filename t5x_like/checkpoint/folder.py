"""The folder of a run's checkpoints as files: whole ones, what is set aside, leftovers, room. Loads without jax.

    200/                                 a checkpoint
    200/_CHECKPOINT_METADATA             JSON as Orbax has it, with our block; written last
    200.orbax-checkpoint-tmp*            one that was not finished, or is being deleted
    300.aside-1/                         a later step of a past that the run has left
    measured.json                        step to values measured there, for the rules of what to keep

On a disk a checkpoint is whole since its name appeared. In a bucket, where nothing can be renamed, it is since its
metadata did. Knows names and sizes; must not know arrays.
"""

from __future__ import annotations

import contextlib
import json
import math
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
from t5x_like.core.storage import Place, is_address, place

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


class Folder:
    """The checkpoints below a place.

    Args:
      where: folder on a disk, or address.

    Raises (all methods that look):
      UserError: the folder cannot be listed.
    """

    def __init__(self, where: str | Path):
        self.place = place(where if is_address(where) else Path(where).absolute())
        self.path = self.place.disk

    def __str__(self) -> str:
        return str(self.place)

    def exists(self) -> bool:
        return self.path.is_dir() if self.path else bool(self._names())

    def steps(self) -> list[int]:
        """Steps of the whole checkpoints, ascending."""
        return sorted(int(name) for name in self._names() if name.isdigit())

    def saved(self) -> list[Saved]:
        """The whole checkpoints, ascending, with times and measured values."""
        values = self.measured()
        found = []
        for step in self.steps():
            with contextlib.suppress(OSError, Damaged):  # gone meanwhile
                found.append(Saved(step, self._time(str(step)), values.get(step, {})))
        return found

    def aside(self) -> dict[str, int]:
        """Names of folders that were set aside, to their steps; the oldest first."""
        found = {name: int(name.split(".")[0]) for name in self._names() if re.fullmatch(r"\d+\.aside-\d+", name)}
        return {name: found[name] for name in sorted(found, key=self._time_or_zero)}

    def leftovers(self) -> list[str]:
        """Names of what killed processes have left: unfinished saves and deletions, probes."""
        return [name for name in self._names() if TEMPORARY in name or name.startswith((".shared.", ".writable."))]

    def remove(self, name: str) -> None:
        """Removes a file or folder; a folder first loses what makes it look whole."""
        if self.path is None:
            name = name.removesuffix(TEMPORARY)  # as ``_names`` has added it
            self.place.remove(f"{name}/{METADATA}")
            self.place.remove(f"{name}/")
            return
        path = self.path / name
        if not path.is_dir():
            path.unlink(missing_ok=True)
            return
        gone = path if TEMPORARY in name else path.with_name(f"{name}{TEMPORARY}-deleted")
        with contextlib.suppress(OSError):
            if gone != path:
                path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def set_aside(self, steps: Iterable[int]) -> list[tuple[int, str]]:
        """Renames checkpoints; returns (step, new name) of each."""
        names, renamed = set(self._names()), []
        for step in steps:
            name = next(free for n in range(1, sys.maxsize) if (free := f"{step}.aside-{n}") not in names)
            self._rename(str(step), name)
            renamed.append((step, name))
        return renamed

    def superseded(self, step: int) -> list[str]:
        """What was set aside and may go now that a good checkpoint of ``step`` is written: what is not of a later step,
        and of the others all but the ``ASIDE`` newest."""
        found = self.aside()
        later = [name for name, its in found.items() if its > step]
        return [name for name, its in found.items() if its <= step] + later[:-ASIDE]

    def free_bytes(self) -> float:
        """Bytes that this user may still write there."""
        return free_bytes(self.path) if self.path else math.inf

    def bytes_in(self, name: str) -> int:
        """Bytes of all files of a name; in a bucket those of a checkpoint's arrays."""
        if self.path:
            top = self.path / name
            return sum(each.stat().st_size for each in [top, *top.rglob("*")] if each.is_file())
        with contextlib.suppress(Damaged):
            arrays = read_block(self.place.at(name))["arrays"].values()
            return sum(math.prod(one["shape"]) * _bits(one["dtype"]) // 8 for one in arrays)
        return 0

    # One checkpoint

    def at(self, step: int) -> Place:
        """The files of a checkpoint."""
        return self.place.at(str(step))

    def begun(self, step: int) -> Place:
        """Where a checkpoint is written until ``commit``."""
        return self.place.at(f"{step}{TEMPORARY}" if self.path else str(step))

    def commit(self, step: int, metadata: Mapping[str, Any]) -> None:
        """Makes a checkpoint whole that was written to ``begun(step)``."""
        self.begun(step).write(METADATA, json.dumps(metadata).encode())
        if self.path:
            (self.path / f"{step}{TEMPORARY}").rename(self.path / str(step))

    def block(self, step: int) -> dict[str, Any]:
        """Our metadata of a checkpoint, verified.

        Raises:
          Damaged: it cannot be read, or is not what was saved.
        """
        return read_block(self.at(step))

    def measured(self) -> dict[int, dict[str, float]]:
        """Step to the values measured there; empty where the file is missing or torn: then nothing is best."""
        try:
            found = json.loads(self.place.read(MEASURED))
            return {int(step): {name: float(value) for name, value in values.items()} for step, values in found.items()}
        except (OSError, ValueError, AttributeError):
            return {}

    def write_measured(self, values: Mapping[int, Mapping[str, float]]) -> None:
        self.place.write(MEASURED, json.dumps({str(step): dict(values[step]) for step in sorted(values)}).encode())

    # Within

    def _names(self) -> list[str]:
        """Names in the folder; none where it does not exist, though an error that passes is waited for. In a bucket
        what is not whole has the name that it would have on a disk."""

        def read() -> list[str]:
            try:
                names = self.place.children()
                if self.path is None:
                    torn = {name for name in names if name.isdigit() and not self.place.at(name).exists(METADATA)}
                    names = [f"{name}{TEMPORARY}" if name in torn else name for name in names]
                return names
            except FileNotFoundError:
                return []
            except OSError as error:
                raise Damaged(reason(error)) from error

        try:
            return patiently(read)
        except Damaged as error:
            got = f"{self} cannot be listed: {error}"
            raise UserError("checkpoints", got, "a folder that can be read") from error

    def _rename(self, old: str, new: str) -> None:
        if self.path:
            (self.path / old).rename(self.path / new)
        else:
            self.place.copy_tree(old, new)
            self.remove(old)

    def _time(self, name: str) -> float:
        if self.path:
            return (self.path / name).stat().st_mtime
        return float(_read_metadata(self.place.at(name)).get("commit_timestamp_nsecs", 0)) / 1e9

    def _time_or_zero(self, name: str) -> float:
        with contextlib.suppress(OSError, Damaged):
            return self._time(name)
        return 0.0


def free_bytes(directory: Path) -> int:
    """Bytes that this user may still write there."""
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


# What is written beside the arrays


def metadata_of(user: Mapping[str, Any], arrays: Mapping[str, Any], layout: int) -> dict[str, Any]:
    """The metadata of a checkpoint, with our block, as Orbax has it."""
    body = {"user": user, "arrays": arrays, "layout": layout}
    handler = "orbax.checkpoint.experimental.v1._src.handlers.pytree_handler.PyTreeHandler"  # by which Orbax knows it
    return {"item_handlers": {"state": handler}, "metrics": {}, "performance_metrics": {},
            "init_timestamp_nsecs": time.time_ns(), "commit_timestamp_nsecs": time.time_ns(),
            "custom_metadata": {BLOCK: {**body, "crc": _crc(body)}}}  # fmt: skip


def _read_metadata(checkpoint: Place) -> dict[str, Any]:
    try:
        found = json.loads(checkpoint.read(METADATA))
        return {**found, "custom_metadata": dict(found.get("custom_metadata") or {})}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise Damaged(f"its metadata cannot be read: {reason(error)}") from error


def read_block(checkpoint: Place) -> dict[str, Any]:
    """Our metadata of the checkpoint in a folder, verified.

    Raises:
      Damaged: it cannot be read, or is not what was saved.
    """
    custom = _read_metadata(checkpoint)["custom_metadata"]
    if BLOCK not in custom:
        raise Damaged("was not written by t5x_like", "another program")
    block = dict(custom[BLOCK])
    if block.pop("crc", None) != (crc := _crc(block)):
        raise Damaged("its metadata is not what was saved", crc)
    return {"layout": 1, **block}  # the first layout was not numbered


def reason(error: BaseException) -> str:
    """The first line of an error, whose rest is often a page of file names."""
    text = str(error).strip() or type(error).__name__
    first = text.splitlines()[0]
    return first if len(first) <= 300 else first[:300] + "..."


def _bits(dtype: str) -> int:
    found = re.search(r"\d+", dtype)
    return int(found[0]) if found else 8  # bool


def _crc(body: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(body, sort_keys=True).encode())
