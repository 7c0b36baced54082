"""The checkpoints of one run: saved in the background, verified when read; damaged ones are skipped.

A thin adapter over Orbax's v1 `training.Checkpointer`, which writes, commits atomically and deletes. Added here:
digests of every array, errors that a user can act on, and the fall back to the previous good step. Knows names,
shapes and bits of arrays; must not know what they mean, nor the train loop. Every process of a run makes the same calls
in the same order.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from t5x_like.arrays.trees import Tree, flatten, unflatten
from t5x_like.checkpoint import digests
from t5x_like.checkpoint.compare import compare, without_optional
from t5x_like.checkpoint.config import CheckpointConfig
from t5x_like.core.errors import UserError, refuse
from t5x_like.core.paths import make_writable

T = TypeVar("T")
UNKNOWN = -1  # as the last step: look it up
BLOCK = "t5x_like"  # our part of the metadata that Orbax keeps with each checkpoint
WAITS = (0.2, 1.0)  # seconds before a checkpoint that was not read well is read again: storage errs at times
TEMPORARY = ".orbax-checkpoint-tmp"  # in the name of a folder that Orbax has not committed


class Damaged(Exception):
    """A checkpoint that cannot be read or is not what was saved."""


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


class Checkpoints(contextlib.AbstractContextManager):
    """The checkpoints in one folder, one subfolder per step.

    Args:
      directory: folder of the checkpoints, shared by all processes; made if absent, unless ``read_only``.
      config: what to keep.
      read_only: whether nothing in the folder may be written or deleted, as in evaluation and generation.
      say: function of a warning; by default to standard error, from process 0 only.

    Raises:
      UserError: the folder cannot be written, is not shared between the processes, or (``read_only``) is not there.
    """

    def __init__(
        self, directory: str | Path, config: CheckpointConfig | None = None, *, read_only: bool = False,
        say: Callable[[str], None] = _say,
    ):
        self._directory = Path(directory).absolute()
        self._config = config or CheckpointConfig()
        self._read_only = read_only
        self._say: Callable[[str], None] = say if jax.process_index() == 0 else lambda message: None
        self._last: int | None = UNKNOWN
        self._pending: tuple[int, Any] | None = None  # the step being saved and Orbax's future
        self._own: set[int] = set()  # steps saved or restored here: this run's past
        if read_only:
            got = f"there is no folder {self._directory}"
            refuse(not self._directory.is_dir(), "checkpoints", got, "the folder of a trained run")
        else:
            make_writable(self._directory, "checkpoints")
            _require_shared(self._directory)
            self._remove_temporary("*")  # left by a killed process
        self._checkpointer = self._open()

    def _open(self) -> ocp.training.Checkpointer:
        keep = ocp.training.preservation_policies
        policies: list[Any] = [keep.LatestN(self._config.keep_last)] if self._config.keep_last else [keep.PreserveAll()]
        if self._config.keep_every:
            policies.append(keep.EveryNSteps(self._config.keep_every))
        policy: Any = keep.AnyPreservationPolicy(policies)  # Any: Orbax's own policies miss its protocol by a type
        # What is left over is removed above: Orbax does it in a thread that nothing waits for.
        where = str(self._directory)
        return ocp.training.Checkpointer(where, preservation_policy=policy, cleanup_tmp_directories=False)

    # Saving

    def save(self, step: int, state: Tree, metadata: Mapping[str, Any]) -> bool:
        """Starts to save; the caller may change or donate the arrays as soon as this returns.

        Waits for the device to have computed ``state``, for the copy to host memory, and for the previous save if that
        is still being written. The rest happens in the background: call `check` regularly.

        Checkpoints of this or later steps that are not of this run's past (it was restored from an earlier one) are set
        aside under another name, not deleted.

        Args:
          step: number of updates made.
          state: nested dict of jax.Array, sharded or not.
          metadata: JSON values; `restore` returns them with ``"step"`` added.

        Returns:
          False if this run has saved this step already or was restored from it; nothing is written then.

        Raises:
          UserError: the previous save has failed.
        """
        if self._read_only:
            raise ValueError("these checkpoints were opened read_only")
        if step in self._own:
            return False
        arrays = flatten(state)
        dispatched = digests.dispatch(arrays)
        self.wait()
        self.set_aside([s for s in self.steps() if s >= step], "is not of the resumed run")
        described = {path: {"shape": list(arrays[path].shape), "dtype": str(arrays[path].dtype), "digest": digest}
                     for path, digest in digests.fetch(dispatched).items()}  # fmt: skip
        body = {"user": {**metadata, "step": step}, "arrays": described}
        block: dict[str, Any] = {BLOCK: {**body, "crc": _crc(body)}}
        self._pending = step, self._checkpointer.save_async(step, state, force=True, custom_metadata=block)
        self._own.add(step)
        return True

    def check(self) -> None:
        """Raises the error of a save that has failed in the background; costs microseconds, so call it each step.

        Raises:
          UserError: the step that could not be written, and why. Earlier checkpoints are intact.
        """
        if self._pending is not None and not self._checkpointer.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Returns when the last save is safely on disk.

        Raises:
          UserError: it could not be written; earlier checkpoints are intact.
        """
        if self._pending is None:
            return
        (step, response), self._pending, self._last = self._pending, None, UNKNOWN
        try:
            response.result()
        except Exception as error:  # of Orbax, TensorStore or the file system: there is no list of them
            self._own.discard(step)
            self._remove_temporary(step)
            # Orbax raises the same error again at each call; a new one starts afresh.
            with contextlib.suppress(Exception):  # the error that is told below, once more
                self._checkpointer.close()
            self._checkpointer = self._open()
            got = f"step {step} could not be written to {self._directory}: {_reason(error)}"
            suggestion = f"make room and run again; it resumes from step {self.latest() or 0}"
            raise UserError("checkpoints", got, "a folder with room left", suggestion) from error

    def close(self) -> None:
        """Waits for the last save and ends threads; raises as `wait` does."""
        try:
            self.wait()
        finally:
            self._checkpointer.close()

    def __exit__(self, *exception: object) -> None:
        self.close()

    # Reading

    def steps(self) -> list[int]:
        """The steps with a committed checkpoint, ascending; one being saved is not among them until it is done."""
        pending = self._pending[0] if self._pending else None
        return [checkpoint.step for checkpoint in self._checkpointer.checkpoints if checkpoint.step != pending]

    def latest(self) -> int | None:
        """The last of `steps`, or None. Only `restore` checks whether it is good. Costs nothing, so ask each step."""
        if self._last == UNKNOWN:
            self._last = max(self.steps(), default=None)
        return self._last

    def metadata(self, step: int | None = None) -> dict[str, Any]:
        """Metadata given to `save`, with ``"step"``; reads no array.

        Raises:
          UserError: no such step, or its metadata cannot be read.
        """
        return self._existing_block(step)["user"]

    def arrays(self, step: int | None = None) -> dict[str, jax.ShapeDtypeStruct]:
        """Path to shape and dtype of every saved array; reads no array. Raises as `metadata` does."""
        saved = self._existing_block(step)["arrays"]
        return {path: jax.ShapeDtypeStruct(tuple(one["shape"]), one["dtype"]) for path, one in saved.items()}

    def digests(self, step: int | None = None) -> dict[str, str]:
        """Path to digest of every saved array, as ``digests.fetch`` has them. Raises as `metadata` does."""
        return {path: one["digest"] for path, one in self._existing_block(step)["arrays"].items()}

    def restore(
        self, template: Tree, step: int | None = None, partial: bool = False, optional: Collection[str] = ()
    ) -> tuple[Tree, dict[str, Any]]:
        """Reads a checkpoint onto the shardings of ``template``, whatever mesh it was saved from, and verifies it.

        What is not read well is read again. Without ``step``, a checkpoint that stays damaged is skipped with a
        warning, and the one before it is read.

        Args:
          template: nested dict of jax.ShapeDtypeStruct with shardings (without: the first local device). Where a dtype
            differs from the saved one, the array is cast after it was verified.
          step: step of the checkpoint; None: the latest good one.
          partial: whether the checkpoint may hold arrays that the template lacks; they are not read.
          optional: top-level names that either may lack, or have in another shape; the state then lacks them.

        Returns:
          The state, and the metadata given to `save` with ``"step"``.

        Raises:
          UserError: there is no checkpoint, none is good (or not the given one), or it is of another model: then with
            every name that is missing, superfluous or of another shape.
        """
        self.wait()
        latest = self._existing(step)
        candidates = [latest] if step is not None else sorted(self.steps(), reverse=True)
        problems: list[str] = []
        for candidate in candidates:
            try:
                state, user = _patiently(lambda: self._restore_one(template, candidate, partial, optional))  # noqa: B023
            except Damaged as error:
                problems.append(f"\n  step {candidate}: {error}")
                continue
            if problems:
                self._say(f"WARNING: damaged checkpoints passed over in {self._directory}{''.join(problems)}"
                          f"\n  resuming from step {candidate}")
            self._own = {candidate}  # later checkpoints do not belong to the resumed run
            return state, user
        others = ", ".join(str(s) for s in self.steps() if s not in candidates)
        suggestion = f"another step: {others}" if others else "a copy, or a new run directory"
        raise UserError("checkpoints", f"damaged in {self._directory}{''.join(problems)}", suggestion=suggestion)

    # Within

    def _restore_one(
        self, template: Tree, step: int, partial: bool, optional: Collection[str]
    ) -> tuple[Tree, dict[str, Any]]:
        block = self._agree(lambda: self._read_block(step))
        saved, wanted = without_optional(block["arrays"], flatten(template), optional)
        compare(f"checkpoint of step {step} in {self._directory}", saved, wanted, partial)
        local = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        as_saved = unflatten({
            path: jax.ShapeDtypeStruct(leaf.shape, saved[path]["dtype"], sharding=leaf.sharding or local)
            for path, leaf in wanted.items()
        })
        arrays = self._agree(lambda: flatten(self._load(step, as_saved)))
        found = digests.fetch(digests.dispatch(arrays))
        if wrong := [path for path in arrays if found[path] != saved[path]["digest"]]:
            raise Damaged(f"the bits of {', '.join(wrong[:3])}{' and others' if len(wrong) > 3 else ''} "
                          f"are not those that were saved ({len(wrong)} of {len(arrays)} arrays)")
        # Cast only now: the digest is of the saved bits. One array at a time, so that memory grows by one array.
        for path, leaf in wanted.items():
            if arrays[path].dtype != leaf.dtype:
                arrays[path] = arrays[path].astype(leaf.dtype)
        return unflatten(arrays), block["user"]

    def _load(self, step: int, as_saved: Tree) -> Tree:
        context = ocp.Context()
        context.pytree.loading.partial_load = True  # `compare` has refused superfluous arrays already
        with _reading(), context:
            return ocp.load(str(self._directory / str(step)), as_saved)

    def _existing_block(self, step: int | None) -> dict[str, Any]:
        step = self._existing(step)
        try:
            return _patiently(lambda: self._read_block(step))
        except Damaged as error:
            raise UserError("checkpoints", f"step {step} in {self._directory}: {error}") from error

    def _read_block(self, step: int) -> dict[str, Any]:
        """Our metadata of a step, verified; Damaged if it cannot be read."""
        with _reading("its metadata "):
            custom: Any = self._checkpointer.metadata(step).custom_metadata
            if BLOCK not in (custom or {}):
                raise Damaged("was not written by t5x_like")
            block: dict[str, Any] = dict(custom[BLOCK])
            if block.pop("crc") != _crc(block):
                raise Damaged("its metadata is not what was saved")
        return block

    def _agree(self, read: Callable[[], Any]) -> Any:
        """``read()``, unless it finds damage in any process: then all of them see it and try the same earlier step."""
        try:
            found = read()
        except Damaged as error:
            found = error
        if jax.process_count() > 1:
            fine = multihost_utils.process_allgather(np.asarray(not isinstance(found, Damaged)))
            if not isinstance(found, Damaged) and not np.all(fine):
                found = Damaged(f"cannot be read by process {int(np.argmin(fine))}")
        if isinstance(found, Damaged):
            raise found
        return found

    def _existing(self, step: int | None) -> int:
        """``step``, or the latest for None. Raises UserError where there is none."""
        steps, wanted = self.steps(), "" if step is None else f" of step {step}"
        found = max(steps, default=None) if step is None else step
        if found not in steps:
            allowed = ", ".join(f"step {s}" for s in steps)
            raise UserError("checkpoints", f"there is none{wanted} in {self._directory}", allowed)
        return found

    def set_aside(self, steps: list[int], why: str) -> None:
        """Renames checkpoints so that they are none of this run's; nothing is deleted. Says why: ``is ...``."""
        if not steps:
            return
        if jax.process_index() == 0:
            for step in steps:
                free = next(n for n in range(1, sys.maxsize) if not (self._directory / f"{step}.aside-{n}").exists())
                (self._directory / str(step)).rename(self._directory / f"{step}.aside-{free}")
                self._say(f"WARNING: the checkpoint of step {step} {why}; it is renamed to {step}.aside-{free} "
                          "and may be deleted")
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("t5x_like checkpoints set aside")
        self._checkpointer.reload()
        self._last = UNKNOWN

    def _remove_temporary(self, step: int | str) -> None:
        """Removes files of a failed save of a step (or ``"*"``: of any): on a full disk nothing else could be saved."""
        if jax.process_index() == 0:
            for folder in self._directory.glob(f"{step}{TEMPORARY}*"):
                shutil.rmtree(folder, ignore_errors=True)


