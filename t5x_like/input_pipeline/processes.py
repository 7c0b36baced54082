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
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from t5x_like.core.errors import UserError
from t5x_like.core.loading import user_files
from t5x_like.core.mistakes import mistake

_COMMAND = (sys.executable, "-P", "-m", "t5x_like.input_pipeline.processes")

Report = Callable[..., None]


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Worker:
    """A process that calls one function, again and again.

    Args:
      function: function of a task and of ``report``, a function whose arguments come as answers; pickled, as tasks and
        results are.

    Attributes:
      connection: object for ``multiprocessing.connection.wait``, ready when there is an answer.
    """

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
        self._process = subprocess.Popen((*_COMMAND, str(number)), **options)
        theirs.close()
        self.send(function)

    def send(self, task: Any) -> None:
        """Gives it a task; its answer comes after those of earlier ones."""
        with contextlib.suppress(OSError):  # one that has died cannot read; its answer will say so
            self.connection.send(task)

    def answer(self) -> tuple[str, Any]:
        """("report", arguments), ("done", result), ("error", ``UserError``), ("fault", traceback) or ("died", exit
        code); waits for it."""
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            return "died", self._process.wait()

    def end(self) -> None:
        """Ends it, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        self.connection.close()


@contextlib.contextmanager
def team(function: Callable[[Any, Report], Any], count: int) -> Iterator[list[Worker]]:
    """``count`` processes for ``function``, ended with the ``with`` block."""
    workers: list[Worker] = []
    try:
        for _ in range(count):
            workers.append(Worker(function))
        yield workers
    finally:
        for worker in workers:
            worker.end()


def ending(code: int) -> str:
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
    if processes:
        return _by_processes(functools.partial(_without_report, function), iter(tasks), processes, ahead)
    return _by_threads(function, iter(tasks), threads, ahead) if threads else map(function, tasks)


def _by_threads(function: Callable, tasks: Iterator, threads: int, ahead: int) -> Iterator[Any]:
    pool = ThreadPoolExecutor(threads, "ahead")
    try:
        waiting = collections.deque(pool.submit(function, task) for task in itertools.islice(tasks, ahead))
        while waiting:
            found = waiting.popleft().result()
            waiting.extend(pool.submit(function, task) for task in itertools.islice(tasks, 1))
            yield found
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _by_processes(function: Callable, tasks: Iterator, processes: int, ahead: int) -> Iterator[Any]:
    def give(worker: Worker, task: Any) -> Worker:
        worker.send(task)
        return worker

    with team(function, processes) as workers:
        given = map(give, itertools.cycle(workers), tasks)
        waiting = collections.deque(itertools.islice(given, processes * ahead))
        while waiting:
            kind, value = waiting.popleft().answer()
            if kind == "error":
                raise value
            if kind == "died":
                how = f"a process that worked ahead was ended by {ending(value)}"
                raise UserError("data.worker_processes", how, "", "run again; fewer processes need less memory")
            if kind == "fault":
                raise RuntimeError(value)
            waiting.extend(itertools.islice(given, 1))
            yield value


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
            connection.send(("error", error))
        except Exception as error:  # of the user's own code; or an internal one: the parent ends, and shows it
            theirs = mistake(error, user_files())
            connection.send(("error", theirs) if theirs else ("fault", traceback.format_exc()))


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
