"""What a user chooses about the processes of a job. Loads nothing heavy, because ``--help`` reads it."""

from __future__ import annotations

import dataclasses

from t5x_like.core.config import Config
from t5x_like.core.ranges import NonNegativeFloat, PositiveFloat, PositiveInt


@dataclasses.dataclass(frozen=True)
class JobConfig(Config, where="job"):
    """How the processes of a job find one another, and how soon one that is lost or stuck is noticed; in seconds.

    A job of one process has no need of the first four. A process counts as stuck if nothing has moved in it for longer
    than a limit: in steps, the larger of ``step_limit`` and ``step_factor`` times the run's own mean step; in anything
    else ``phase_limit``. Then its Python stack is printed, and all processes end with exit code 1.

    Attributes:
      coordinator: HOST:PORT of process 0, where the environment does not say it; empty: it does.
      initialization_timeout: longest time for all processes to come.
      heartbeat_timeout: longest time without a word from a process.
      shutdown_timeout: longest time that process 0 waits for the others at the end.
      step_limit: longest time without progress in a step or in its data, at least; 0: no limit.
      step_factor: number of mean steps that this limit is at least.
      phase_limit: longest time without progress in preparing, compiling, restoring, saving, a batch of an evaluation;
        0: no limit.
    """

    coordinator: str = ""
    initialization_timeout: PositiveInt = 120
    heartbeat_timeout: PositiveInt = 30
    shutdown_timeout: PositiveInt = 60
    step_limit: NonNegativeFloat = 120.0
    step_factor: PositiveFloat = 20.0
    phase_limit: NonNegativeFloat = 3600.0
