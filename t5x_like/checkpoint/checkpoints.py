"""The checkpoints of one run: saved in the background, verified when read; damaged ones are skipped.

The files are Orbax's, written and read by TensorStore (``arrays``); digests of every array, errors that a user can act
on, the fall back to the previous good step, and what is kept are added. Knows names, shapes and bits of arrays; must
not know what they mean, nor the train loop. Every process of a run makes the same calls in the same order; the first
one alone lists, renames and deletes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from t5x_like.arrays.trees import Tree, flatten
from t5x_like.checkpoint import arrays as stored
from t5x_like.checkpoint import digests
from t5x_like.checkpoint.config import CheckpointConfig
from t5x_like.checkpoint.folder import SLACK, TEMPORARY, Damaged, metadata_of, reason
from t5x_like.checkpoint.job import SECONDS, Job, require_shared
from t5x_like.checkpoint.keep import FALLBACK, reasons
from t5x_like.checkpoint.layout import LAYOUT
from t5x_like.checkpoint.local import LOCAL, LocalSaves, token_of
from t5x_like.checkpoint.reader import Reader
from t5x_like.core.errors import UserError, refuse
from t5x_like.core.paths import make_writable


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


@dataclasses.dataclass
class _Save:
    """A save in the background: its step, the arrays' bytes, and its end with the seconds that it took."""

    step: int
    size: int
    end: Future[float]


