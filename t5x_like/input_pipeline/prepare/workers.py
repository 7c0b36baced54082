"""Parts of a corpus spread over worker processes: started, fed, listened to, ended.

Knows processes and pipes; must not know what a part is made of. The processes are started as commands and not by
multiprocessing, so that a user's script needs no ``if __name__ == "__main__"``, and end with this one in any case.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from t5x_like.core.config import to_plain
from t5x_like.core.errors import UserError
from t5x_like.core.loading import code_environment
from t5x_like.input_pipeline.prepare.parts import ERROR_KINDS, Counts, Part, Work

# Called with what was done so far of a part: part, documents, tokens, bytes of the source.
Report = Callable[[Part, int, int, int], None]

_COMMAND = (sys.executable, "-P", "-m", "t5x_like.input_pipeline.prepare.worker")
_READ_BYTES = 2**16


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def tokenize_in_processes(
    work: Work, parts: Sequence[Part], processes: int, report: Report
) -> dict[int, Counts]:
    """Tokenizes parts into their files in the work folder, each by one of several processes.

    Args:
      work: what all parts share.
      parts: the parts, in order.
      processes: how many at most.
      report: called now and then for each part, and at its end.

    Returns:
      The counts of each part by its number.

    Raises:
      UserError: of the first part, in the order of the corpus, that has one; or a process that died.
    """
    finished: dict[int, Counts] = {}
    failed: dict[int, Exception] = {}
    waiting = iter(parts)
    with _started(work, min(processes, len(parts))) as workers, selectors.DefaultSelector() as selector:
        for worker in workers:
            selector.register(worker.output, selectors.EVENT_READ, worker)
            worker.give(next(waiting, None))
        while any(worker.part for worker in workers):
            for key, _ in selector.select():
                worker: _Worker = key.data
                for kind, value in worker.answers():
                    part = worker.part
                    if part is None:  # it died after its last answer
                        continue
                    if kind == "report":
                        report(part, *value)
                        continue
                    if kind == "counts":
                        finished[part.number] = counts = Counts(**value)
                        report(part, counts.documents, counts.tokens, part.size)
                    else:
                        failed[part.number] = _error_of(kind, value, part)
                    # Parts before a failed one are all given out already: the first error of the corpus will be known.
                    worker.give(None if failed else next(waiting, None))
                if worker.ended:
                    selector.unregister(worker.output)
    if failed:
        raise failed[min(failed)]
    return finished


class _Worker:
    """One process.

    Attributes:
      part: what it is at work on; None if nothing.
      ended: whether it has closed its output.
    """

    def __init__(self, work: Work):
        environment = {
            # It imports what this process would, from the same places.
            "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)),
            # It is one of as many as there are cores: libraries shall not start threads of their own.
            "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
            **code_environment(),
        }  # fmt: skip
        self._process = subprocess.Popen(
            _COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **environment}
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._input, self.output = self._process.stdin, self._process.stdout
        self._buffer = b""
        self.part: Part | None = None
        self.ended = False
        self._send(work)

    def give(self, part: Part | None) -> None:
        """Sets it to work on a part, or lets it rest."""
        self.part = part
        if part is not None:
            self._send(part)

    def answers(self) -> Iterator[tuple[str, Any]]:
        """Yields (kind, value) of what it has said since, and ("died", exit code) if it has ended."""
        data = os.read(self.output.fileno(), _READ_BYTES)
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            yield from json.loads(line).items()
        if not data:
            self.ended = True
            yield "died", self._process.wait()

    def end(self) -> None:
        """Ends it, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._input, self.output):
            with contextlib.suppress(OSError):
                pipe.close()

    def _send(self, value: Work | Part) -> None:
        # One that has died cannot read; its answers will say so.
        with contextlib.suppress(BrokenPipeError):
            self._input.write(json.dumps(to_plain(value)).encode() + b"\n")
            self._input.flush()


@contextlib.contextmanager
def _started(work: Work, count: int) -> Iterator[list[_Worker]]:
    workers: list[_Worker] = []
    try:
        for _ in range(count):
            workers.append(_Worker(work))
        yield workers
    finally:
        for worker in workers:
            worker.end()


def _error_of(kind: str, value: Any, part: Part) -> Exception:
    if kind in ERROR_KINDS:
        return ERROR_KINDS[kind](*value)
    where = ", ".join(unit.file for unit in part.units[:1]) + (", ..." if len(part.units) > 1 else "")
    if kind == "fault":
        return RuntimeError(f"part {part.number} ({where}) could not be tokenized:\n{value}")
    how = f"exit code {value}"
    if value < 0:
        name = signal.Signals(-value).name if -value in set(signal.Signals) else str(-value)
        how = f"signal {name}" + (", as when memory runs out" if name == "SIGKILL" else "")
    return UserError(
        "data.prepare_processes",
        f"a process that tokenized part {part.number} ({where}) was ended by {how}",
        "",
        "run again: what is finished is kept; fewer processes need less memory",
    )
