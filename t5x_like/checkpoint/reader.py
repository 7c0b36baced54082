"""The checkpoints in one folder as they are read: verified, and read again where storage errs.

Knows names, shapes and bits of arrays; must not know what they mean. Changes nothing in the folder.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from t5x_like.arrays.trees import Tree, flatten, unflatten
from t5x_like.checkpoint import arrays as stored
from t5x_like.checkpoint import digests
from t5x_like.checkpoint.compare import compare, without_optional
from t5x_like.checkpoint.folder import Damaged, Folder, patiently, reason
from t5x_like.checkpoint.job import Job
from t5x_like.checkpoint.layout import renamed
from t5x_like.core.errors import UserError

AT_ONCE = 2**30  # bytes of arrays that `verify` has in memory at a time, unless one array is larger


class Reader:
    """The checkpoints below a folder.

    Args:
      directory: folder or address of the checkpoints, the same for all processes.
      say: function of a warning.
      job: the processes.
    """

    def __init__(self, directory: str | Path, say: Callable[[str], None], job: Job):
        self.folder = Folder(directory)
        self._job = job
        self._say = say
        self.restored: dict[str, Any] = {}  # seconds and bytes of the last restore

    def steps(self) -> list[int]:
        """The steps with a committed checkpoint, ascending; one being saved is not among them until it is done."""
        return self.folder.steps()

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
        """Path to digest of every saved array, as ``digests.of`` has them. Raises as `metadata` does."""
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
        began, steps = time.perf_counter(), self._job.first(self.steps)
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
                self._say(f"WARNING: damaged checkpoints passed over in {self.folder}{''.join(problems)}"
                          f"\n  resuming from step {candidate}")
            self._note(state, began)
            return state, user
        others = ", ".join(str(s) for s in steps if s not in candidates)
        suggestion = f"another step: {others}" if others else "a copy, or a new run directory"
        raise UserError("checkpoints", f"damaged in {self.folder}{''.join(problems)}", suggestion=suggestion)

    def verify(self, step: int) -> str:
        """Reads every array of a checkpoint and compares its digest, some at a time; what is wrong, or nothing."""
        try:
            block = patiently(lambda: self.folder.block(step))
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

    def _note(self, state: Tree, began: float) -> None:
        size = sum(array.nbytes for array in flatten(state).values())
        self.restored = {"seconds": round(time.perf_counter() - began, 3), "bytes": size}

    def _restore_one(
        self, template: Tree, step: int, partial: bool, optional: Collection[str] = ()
    ) -> tuple[Tree, dict[str, Any]]:
        block = self._job.all(lambda: self.folder.block(step), Damaged)
        names, wanted = renamed(block["arrays"], block["layout"]), flatten(template)
        saved = {names[path]: {**one, "path": path} for path, one in block["arrays"].items()}
        saved, wanted = without_optional(saved, wanted, optional)
        compare(f"checkpoint of step {step} in {self.folder}", saved, wanted, partial)
        local = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        as_saved = {
            saved[path]["path"]: jax.ShapeDtypeStruct(leaf.shape, saved[path]["dtype"], sharding=leaf.sharding or local)
            for path, leaf in wanted.items()
        }
        arrays = self._job.all(lambda: self._read(step, as_saved), Damaged)
        found = digests.fetch(arrays, digests.dispatch(arrays), self._job.collect)
        self._job.all(lambda: _check(found, block["arrays"]), Damaged)
        arrays = {names[path]: array for path, array in arrays.items()}
        # Cast only now: the digest is of the saved bits. One array at a time, so that memory grows by one array.
        for path, leaf in wanted.items():
            if arrays[path].dtype != leaf.dtype:
                arrays[path] = arrays[path].astype(leaf.dtype)
        return unflatten(arrays), block["user"]

    def _read(self, step: int, as_saved: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        with _reading():
            return stored.read(self.folder.at(step), as_saved)

    def _existing_block(self, step: int | None) -> dict[str, Any]:
        step = self._existing(step, self.steps())
        try:
            return patiently(lambda: self.folder.block(step))
        except Damaged as error:
            raise UserError("checkpoints", f"step {step} in {self.folder}: {error}") from error

    def _existing(self, step: int | None, steps: list[int]) -> int:
        """``step``, or the latest for None. Raises UserError where there is none."""
        wanted = "" if step is None else f" of step {step}"
        found = max(steps, default=None) if step is None else step
        if found is None or found not in steps:
            allowed = ", ".join(f"step {s}" for s in steps)
            raise UserError("checkpoints", f"there is none{wanted} in {self.folder}", allowed)
        return found


def _check(found: digests.Found, saved: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises Damaged if a digest is not that of the array that was saved."""
    wrong = {path: digest for digests_of in (found.all, found.own) for path, digest in digests_of.items()
             if digest != saved[path]["digest"]}  # fmt: skip
    if wrong:
        raise Damaged(f"the bits of {', '.join(list(wrong)[:3])}{' and others' if len(wrong) > 3 else ''} "
                      f"are not those that were saved ({len(wrong)} of {len(found.all)} arrays)", wrong)


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Whatever TensorStore or the file system raise inside is ``Damaged``; there is no list of their errors."""
    try:
        yield
    except (Damaged, jax.errors.JaxRuntimeError, MemoryError):
        raise  # out of memory, for one, is no fault of the checkpoint
    except Exception as error:  # see the docstring
        raise Damaged(f"cannot be read: {reason(error)}") from error
