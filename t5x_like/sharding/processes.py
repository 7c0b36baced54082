"""Joining the processes of a job into one JAX world. Knows environment variables; must not know the computation."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

import jax

from t5x_like.core.errors import UserError

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


# Name of a cluster's environment, and its variables for the number of a job's processes and for the index of this one.
CLUSTERS = (
    ("Slurm", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"), ("Slurm", "SLURM_NTASKS", "SLURM_PROCID"),
    ("Open MPI", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"), ("MPI", "PMI_SIZE", "PMI_RANK"),
    ("SkyPilot", "SKYPILOT_NUM_NODES", "SKYPILOT_NODE_RANK"), ("torchrun", "WORLD_SIZE", "RANK"),
)  # fmt: skip


def refuse_unjoined(environment: Mapping[str, str]) -> None:
    """Raises UserError if a cluster says that this is one of several processes, and ``VARIABLES`` are not set: each
    process would do the whole job."""
    by_cluster: dict[str, tuple[str, str, str, int, str]] = {}
    for cluster, size, index in CLUSTERS:  # the first that is set: of a step of a job, before those of the job
        if index in environment and size in environment:
            by_cluster.setdefault(cluster, (cluster, size, index, _number(environment, size, 1), f"${index}"))
    found = [*by_cluster.values()]
    if hosts := environment.get("TPU_WORKER_HOSTNAMES"):
        each, slices = len(hosts.split(",")), _number(environment, "MEGASCALE_NUM_SLICES", 1)
        index = _number(environment, "TPU_WORKER_ID", 0) + each * _number(environment, "MEGASCALE_SLICE_ID", 0)
        found.append(("TPU hosts", "TPU_WORKER_HOSTNAMES", "TPU_WORKER_ID", each * slices, str(index)))
    for cluster, size, index, count, here in found:
        if count > 1:
            first = "$(scontrol show hostnames $SLURM_JOB_NODELIST | head -n 1)" if cluster == "Slurm" else "HOST_OF_0"
            raise UserError(
                "environment",
                f"{size} and {index} say that this is one of {count} processes of {cluster}, and none of them knows of "
                "the others: each would do the whole job",
                f"{', '.join(VARIABLES)} set in every process; JAX_NUM_PROCESSES=1 where one is to work alone",
                f"JAX_COORDINATOR_ADDRESS={first}:61000 JAX_NUM_PROCESSES={count} JAX_PROCESS_ID={here}",
            )


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    found = environment.get(name, "")
    return int(found) if found.isdecimal() else default


def process_arguments(environment: Mapping[str, str]) -> dict | None:
    """Arguments of ``jax.distributed.initialize`` from the environment; None for a job of one process.

    Raises:
      UserError: some of the three variables are missing, or are not numbers.
    """
    given = [v for v in VARIABLES if environment.get(v)]
    if not given or (given == ["JAX_NUM_PROCESSES"] and environment["JAX_NUM_PROCESSES"] == "1"):
        return None
    if missing := [v for v in VARIABLES if v not in given]:
        raise UserError("environment", f"{', '.join(given)} set, {', '.join(missing)} not", "all three, or none")
    try:
        count, index = int(environment["JAX_NUM_PROCESSES"]), int(environment["JAX_PROCESS_ID"])
    except ValueError:
        raise UserError("environment", "JAX_NUM_PROCESSES or JAX_PROCESS_ID is not a number", "whole numbers") from None
    if not 0 <= index < count:
        raise UserError("environment", f"JAX_PROCESS_ID={index} of JAX_NUM_PROCESSES={count}", f"0 to {count - 1}")
    if count == 1:
        return None
    return {
        "coordinator_address": environment["JAX_COORDINATOR_ADDRESS"],
        "num_processes": count,
        "process_id": index,
        "initialization_timeout": 120,
        "heartbeat_timeout_seconds": 30,
        "shutdown_timeout_seconds": 60,
    }


def join_processes() -> None:
    """Joins the job that the environment describes, once, before anything asks for devices.

    Raises:
      UserError: as ``process_arguments``, ``refuse_unjoined`` and ``check_devices``.
    """
    arguments = process_arguments(os.environ)
    if not os.environ.get("JAX_NUM_PROCESSES") and not jax.distributed.is_initialized():
        refuse_unjoined(os.environ)
    if arguments is not None and not jax.distributed.is_initialized():
        _keep_stdout_to_python()
        jax.distributed.initialize(**arguments)
    check_devices()


def check_devices() -> None:
    """Raises UserError if JAX_PLATFORMS names devices that are not there, or that this jax does not know."""
    try:
        jax.devices()
    except RuntimeError as error:
        asked, reason = jax.config.jax_platforms or "whatever there is", str(error).splitlines()[0]
        raise UserError("JAX_PLATFORMS", f"{asked}: {reason}", "cpu, or a kind of device that this machine and its jax "
                        "have", "JAX_PLATFORMS=cpu, or the jax for your devices: pip install 'jax[cuda12]'") from None


def _keep_stdout_to_python() -> None:
    """Gloo's C++ writes every connection to standard output, and has no switch for it: Python goes on with a copy."""
    try:
        if sys.stdout.fileno() != 1:
            return
    except (OSError, ValueError):  # not a file: captured by a test or a notebook
        return
    sys.stdout.flush()
    sys.stdout = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors, buffering=1)
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.close(silent)