class Checkpoints(Reader, contextlib.AbstractContextManager):
    """The checkpoints in one folder, one subfolder per step; ``Reader`` has what is read.

    Args:
      directory: folder or address of the checkpoints, shared by all processes; made if absent, unless ``read_only``.
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
        job = job or Job.current()
        super().__init__(directory, say if job.index == 0 else lambda message: None, job)
        self._config = config or CheckpointConfig()
        self._read_only = read_only
        self.record = record
        self.before_commit: Callable[[], None] = lambda: None  # called in the background by the first process
        self._pending: _Save | None = None
        self._own: set[int] = set()  # steps saved or restored here: this run's past
        self._measured: dict[int, dict[str, float]] = {}
        if read_only:
            got = f"there is no folder {self.folder}"
            refuse(not self.folder.exists(), "checkpoints", got, "the folder of a trained run")
        else:
            if self.folder.path:
                make_writable(self.folder.path, "checkpoints")
            require_shared(self.folder.place, self._job)
        self._latest: int | None = self._job.first(self._open)
        self._local: LocalSaves | None = None
        self._saves_locally = False  # since an earlier start
        if self._config.local.directory and not read_only:
            self._saves_locally = self._job.first(lambda: self.folder.place.exists(LOCAL))
            token = self._job.first(lambda: token_of(self.folder.place))
            where = Path(self._config.local.directory) / token
            self._local = LocalSaves(where, self._job, _say, lambda event, **values: self.record(event, **values))
            found = (self._latest, self._local.latest())
            self._latest = max((step for step in found if step is not None), default=None)
        self._pool = ThreadPoolExecutor(1, "checkpoints")

    def _open(self) -> int | None:
        """The last step. What a killed process has left is removed."""
        if not self._read_only:
            for name in self.folder.leftovers():
                self.folder.remove(name)
            self._measured = self.folder.measured()
        return max(self.folder.steps(), default=None)

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
        # Many programs that wait for a step can take the threads that its own devices still need: XLA's CPU client then
        # stands still, and ends the process after 40 s.
        began, arrays = time.perf_counter(), flatten(jax.block_until_ready(state))
        dispatched = digests.dispatch(arrays)
        self.wait()
        size = sum(array.nbytes for array in arrays.values())
        self._job.first(lambda: self._prepared(step, size))
        if loss is not None:
            self.measured(step, {FALLBACK: loss})
        pieces = stored.pieces(arrays, self._job.index)
        found = digests.fetch(arrays, dispatched, self._job.collect).all
        described = {path: {"shape": list(array.shape), "dtype": str(array.dtype), "digest": found[path]}
                     for path, array in arrays.items()}  # fmt: skip
        whole = metadata_of({**metadata, "step": step}, described, LAYOUT)
        self._pending = _Save(step, size, self._pool.submit(self._write, step, pieces, described, whole, began))
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
        except Exception as error:  # of TensorStore or the file system: there is no list of them
            self._own.discard(save.step)
            raise self._failed(save.step, error) from error
        self._latest = save.step
        self.record("save", step=save.step, seconds=round(seconds, 3), bytes=save.size)

    def measured(self, step: int, values: Mapping[str, float]) -> None:
        """Notes values measured at a step, by which the best checkpoints are kept; every process may call it."""
        if self._job.index == 0 and not self._read_only:
            self._measured[step] = {**self._measured.get(step, {}), **values}
            with contextlib.suppress(OSError):  # a full disk: the next save says so
                self.folder.write_measured(self._measured)

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

    def latest(self) -> int | None:
        """The last of `steps`, or None. Only `restore` checks whether it is good. Costs nothing, so ask each step."""
        return self._latest

    def restore(
        self, template: Tree, step: int | None = None, partial: bool = False, optional: Collection[str] = ()
    ) -> tuple[Tree, dict[str, Any]]:
        """As of ``Reader``; a good local save that is later than the newest checkpoint goes before."""
        self.wait()
        if step is None and (found := self._restore_locally(template)):
            return found
        state, user = super().restore(template, step, partial, optional)
        self._own = {user["step"]}  # later checkpoints do not belong to the resumed run
        if self._local is not None:
            self._local.forget_after(user["step"])
        return state, user

    # Within

    def _restore_locally(self, template: Tree) -> tuple[Tree, dict[str, Any]] | None:
        """The latest local save if it is good and later than the newest checkpoint."""
        began, newest = time.perf_counter(), max(self._job.first(self.steps), default=-1) if self._local else -1
        if self._local is None:
            return None
        if (step := self._local.latest()) is None and self._saves_locally and newest >= 0:
            self._say("WARNING: there is no local save that every process has, as after a change of hosts: not used")
        if step is None or step <= newest:
            return None
        try:
            state, user = self._local.restore(template, step)
        except Damaged as error:
            self._say(f"WARNING: the local save of step {step} {error}: not used")
            return None
        self._own = set()  # the folder of the run does not have this step
        self._local.forget_after(step)
        self._note(state, began)
        return state, user

    def set_aside(self, steps: list[int], why: str) -> None:
        """Renames checkpoints so that they are none of this run's; they are deleted once it has a newer one. Says why:
        ``is ...``. Every process gives the same steps."""
        if steps:
            self._job.first(lambda: self._rename(steps, why))
            self._latest = self._job.first(lambda: max(self.steps(), default=None))

    def _rename(self, steps: list[int], why: str) -> None:
        for step, name in self.folder.set_aside(steps):
            self._say(f"WARNING: the checkpoint of step {step} {why}; it is renamed to {name} and deleted once this "
                      "run has a newer one")

    def _prepared(self, step: int, size: int) -> None:
        try:
            self._make_room(step, size)
        except OSError as error:  # a disk that may only be read by now
            raise self._failed(step, error) from error

    def _make_room(self, step: int, size: int) -> None:
        """Before a save, in the first process: sets aside what is not of this run's past, and cleans up if the disk is
        short of room."""
        there = self.steps()
        self._rename([each for each in there if each >= step], "is not of the resumed run")
        self.folder.remove(f"{step}{TEMPORARY}")  # of a save that failed
        there = {*(each for each in there if each < step), self._latest, step}
        self._measured = {old: values for old, values in self._measured.items() if old in there}
        needed = int(size * SLACK)
        if self.folder.free_bytes() >= needed:
            return
        for name in [*self.folder.leftovers(), *self.folder.aside()]:
            self._say(f"WARNING: the disk is short of room for step {step}: {name} is deleted")
            self.folder.remove(name)
        free = self.folder.free_bytes()
        refuse(free < needed, "checkpoints", f"step {step} needs {needed / 1e6:,.1f} MB in {self.folder}, and only "
               f"{free / 1e6:,.1f} MB are free", "a folder with room left", "make room and run again, or keep fewer "
               f"(checkpoint.keep_last, checkpoint.keep_best); it resumes from step {self.latest() or 0}")

    def _failed(self, step: int, error: Exception) -> UserError:
        """The error of a save that could not be written; what it has written is removed."""
        with contextlib.suppress(OSError, UserError):
            for name in self.folder.leftovers() if self._job.index == 0 else ():
                self.folder.remove(name)  # on a full disk nothing else could be saved
        got = f"step {step} could not be written to {self.folder}: {reason(error)}"
        suggestion = f"make room and run again; it resumes from step {self.latest() or 0}"
        return UserError("checkpoints", got, "a folder with room left", suggestion)

    def _write(
        self, step: int, pieces: Sequence[stored.Piece], described: Mapping[str, Any], metadata: Mapping[str, Any],
        began: float,
    ) -> float:  # fmt: skip
        """In the background: writes the pieces of this process; the first one then makes the checkpoint whole and
        deletes what no rule keeps. Returns the seconds that the save took."""
        target = self.folder.begun(step)
        stored.write(target, pieces, self._job.index, self._config.compress)
        if self._job.index:
            return time.perf_counter() - began
        stored.merge(target, {path: one["shape"] for path, one in described.items()}, self._job.count, SECONDS)
        self.before_commit()
        self.folder.commit(step, metadata)
        seconds = time.perf_counter() - began
        with contextlib.suppress(OSError, UserError):  # what cannot be deleted now is after the next save
            kept = reasons(self.folder.saved(), self._config, time.time())
            gone = [str(old) for old, why in kept.items() if not why and old < step]
            for name in self.folder.superseded(step):
                self._say(f"{name} is deleted: this run has written step {step}")
                gone.append(name)
            for name in gone:
                self.folder.remove(name)
        return seconds
