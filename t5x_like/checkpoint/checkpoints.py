"""The checkpoints of one run: saved in the background, verified when read; damaged ones are skipped.

A thin adapter over Orbax's v1 `save_async` and `load`, which write arrays, commit atomically and read onto any mesh.
Added here: digests of every array, errors that a user can act on, the fall back to the previous good step, and what is
kept. Knows names, shapes and bits of arrays; must not know what they mean, nor the train loop. Every process of a run
makes the same calls in the same order; the first one alone lists, renames and deletes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import sys
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from t5x_like.arrays.trees import Tree, flatten, unflatten
from t5x_like.checkpoint import digests, folder
from t5x_like.checkpoint.compare import compare, without_optional
from t5x_like.checkpoint.config import CheckpointConfig
from t5x_like.checkpoint.folder import Damaged, patiently, read_block, reason
from t5x_like.checkpoint.job import Job, require_shared
from t5x_like.checkpoint.keep import FALLBACK, reasons
from t5x_like.checkpoint.layout import LAYOUT, renamed
from t5x_like.checkpoint.local import LocalSaves, token_of
from t5x_like.core.errors import UserError, refuse
from t5x_like.core.paths import make_writable

AT_ONCE = 2**30  # bytes of arrays that `verify` has in memory at a time, unless one array is larger


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


@dataclasses.dataclass
class _Save:
    """A save in the background: its step, the arrays' bytes, and its end with the seconds that it took."""

    step: int
    size: int
    end: Future[float]


