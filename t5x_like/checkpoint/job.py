"""Agreement between the processes of a job, with a limit on how long they wait. Must not know checkpoints.

``Job`` is all that the rest of this room knows of other processes, so that a stand-in can play any number of them.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from t5x_like.core.errors import refuse

T = TypeVar("T")
SECONDS = 1800  # longest wait for the others: a process may read, and read again, its share of a checkpoint meanwhile
_numbers = itertools.count()  # all processes make the same calls in the same order


@dataclasses.dataclass(frozen=True)
class Job:
    """The processes of this job and the index of this one. Every process must make the same calls in the same order.

    Raises (all methods):
      Exception: of jax, naming the processes that did not come within ``SECONDS``.
    """

    count: int = 1
    index: int = 0

    @classmethod
    def current(cls) -> Job:
        return cls(jax.process_count(), jax.process_index())

    def gather(self, number: int) -> list[int]:
        """The number of each process, in order."""
        if self.count == 1:
            return [number]
        self.meet()
        return [int(each) for each in np.ravel(multihost_utils.process_allgather(np.int32(number)))]

    def first(self, make: Callable[[], Any]) -> Any:
        """What ``make`` returns (JSON values) in the first process, which alone calls it; an error there is raised in
        all processes."""
        if self.count == 1:
            return make()
        error, text = None, b""
        if self.index == 0:
            try:
                text = json.dumps(make()).encode()
            except Exception as found:  # told to the others before it is raised here
                error = found
        self.meet()
        size = int(multihost_utils.broadcast_one_to_all(np.int32(-1 if error else len(text))))
        if error:
            raise error
        if size < 0:
            raise RuntimeError("the first process of the job has failed; its message says why")
        padded = np.zeros(size, np.uint8)
        padded[:] = np.frombuffer(text, np.uint8) if self.index == 0 else 0
        return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes())

    def all(self, read: Callable[[], T], expected: type[Exception]) -> T:
        """``read()``, unless an expected error is raised in any process: then it is raised in all. Another error in
        one ends all."""
        found: Any = None
        error: Exception | None = None
        try:
            found = read()
        except Exception as raised:  # told to the others before it is raised here
            error = raised
        states = self.gather(0 if error is None else 1 if isinstance(error, expected) else 2)
        if error is not None:
            raise error
        if 2 in states:
            raise RuntimeError(f"process {states.index(2)} has failed; its message says why")
        if 1 in states:
            raise expected(f"cannot be read by process {states.index(1)}")
        return found

    def meet(self) -> None:
        """Returns when all processes are here."""
        if self.count > 1:
            name = f"t5x_like checkpoints {next(_numbers)}"
            asyncio.run(ocp.multihost.sync_global_processes(name, operation_id="t5x_like", timeout=SECONDS))


def require_shared(directory: Path, job: Job) -> None:
    """Fails at once where Orbax would hang: processes that see different folders under one name."""
    if job.count == 1:
        return
    probe = directory / job.first(lambda: _touch(directory / f".shared.{time.time_ns()}"))
    seen = job.gather(int(probe.exists()))
    if job.index == 0:
        probe.unlink()
    blind = ", ".join(str(process) for process, sees in enumerate(seen) if not sees)
    refuse(bool(blind), "checkpoints", f"{directory} is not the same folder for processes {blind} and process 0",
           "a folder that all processes share")


def _touch(path: Path) -> str:
    path.touch()
    return path.name
