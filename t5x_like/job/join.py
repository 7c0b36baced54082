"""Joining the processes of a job into one JAX world: in Python first, where what is wrong can be said, then in jax.

Must not know the computation.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from typing import Any

import jax

from t5x_like.core.errors import UserError
from t5x_like.job.cluster import World, resolve
from t5x_like.job.config import JobConfig
from t5x_like.job.hub import Hub
from t5x_like.job.line import Fault, Line, leave
from t5x_like.job.output import keep_stdout_to_python

BUSY = 5.0  # seconds for which a port in use is tried again: the job before this one may be about to leave it
SPARE = 15  # seconds by which jax's own heartbeat is later than ours, which names the process
_line: Line | None = None


def line() -> Line | None:
    """This process's line to the others of its job; None in a job of one process."""
    return _line


def join_processes(job: JobConfig | None = None, facts: Mapping[str, Any] | None = None) -> None:
    """Joins the job that the environment describes, once, before anything asks for devices.

    Args:
      job: time-outs; None: the defaults.
      facts: what must be equal in all processes, by name.

    Raises:
      UserError: as ``job.cluster.resolve`` and ``check_devices``; or a process differs from process 0 in ``facts``.
      Fault: a port in use, a host name that does not resolve, a process that does not come in time.
    """
    global _line
    job = job or JobConfig()
    if _line is None and not jax.distributed.is_initialized() and (world := resolve(os.environ, job.coordinator)):
        if world.index == 0:
            print(f"job: {world}", file=sys.stderr, flush=True)
        bound, address = _meet(world, job)
        assert _line is not None
        if facts is not None:
            _line.agree("config", facts)
        keep_stdout_to_python()
        _end_all_on_exceptions(_line)
        handler = signal.getsignal(signal.SIGTERM)
        try:
            jax.distributed.initialize(
                address, world.count, world.index, None if world.local_devices is None else [*world.local_devices],
                cluster_detection_method="deactivate", coordinator_bind_address=bound,
                initialization_timeout=job.initialization_timeout,
                heartbeat_timeout_seconds=job.heartbeat_timeout + SPARE, shutdown_timeout_seconds=job.shutdown_timeout,
            )  # fmt: skip
        except RuntimeError as error:
            raise Fault(f"jax.distributed: process {world.index} at {address}: {str(error).splitlines()[0]}") from None
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # jax has put its own there, which acts only where it is polled
    check_devices()


def _meet(world: World, job: JobConfig) -> tuple[str, str]:
    """Opens the line; (address that jax of process 0 binds, address at which all find it), once all are there."""
    global _line
    arrival, heartbeat = job.initialization_timeout, job.heartbeat_timeout
    bound = ""
    if world.index == 0:
        listeners, bound, address = _listen(world)
        theirs, connection = socket.socketpair()
        hub = Hub(listeners, theirs, world.count, address, arrival, heartbeat)
        hub.start()
    else:
        connection = _connect(world, arrival)
    _line = Line(connection, world.index, world.count, heartbeat)
    _line.patience = job.shutdown_timeout
    if world.index == 0:
        _line.others_gone = hub.others_gone
    _line.start()
    _line.messages.send("hello", world.index, world.count, f"{socket.gethostname()}, process id {os.getpid()}")
    return bound, _line.wait_for_go(arrival + 5.0)


def addresses(host: str) -> list[str]:
    """Addresses of this machine at which the others reach ``host``: loopback for a name of that, else one of the
    network that the name lies in, never all interfaces.

    Raises:
      Fault: the name does not resolve, or is that of another machine.
    """
    try:
        found = dict.fromkeys(str(each[4][0]) for each in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
    except OSError as error:
        raise Fault(f"the host name of process 0 does not resolve: {host}: {error.strerror}") from None
    own = [each for each in found if _is_ours(each)]
    if all(each.startswith("127.0.1.") for each in own):
        # Nothing, as behind a service's address, or Debian's stand-in for the name of the machine itself, which means
        # another address on other machines: the interface of the default route.
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))  # sends nothing
            own = [probe.getsockname()[0], *own]
    if not own:
        raise Fault(f"process 0 is to listen at {host} ({', '.join(found)}), which is no address of this machine")
    return sorted(own, key=lambda each: ":" in each)


def _is_ours(address: str) -> bool:
    with contextlib.suppress(OSError), socket.socket(_family(address)) as probe:
        probe.bind((address, 0))
        return True
    return False


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _spell(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _listen(world: World) -> tuple[list[socket.socket], str, str]:
    """Sockets of process 0, the address that jax binds, and where the others find that."""
    given = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", "")
    host, _, port = given.rpartition(":")
    own, port = ([host.strip("[]")], int(port)) if given else (addresses(world.host), world.port)
    listeners, patience = [], time.monotonic() + BUSY
    for address in own:
        while True:
            listener = socket.socket(_family(address))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((address, port))
                listener.listen(1024)
                break
            except OSError as error:
                listener.close()
                if time.monotonic() > patience:
                    where = _spell(address, port)
                    raise Fault(f"process 0 cannot listen at {where}: {error.strerror}. Another port: "
                                "JAX_COORDINATOR_ADDRESS or JAX_COORDINATOR_PORT") from None
                time.sleep(0.2)
        listeners.append(listener)
    return listeners, _spell(own[0], port), _spell(world.host if given else own[0], world.port if given else port)


def _connect(world: World, seconds: float) -> socket.socket:
    """A connection to process 0, which may come later. Raises Fault after that time."""
    deadline, where, why = time.monotonic() + seconds, _spell(world.host, world.port), ""
    while time.monotonic() < deadline:
        try:
            connection = socket.create_connection((world.host, world.port), timeout=5.0)
            connection.settimeout(None)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection
        except socket.gaierror as error:
            why = f"the host name does not resolve: {error.strerror}"
        except OSError as error:
            why = error.strerror or str(error)
        time.sleep(0.2)
    raise Fault(f"process {world.index} has not found process 0 at {where} within {seconds:.0f} s: {why}")


def _end_all_on_exceptions(made: Line) -> None:
    """An exception that nobody catches ends all processes of the job, and is printed last."""

    def end(kind: type[BaseException], error: BaseException | None, trace: Any) -> None:
        stopped = issubclass(kind, KeyboardInterrupt)
        made.fail(130 if stopped else 1, kind.__name__, issubclass(kind, jax.errors.JaxRuntimeError))
        traceback.print_exception(kind, error, trace)
        leave(130 if stopped else 1)

    sys.excepthook = end

    def of_thread(found: threading.ExceptHookArgs) -> None:
        if not issubclass(found.exc_type, SystemExit):
            end(found.exc_type, found.exc_value, found.exc_traceback)

    threading.excepthook = of_thread


def check_devices() -> None:
    """Raises UserError if JAX_PLATFORMS names devices that are not there, or that this jax does not know."""
    try:
        jax.devices()
    except RuntimeError as error:
        asked, reason = jax.config.jax_platforms or "whatever there is", str(error).splitlines()[0]
        raise UserError("JAX_PLATFORMS", f"{asked}: {reason}", "cpu, or a kind of device that this machine and its jax "
                        "have", "JAX_PLATFORMS=cpu, or the jax for your devices: pip install 'jax[cuda12]'") from None