def _patiently(read: Callable[[], T]) -> T:
    """``read()``, which is called again after each of ``WAITS`` if it finds damage, and damaged only if it stays so."""
    for seconds in WAITS:
        with contextlib.suppress(Damaged):
            return read()
        time.sleep(seconds)
    return read()


@contextlib.contextmanager
def _reading(what: str = "") -> Iterator[None]:
    """Whatever Orbax, TensorStore or the file system raise inside is ``Damaged``; there is no list of their errors."""
    try:
        yield
    except (Damaged, jax.errors.JaxRuntimeError, MemoryError):
        raise  # out of memory, for one, is no fault of the checkpoint
    except Exception as error:  # see the docstring
        raise Damaged(f"{what}cannot be read: {_reason(error)}") from error


def _crc(body: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(body, sort_keys=True).encode())


def _reason(error: BaseException) -> str:
    """The first line of an error, whose rest is often a page of file names."""
    text = str(error).strip() or type(error).__name__
    first = text.splitlines()[0]
    return first if len(first) <= 300 else first[:300] + "..."


def _require_shared(directory: Path) -> None:
    """Fails at once where Orbax would hang: processes that see different folders under one name."""
    if jax.process_count() == 1:
        return
    token = int(multihost_utils.broadcast_one_to_all(np.int32(time.time_ns() % 2**31)))
    probe = directory / f".shared.{token}"
    if jax.process_index() == 0:
        probe.touch()
    multihost_utils.sync_global_devices(f"t5x_like checkpoints probe {token}")
    seen = np.asarray(multihost_utils.process_allgather(np.asarray(probe.exists())))
    if jax.process_index() == 0:
        probe.unlink()
    blind = ", ".join(str(process) for process in np.flatnonzero(~seen))
    refuse(bool(blind), "checkpoints", f"{directory} is not the same folder for processes {blind} and process 0",
           "a folder that all processes share")
