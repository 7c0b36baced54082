"""Frequent saves to a disk of each host: every process writes the shards that lie on its devices, and reads them again.

    DIRECTORY/TOKEN/process-INDEX/STEP.npz      shards by "path@index", and our metadata

TOKEN is drawn once for a run's folder, so that another run, or one begun anew, never finds them. A zip file has a
CRC-32 of each array, which is checked as it is read. Nothing here ends a run: what cannot be written or read is said,
and the checkpoints of the run's folder are there.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from t5x_like.arrays.trees import Tree, flatten, unflatten
from t5x_like.checkpoint.folder import SLACK, Damaged, free_bytes, patiently, reason
from t5x_like.checkpoint.job import Job
from t5x_like.checkpoint.layout import LAYOUT
from t5x_like.core.errors import UserError
from t5x_like.core.paths import make_writable
from t5x_like.core.storage import Place

KEPT = 2  # saves of each process: a kill in a save may leave the newest with some processes only
LOCAL = ".local"  # file of a run's checkpoints with the token
META = "t5x_like"  # entry of a file that is JSON


def token_of(place: Place) -> str:
    """The name of a run's local saves, drawn at the first call for its folder of checkpoints."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if re.fullmatch("[0-9a-f]{16}", found := place.read(LOCAL).decode()):
            return found
    place.write(LOCAL, (drawn := secrets.token_hex(8)).encode())
    return drawn


