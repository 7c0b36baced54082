"""Work ahead of time, by threads or by other processes: one mechanism for tokenizing and for making batches.

Knows processes and pipes; must not know what is done. Processes are started as commands and not by multiprocessing, so
that a user's script needs no ``if __name__ == "__main__"``; they import no JAX, and end with this one in any case.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import multiprocessing
import multiprocessing.connection
import os
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from t5x_like.core.errors import UserError
from t5x_like.core.loading import user_files
from t5x_like.core.mistakes import mistake

_COMMAND = (sys.executable, "-P", "-m", "t5x_like.input_pipeline.processes")

Report = Callable[..., None]


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Worker:
    """A process that calls one function, again and again; function, tasks and results are pickled."""

    def __init__(self, function: Callable[[Any, Report], Any]):
        environment = {
            # It imports what this process would, from the same places.
            "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)),
            # It is one of as many as there are cores: libraries must not start threads of their own.
            "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
        }  # fmt: skip
        self.connection, theirs = multiprocessing.Pipe()
        number = theirs.fileno()
        options = {"stdin": subprocess.DEVNULL, "pass_fds": (number,), "env": {**os.environ, **environment}}
        self.process = subprocess.Popen((*_COMMAND, str(number)), **options)
        theirs.close()
        self._send(function)

    def call(self, task: Any, report: Report) -> Any:
        """What the function returns for ``task``, or raises; ``EOFError`` if the process has died."""
        self._send(task)
        while True:
            try:
                kind, value = self.connection.recv()
            except OSError:
                raise EOFError from None
            if kind == "report":
                report(*value)
            elif kind == "raised":
                raise value
            else:
                return value

    def _send(self, task: Any) -> None:
        with contextlib.suppress(OSError):  # one that has died cannot read; that there is no answer will say so
            self.connection.send(task)


@contextlib.contextmanager
def team(
    function: Callable[[Any, Report], Any], count: int, field: str, what: str
) -> Iterator[Callable[..., Future[Any]]]:
    """Processes that share tasks, ended with the ``with`` block whatever they are doing.

    Args:
      function: function of a task and of ``report``, a function whose arguments come back to here at once; pickled, as
        tasks and results are.
      count: number of processes.
      field: name of the field that says how many, for errors.
      what: a task in a word.

    Yields:
      A function from a task, and from what is called with each report, to the future result. Tasks are begun in order.
      A future raises ``UserError`` as its task does, or if its process died; ``RuntimeError``: a fault of ours.
    """
    workers: list[_Worker] = []
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    pool = ThreadPoolExecutor(count, "worker")

    def call(task: Any, report: Report = lambda *_: None) -> Any:
        worker = idle.get()
        try:
            return worker.call(task, report)
        except EOFError:
            got = f"a process at work on {what} {task} was ended by {_ending(worker.process.wait())}"
            suggestion = "run again: what is finished is kept; fewer processes need less memory"
            raise UserError(field, got, "", suggestion) from None
        except RuntimeError as error:
            raise RuntimeError(f"{what} {task}: {error}") from None
        finally:
            idle.put(worker)

    try:
        for _ in range(count):
            workers.append(_Worker(function))
            idle.put(workers[-1])
        yield functools.partial(pool.submit, call)
    finally:
        for worker in workers:
            worker.process.kill()
            worker.process.wait()
        pool.shutdown(cancel_futures=True)
        for worker in workers:
            worker.connection.close()


def _ending(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
    return f"signal {name}" + (", as when memory runs out" if name == "SIGKILL" else "")


def done_ahead(
    function: Callable[[Any], Any], tasks: Iterable, threads: int = 0, processes: int = 0, ahead: int = 1
) -> Iterator[Any]:
    """Yields the result of each task, in order.

    Args:
      function: function from a task to its result.
      tasks: tasks in order; may be endless.
      threads: number of working threads; 0, without processes: each task is done on demand.
      processes: number of processes that work instead of threads; ``function`` and tasks are pickled.
      ahead: number of tasks done before demand, by each process.

    Raises:
      UserError: of a task; or a process was killed.
    """
    if not threads and not processes:
        yield from map(function, tasks)
        return
    with contextlib.ExitStack() as stack:
        if processes:
            work = functools.partial(_without_report, function)
            submit = stack.enter_context(team(work, processes, "data.worker_processes", "batch"))
            ahead *= processes
        else:
            pool = ThreadPoolExecutor(threads, "ahead")
            stack.callback(pool.shutdown, wait=False, cancel_futures=True)
            submit = functools.partial(pool.submit, function)
        iterator = iter(tasks)
        waiting = collections.deque(map(submit, itertools.islice(iterator, ahead)))
        while waiting:
            found = waiting.popleft().result()
            waiting.extend(map(submit, itertools.islice(iterator, 1)))
            yield found


def _without_report(function: Callable, task: Any, report: Report) -> Any:
    return function(task)


def main() -> None:
    """The process: answers until its pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches us too; the parent decides
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints
    connection = multiprocessing.connection.Connection(int(sys.argv[1]))
    tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(connection, tasks), daemon=True).start()
    function = tasks.get()
    while True:
        task = tasks.get()
        try:
            for each in (function, task):
                if isinstance(each, Exception):
                    raise each
            connection.send(("done", function(task, lambda *given: connection.send(("report", given)))))
        except UserError as error:
            connection.send(("raised", error))
        except Exception as error:  # of the user's own code; or an internal one: the parent ends, and shows it
            theirs = mistake(error, user_files())
            connection.send(("raised", theirs or RuntimeError(traceback.format_exc())))


def _listen(connection: multiprocessing.connection.Connection, tasks: queue.SimpleQueue[Any]) -> None:
    while True:
        try:
            tasks.put(connection.recv())
        except (EOFError, ConnectionError):
            os._exit(0)  # from whatever the main thread is doing
        except Exception as error:  # it cannot be made here: said in its turn
            tasks.put(error)


if __name__ == "__main__":
    main()
