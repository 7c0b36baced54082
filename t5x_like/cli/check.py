"""``t5x-like check``: one line per check, exit code 2 if one fails."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

from t5x_like.core.errors import UserError
from t5x_like.core.storage import is_folder
from t5x_like.train.config import Run


def check(load: Callable[[], Run], options: argparse.Namespace) -> int:
    """Prints what each check finds, as it is found.

    Args:
      load: function that makes the run, as ``train`` has it.
      options: the command line's.
    """
    if options.topology:
        os.environ["JAX_PLATFORMS"] = "cpu"  # before JAX looks: what is here is not what the run is for
    from t5x_like.check.case import Case, Said
    from t5x_like.check.checks import failed, run_checks
    from t5x_like.core.places import with_absolute_paths

    failures = 0

    def tell(name: str, said: Said) -> None:
        nonlocal failures
        failures += said.state == "FAILED"
        print(f"{said.state:<8} {name:<12} {said.text}", flush=True)

    try:
        run = with_absolute_paths(load())
    except UserError as error:
        tell("config", failed(error))
    else:
        directory = options.directory or (options.config if is_folder(options.config) else f"runs/{run.name}")
        case = Case(run, directory, options.cluster, options.topology, options.accept_changed)
        for name, said in run_checks(case):
            tell(name, said)
    print(f"{failures} of the checks failed" if failures else "nothing found that would stop the run", flush=True)
    return 2 if failures else 0
