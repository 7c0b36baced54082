"""Joining the processes of a job into one JAX world. Knows environment variables; must not know the computation."""

from __future__ import annotations

import os
from collections.abc import Mapping

import jax

from t5x_like.core.errors import UserError

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def process_arguments(environment: Mapping[str, str]) -> dict | None:
    """Arguments of ``jax.distributed.initialize`` from the environment; None for a job of one process.

    Raises:
      UserError: some of the three variables are missing, or are not numbers.
    """
    given = [v for v in VARIABLES if environment.get(v)]
    if not given:
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
    """Joins the job that the environment describes, once, before anything asks for devices."""
    arguments = process_arguments(os.environ)
    if arguments is not None and not jax.distributed.is_initialized():
        jax.distributed.initialize(**arguments)
