"""Agreement between the processes of a job about a checkpoint. Must not know checkpoints.

``Job`` is all that the rest of this room knows of other processes, so that a stand-in can play any number of them.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from t5x_like.core.errors import UserError, refuse
from t5x_like.core.storage import Place
from t5x_like.job.join import line

T = TypeVar("T")
SECONDS = 1800  # longest wait for the others to write their share of a checkpoint
SPEAKS = 3.0  # seconds in which a process that has failed says why and ends the others, before they say that it has
_numbers = itertools.count()  # all processes make the same calls in the same order


@dataclasses.dataclass(frozen=True)
class Job:
    """The processes of this job and the index of this one. Every process must make the same calls in the same order.

    Processes that joined by ``job.join`` first meet there, where one that is lost or stuck is named.
    """

    count: int = 1
    index: int = 0

    @classmethod
    def current(cls) -> Job:
        return cls(jax.process_count(), jax.process_index())

    def gather(self, number: int) -> list[int]:
        """The number of each process, in order."""
        return [int(each) for each in self.collect(np.int32(number).reshape(1)).ravel()]

    def collect(self, numbers: np.ndarray) -> np.ndarray:
        """The arrays of all processes, of one shape, along a new first axis."""
        if self.count == 1:
            return numbers[None]
        self.meet()
        return np.asarray(multihost_utils.process_allgather(numbers)).reshape(self.count, *numbers.shape)

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
            time.sleep(SPEAKS)
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
            time.sleep(SPEAKS)
            raise RuntimeError(f"process {states.index(2)} has failed; its message says why")
        if 1 in states:
            raise expected(f"cannot be read by process {states.index(1)}")
        return found

    def meet(self) -> None:
        """Returns when all processes are here, so that none waits long in a collective of jax, which has limits."""
        if self.count > 1 and (others := line()):
            others.agree(f"checkpoints {next(_numbers)}", {})


def require_shared(place: Place, job: Job) -> None:
    """Fails at once where processes see different folders under one name, or cannot write there.

    Raises:
      UserError: so it is.
    """
    name = job.first(lambda: _touch(place, f".shared.{time.time_ns()}"))
    seen = job.gather(int(place.exists(name)))
    if job.index == 0:
        place.remove(name)
    blind = ", ".join(str(process) for process, sees in enumerate(seen) if not sees)
    refuse(bool(blind), "checkpoints", f"{place} is not the same folder for processes {blind} and process 0",
           "a folder that all processes share")


def _touch(place: Place, name: str) -> str:
    try:
        place.write(name, b"")
    except OSError as error:
        raise UserError("checkpoints", f"{place} cannot be written: {error}", "a folder that can be written") from error
    return name