class Checkpoints(contextlib.AbstractContextManager):
    """The checkpoints in one folder, one subfolder per step.

    Args:
      directory: folder of the checkpoints, shared by all processes; made if absent, unless ``read_only``.
      config: what to keep.
      read_only: whether nothing in the folder may be written or deleted, as in evaluation and generation.
      say: function of a warning; by default to standard error, from process 0 only.
      record: function of (event, its values), called once a ``save`` is written: step, seconds, bytes.
      job: the processes; by default those of jax.

    Raises:
      UserError: the folder cannot be written, is not shared between the processes, or (``read_only``) is not there.
    """

    def __init__(
        self, directory: str | Path, config: CheckpointConfig | None = None, *, read_only: bool = False,
        say: Callable[[str], None] = _say, record: Callable[..., object] = lambda event, **values: None,
        job: Job | None = None,
    ):
        self._directory = Path(directory).absolute()
        self._config = config or CheckpointConfig()
        self._read_only = read_only
        self._job = job or Job.current()
        self._say: Callable[[str], None] = say if self._job.index == 0 else lambda message: None
        self.record = record
        self.restored: dict[str, Any] = {}  # seconds and bytes of the last restore
        self._pending: _Save | None = None
        self._own: set[int] = set()  # steps saved or restored here: this run's past
        self._measured: dict[int, dict[str, float]] = {}
        if read_only:
            got = f"there is no folder {self._directory}"
            refuse(not self._directory.is_dir(), "checkpoints", got, "the folder of a trained run")
        else:
            make_writable(self._directory, "checkpoints")
            require_shared(self._directory, self._job)
        self._latest: int | None = self._job.first(self._open)
        self._local: LocalSaves | None = None
        if self._config.local.directory and not read_only:
            token = self._job.first(lambda: token_of(self._directory))
            where = Path(self._config.local.directory) / token
            self._local = LocalSaves(where, self._job, _say, lambda event, **values: self.record(event, **values))
            found = (self._latest, self._local.latest())
            self._latest = max((step for step in found if step is not None), default=None)
        self._pool = ThreadPoolExecutor(1, "checkpoints")

    def _open(self) -> int | None:
        """The last step. What a killed process has left is removed."""
        if not self._read_only:
            for path in folder.leftovers_in(self._directory):
                folder.remove(path)
            self._measured = folder.read_measured(self._directory)
        return max(folder.steps_in(self._directory), default=None)

    # Saving

    def save(self, step: int, state: Tree, metadata: Mapping[str, Any], loss: float | None = None) -> bool:
        """Starts to save; the caller may change or donate the arrays as soon as this returns.

        Waits for the device to have computed ``state``, for the copy to host memory, and for the previous save if that
        is still being written. The rest happens in the background: call `check` regularly.

        Checkpoints of this or later steps that are not of this run's past (it was restored from an earlier one) are set
        aside under another name, and deleted once this run has a newer one.

        Args:
          step: number of updates made.
          state: nested dict of jax.Array, sharded or not.
          metadata: JSON values; `restore` returns them with ``"step"`` added.
          loss: mean training loss since the save before; ranks checkpoints that no evaluation has measured.

        Returns:
          False if this run has saved this step already or was restored from it; nothing is written then.

        Raises:
          UserError: the previous save has failed, or there is no room for this one. Earlier checkpoints are intact.
        """
        if self._read_only:
            raise ValueError("these checkpoints were opened read_only")
        if step in self._own:
            return False
        began, arrays = time.perf_counter(), flatten(state)
        dispatched = digests.dispatch(arrays)
        self.wait()
        size = sum(array.nbytes for array in arrays.values())
        self._job.first(lambda: self._make_room(step, size))
        if loss is not None:
            self.measured(step, {FALLBACK: loss})
        described = {path: {"shape": list(arrays[path].shape), "dtype": str(arrays[path].dtype), "digest": digest}
                     for path, digest in digests.fetch(dispatched).items()}  # fmt: skip
        block = folder.block_of({**metadata, "step": step}, described, LAYOUT)
        context = ocp.Context()
        context.array.saving.use_compression = self._config.compress
        try:
            with context:
                response = ocp.save_async(str(self._directory / str(step)), state, custom_metadata=block)
        except OSError as error:
            raise self._failed(step, error) from error
        self._pending = _Save(step, size, self._pool.submit(self._finish, step, response, began))
        self._own.add(step)
        return True

    def save_locally(self, step: int, state: Tree, metadata: Mapping[str, Any]) -> None:
        """As ``save``, to the local disk of each host, where the config names one; never fails."""
        if self._local is not None:
            self._local.save(step, state, metadata)

    def check(self) -> None:
        """Raises the error of a save that has failed in the background; costs microseconds, so call it each step.

        Raises:
          UserError: the step that could not be written, and why. Earlier checkpoints are intact.
        """
        if self._pending is not None and self._pending.end.done():
            self.wait()

    def wait(self) -> None:
        """Returns when the last save is safely on disk.

        Raises:
          UserError: it could not be written; earlier checkpoints are intact.
        """
        if self._pending is None:
            return
        save, self._pending = self._pending, None
        try:
            seconds = save.end.result()
        except Exception as error:  # of Orbax, TensorStore or the file system: there is no list of them
            self._own.discard(save.step)
            raise self._failed(save.step, error) from error
        self._latest = save.step
        self.record("save", step=save.step, seconds=round(seconds, 3), bytes=save.size)

    def measured(self, step: int, values: Mapping[str, float]) -> None:
        """Notes values measured at a step, by which the best checkpoints are kept; every process may call it."""
        if self._job.index == 0 and not self._read_only:
            self._measured[step] = {**self._measured.get(step, {}), **values}
            with contextlib.suppress(UserError):  # a full disk: the next save says so
                folder.write_measured(self._directory, self._measured)

    def close(self) -> None:
        """Waits for the last save and ends threads; raises as `wait` does."""
        try:
            self.wait()
        finally:
            self._pool.shutdown()
            if self._local is not None:
                self._local.wait()

    def __exit__(self, *exception: object) -> None:
        self.close()

    # Reading

    def steps(self) -> list[int]:
        """The steps with a committed checkpoint, ascending; one being saved is not among them until it is done."""
        return folder.steps_in(self._directory)

    def latest(self) -> int | None:
        """The last of `steps`, or None. Only `restore` checks whether it is good. Costs nothing, so ask each step."""
        return self._latest

    def metadata(self, step: int | None = None) -> dict[str, Any]:
        """Metadata given to `save`, with ``"step"``; reads no array.

        Raises:
          UserError: no such step, or its metadata cannot be read.
        """
        return self._existing_block(step)["user"]

    def arrays(self, step: int | None = None) -> dict[str, jax.ShapeDtypeStruct]:
        """Path to shape and dtype of every saved array; reads no array. Raises as `metadata` does."""
        block = self._existing_block(step)
        names = renamed(block["arrays"], block["layout"])
        return {names[path]: jax.ShapeDtypeStruct(tuple(one["shape"]), one["dtype"])
                for path, one in block["arrays"].items()}  # fmt: skip

    def digests(self, step: int | None = None) -> dict[str, str]:
        """Path to digest of every saved array, as ``digests.fetch`` has them. Raises as `metadata` does."""
        return {path: one["digest"] for path, one in self._existing_block(step)["arrays"].items()}

    def restore(
        self, template: Tree, step: int | None = None, partial: bool = False, optional: Collection[str] = ()
    ) -> tuple[Tree, dict[str, Any]]:
        """Reads a checkpoint onto the shardings of ``template``, whatever mesh it was saved from, and verifies it.

        What is not read well is read again, until two readings find the same wrong bits or nothing can be read for
        some seconds. Without ``step``, a checkpoint that stays damaged is skipped with a warning, and the one before
        it is read. What one process cannot read, none takes.

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
        began, steps = time.perf_counter(), self._job.first(self.steps)
        if step is None and (found := self._restore_locally(template, max(steps, default=-1))):
            return found
        latest = self._existing(step, steps)
        candidates = [latest] if step is not None else sorted(steps, reverse=True)
        problems: list[str] = []
        for candidate in candidates:
            try:
                state, user = patiently(functools.partial(self._restore_one, template, candidate, partial, optional))
            except Damaged as error:
                problems.append(f"\n  step {candidate}: {error}")
                continue
            if problems:
                self._say(f"WARNING: damaged checkpoints passed over in {self._directory}{''.join(problems)}"
                          f"\n  resuming from step {candidate}")
            self._own = {candidate}  # later checkpoints do not belong to the resumed run
            self._restored(candidate, state, began)
            return state, user
        others = ", ".join(str(s) for s in steps if s not in candidates)
        suggestion = f"another step: {others}" if others else "a copy, or a new run directory"
        raise UserError("checkpoints", f"damaged in {self._directory}{''.join(problems)}", suggestion=suggestion)

    def verify(self, step: int) -> str:
        """Reads every array of a checkpoint and compares its digest, some at a time; what is wrong, or nothing."""
        try:
            block = patiently(lambda: read_block(self._directory / str(step)))
        except Damaged as error:
            return str(error)
        groups, size = [{}], 0
        for path, one in self.arrays(step).items():
            bytes_of = one.size * one.dtype.itemsize
            if groups[-1] and size + bytes_of > AT_ONCE:
                groups, size = [*groups, {}], 0
            groups[-1][path], size = one, size + bytes_of
        for group in groups if block["arrays"] else ():
            try:
                patiently(functools.partial(self._restore_one, unflatten(group), step, True))
            except Damaged as error:
                return str(error)
        return ""

    # Within

    def _restore_locally(self, template: Tree, newest: int) -> tuple[Tree, dict[str, Any]] | None:
        """The latest local save if it is good and later than the newest checkpoint."""
        if self._local is None or (step := self._local.latest()) is None or step <= newest:
            return None
        began = time.perf_counter()
        try:
            state, user = self._local.restore(template, step)
        except Damaged as error:
            self._say(f"WARNING: the local save of step {step} {error}: not used")
            return None
        self._own = set()  # the folder of the run does not have this step
        self._restored(step, state, began)
        return state, user

    def _restored(self, step: int, state: Tree, began: float) -> None:
        if self._local is not None:
            self._local.forget_after(step)
        size = sum(array.nbytes for array in flatten(state).values())
        self.restored = {"seconds": round(time.perf_counter() - began, 3), "bytes": size}

    def _restore_one(
        self, template: Tree, step: int, partial: bool, optional: Collection[str] = ()
    ) -> tuple[Tree, dict[str, Any]]:
        block = self._job.all(lambda: read_block(self._directory / str(step)), Damaged)
        names, wanted = renamed(block["arrays"], block["layout"]), flatten(template)
        saved = {names[path]: {**one, "path": path} for path, one in block["arrays"].items()}
        saved, wanted = without_optional(saved, wanted, optional)
        compare(f"checkpoint of step {step} in {self._directory}", saved, wanted, partial)
        local = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        as_saved = unflatten({
            saved[path]["path"]: jax.ShapeDtypeStruct(leaf.shape, saved[path]["dtype"], sharding=leaf.sharding or local)
            for path, leaf in wanted.items()
        })
        arrays = self._job.all(lambda: flatten(self._load(step, as_saved)), Damaged)
        found = digests.fetch(digests.dispatch(arrays))
        if wrong := {path: digest for path, digest in found.items() if digest != block["arrays"][path]["digest"]}:
            raise Damaged(f"the bits of {', '.join(list(wrong)[:3])}{' and others' if len(wrong) > 3 else ''} "
                          f"are not those that were saved ({len(wrong)} of {len(arrays)} arrays)", wrong)
        arrays = {names[path]: array for path, array in arrays.items()}
        # Cast only now: the digest is of the saved bits. One array at a time, so that memory grows by one array.
        for path, leaf in wanted.items():
            if arrays[path].dtype != leaf.dtype:
                arrays[path] = arrays[path].astype(leaf.dtype)
        return unflatten(arrays), block["user"]

    def _load(self, step: int, as_saved: Tree) -> Tree:
        context = ocp.Context()
        context.pytree.loading.partial_load = True  # `compare` has refused superfluous arrays already
        # Each process reads its shards without waiting for the others, since one alone may fail: `Job.all` joins them.
        context.multiprocessing.active_processes = {jax.process_index()}
        context.multiprocessing.primary_host = jax.process_index()
        with _reading(), context:
            return ocp.load(str(self._directory / str(step)), as_saved)

    def _existing_block(self, step: int | None) -> dict[str, Any]:
        step = self._existing(step, self.steps())
        try:
            return patiently(lambda: read_block(self._directory / str(step)))
        except Damaged as error:
            raise UserError("checkpoints", f"step {step} in {self._directory}: {error}") from error

    def _existing(self, step: int | None, steps: list[int]) -> int:
        """``step``, or the latest for None. Raises UserError where there is none."""
        wanted = "" if step is None else f" of step {step}"
        found = max(steps, default=None) if step is None else step
        if found is None or found not in steps:
            allowed = ", ".join(f"step {s}" for s in steps)
            raise UserError("checkpoints", f"there is none{wanted} in {self._directory}", allowed)
        return found

    def set_aside(self, steps: list[int], why: str) -> None:
        """Renames checkpoints so that they are none of this run's; they are deleted once it has a newer one. Says why:
        ``is ...``. Every process gives the same steps."""
        if steps:
            self._job.first(lambda: self._rename(steps, why))
            self._latest = self._job.first(lambda: max(folder.steps_in(self._directory), default=None))

    def _rename(self, steps: list[int], why: str) -> None:
        for step, name in folder.set_aside(self._directory, steps):
            self._say(f"WARNING: the checkpoint of step {step} {why}; it is renamed to {name} and deleted once this "
                      "run has a newer one")

    def _make_room(self, step: int, size: int) -> None:
        """Before a save, in the first process: sets aside what is not of this run's past, and cleans up if the disk is
        short of room."""
        later = [each for each in folder.steps_in(self._directory) if each >= step]
        self._rename(later, "is not of the resumed run")
        there = {*folder.steps_in(self._directory), self._latest, step}
        self._measured = {old: values for old, values in self._measured.items() if old in there}
        needed = int(size * folder.SLACK)
        if folder.free_bytes(self._directory) >= needed:
            return
        for path in [*folder.leftovers_in(self._directory), *folder.aside_in(self._directory)]:
            self._say(f"WARNING: the disk is short of room for step {step}: {path.name} is deleted")
            folder.remove(path)
        free = folder.free_bytes(self._directory)
        refuse(free < needed, "checkpoints", f"step {step} needs {needed / 1e6:,.1f} MB in {self._directory}, and only "
               f"{free / 1e6:,.1f} MB are free", "a folder with room left", "make room and run again, or keep fewer "
               f"(checkpoint.keep_last, checkpoint.keep_best); it resumes from step {self.latest() or 0}")

    def _failed(self, step: int, error: Exception) -> UserError:
        """The error of a save that could not be written; what it has written is removed."""
        if self._job.index == 0:
            for path in folder.leftovers_in(self._directory):  # on a full disk nothing else could be saved
                folder.remove(path)
        got = f"step {step} could not be written to {self._directory}: {reason(error)}"
        suggestion = f"make room and run again; it resumes from step {self.latest() or 0}"
        return UserError("checkpoints", got, "a folder with room left", suggestion)

    def _finish(self, step: int, response: Any, began: float) -> float:
        """In the background: waits for the files of a save; then the first process deletes what no rule keeps. Returns
        the seconds that the save took."""
        response.result()
        seconds = time.perf_counter() - began
        if self._job.index:
            return seconds
        with contextlib.suppress(OSError, UserError):  # what cannot be deleted now is after the next save
            kept = reasons(folder.saved_in(self._directory), self._config, time.time())
            gone = [self._directory / str(old) for old, why in kept.items() if not why and old < step]
            for path in folder.superseded(self._directory, step):
                self._say(f"{path.name} is deleted: this run has written step {step}")
                gone.append(path)
            for path in gone:
                folder.remove(path)
        return seconds


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Whatever Orbax, TensorStore or the file system raise inside is ``Damaged``; there is no list of their errors."""
    _say_nothing_of_other_reads()
    try:
        yield
    except (Damaged, jax.errors.JaxRuntimeError, MemoryError):
        raise  # out of memory, for one, is no fault of the checkpoint
    except Exception as error:  # see the docstring
        raise Damaged(f"cannot be read: {reason(error)}") from error


@functools.cache
def _say_nothing_of_other_reads() -> None:
    """After the first read that fails Orbax closes its loop and leaves the others to themselves; each would print a
    traceback or a warning, some time later."""
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    logging.getLogger("asyncio").addFilter(lambda record: "exception was never retrieved" not in record.getMessage())
    before = sys.unraisablehook

    def hook(found: Any) -> None:
        if "Event loop is closed" not in str(found.exc_value):
            before(found)

    sys.unraisablehook = hook