class LocalSaves:
    """The saves of one process; every process makes the same calls in the same order.

    Args:
      directory: folder on this host's disk, ``DIRECTORY/TOKEN``; made if absent.
      job: the processes.
      say: function of a warning.
      record: as of ``Checkpoints``.

    Raises:
      UserError: the folder cannot be written.
    """

    def __init__(self, directory: Path, job: Job, say: Callable[[str], None], record: Callable[..., object]):
        self._all, self._job, self._say, self._record = directory, job, say, record
        self._own = directory / f"process-{job.index}"
        make_writable(self._own, "checkpoint.local.directory")
        for path in self._own.glob(".*"):  # of a killed save
            path.unlink(missing_ok=True)
        self._writing: threading.Thread | None = None
        self._written: dict[str, Any] = {}  # of the last save, until it is recorded

    def save(self, step: int, state: Tree, metadata: Mapping[str, Any]) -> None:
        """Copies this process's shards to host memory and starts to write them; waits for the save before."""
        self.wait()
        began, arrays = time.perf_counter(), flatten(state)
        shards = {f"{path}@{_name(shard.index, array.shape)}": shard.data
                  for path, array in arrays.items() for shard in array.addressable_shards}  # fmt: skip
        for shard in shards.values():
            shard.copy_to_host_async()
        copies = {key: np.array(shard) for key, shard in shards.items()}  # the caller may donate the arrays
        size = sum(copy.nbytes for copy in copies.values())
        about = {"user": {**metadata, "step": step}, "layout": LAYOUT, "processes": self._job.count,
                 "dtypes": {path: str(array.dtype) for path, array in arrays.items()}}  # fmt: skip

        def write() -> None:
            try:
                self._write(step, copies, size, about)
            except OSError as error:
                self._say(f"WARNING: step {step} was not saved locally to {self._own}: {reason(error)}")
                return
            self._written = {"step": step, "seconds": round(time.perf_counter() - began, 3), "bytes": size}

        self._writing = threading.Thread(target=write, name="local checkpoint")
        self._writing.start()

    def _write(self, step: int, copies: Mapping[str, np.ndarray], size: int, about: Mapping[str, Any]) -> None:
        for old in self._steps()[: 1 - KEPT]:
            self._file(old).unlink(missing_ok=True)
        if (free := free_bytes(self._own)) < size * SLACK:
            raise OSError(f"{size / 1e6:,.1f} MB are needed, {free / 1e6:,.1f} MB are free")
        temporary = self._own / f".{step}"
        try:
            with zipfile.ZipFile(temporary, "w") as file:
                for key, copy in {META: np.frombuffer(json.dumps(about).encode(), np.uint8), **copies}.items():
                    with file.open(key, "w", force_zip64=True) as entry:
                        entry.write(memoryview(np.ascontiguousarray(copy).reshape(-1).view(np.uint8)))
            os.replace(temporary, self._file(step))
        finally:
            temporary.unlink(missing_ok=True)

    def wait(self) -> None:
        """Returns when the last save is written."""
        if self._writing is not None:
            self._writing.join()
            self._writing = None
        if self._written:
            self._record("save", **self._written, local=True)
            self._written = {}

    def latest(self) -> int | None:
        """The latest step that every process has, or None."""
        self.wait()
        steps = self._steps()
        least = min(self._job.gather(max(steps, default=-1)))
        return least if least >= 0 and all(self._job.gather(int(least in steps))) else None

    def forget_after(self, step: int) -> None:
        """Deletes the saves of later steps: they are not of this run's past."""
        self.wait()
        for later in (each for each in self._steps() if each > step):
            self._file(later).unlink(missing_ok=True)

    def restore(self, template: Tree, step: int) -> tuple[Tree, dict[str, Any]]:
        """The state of a step that every process has, on the shardings of ``template``, and its metadata.

        Raises:
          Damaged: some process cannot read its shards, or the model, devices or processes have changed.
        """
        return self._job.all(lambda: patiently(lambda: self._read(template, step)), Damaged)

    def _read(self, template: Tree, step: int) -> tuple[Tree, dict[str, Any]]:
        with contextlib.ExitStack() as exits, _reading():
            # Its own first; those of other processes of this host hold the rest where processes have moved about.
            files = [self._file(step), *sorted(self._all.glob(f"process-*/{step}.npz"))]
            opened = [exits.enter_context(zipfile.ZipFile(path)) for path in dict.fromkeys(files)]
            about = json.loads(opened[0].read(META))
            wanted = flatten(template)
            dtypes = {path: str(leaf.dtype) for path, leaf in wanted.items()}
            if (about["layout"], about["processes"], about["dtypes"]) != (LAYOUT, self._job.count, dtypes):
                raise Damaged("is of another model, version or number of processes", "other")
            holders = {name: file for file in reversed(opened) for name in file.namelist()}
            return unflatten({path: _array(path, leaf, holders) for path, leaf in wanted.items()}), about["user"]

    def _steps(self) -> list[int]:
        return sorted(int(path.stem) for path in self._own.glob("*.npz") if path.stem.isdigit())

    def _file(self, step: int) -> Path:
        return self._own / f"{step}.npz"


def _array(path: str, leaf: jax.ShapeDtypeStruct, holders: Mapping[str, zipfile.ZipFile]) -> jax.Array:
    """One array on the sharding of ``leaf``, from the files that hold its shards; each shard is read once."""
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    read: dict[str, np.ndarray] = {}

    def shard(index: tuple[slice, ...] | None) -> np.ndarray:
        index = index or ()
        name = f"{path}@{_name(index, leaf.shape)}"
        if name not in read:
            if name not in holders:
                raise Damaged("is of another mesh, or of devices of other hosts", "other")
            shape = tuple(len(range(*each.indices(size))) for each, size in zip(index, leaf.shape, strict=True))
            read[name] = np.frombuffer(holders[name].read(name), leaf.dtype).reshape(shape)
        return read[name]

    return jax.make_array_from_callback(leaf.shape, sharding, shard)


def _name(index: tuple[slice, ...], shape: tuple[int, ...]) -> str:
    """The place of a shard in its array, as "0:16,8:16"."""
    ranges = (each.indices(size) for each, size in zip(index, shape, strict=True))
    return ",".join(f"{start}:{stop}" for start, stop, _ in ranges)


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, UserError) as error:
        raise Damaged(f"cannot be read: {reason(error)}", str(error) if isinstance(error, zipfile.BadZipFile) else None
                      ) from error  # fmt: skip
