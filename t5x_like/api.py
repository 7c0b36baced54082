"""What programs of your own import beside ``t5x_like.config``: runs opened, trained and applied. Imports JAX.

Files below may move; these names stay. docs/python.md shows each of them in use.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jax

from t5x_like.core.config import diff, from_json, override, to_json
from t5x_like.core.loading import load_run as _load_run
from t5x_like.sharding.mesh import Placement, make_placement
from t5x_like.train.config import Run
from t5x_like.train.data import Data
from t5x_like.train.feed import Feed, check_batch_size, local_share
from t5x_like.train.opened import OpenedRun, open_model, open_run
from t5x_like.train.run import Outcome, train
from t5x_like.train.setup import Setup, State, make_setup
from t5x_like.train.step import compile_step, train_step

__all__ = [
    "Data", "OpenedRun", "Outcome", "Placement", "Setup", "State", "batches", "compile_step", "diff", "from_json",
    "load_run", "make_placement", "make_setup", "open_model", "open_run", "override", "to_json", "train", "train_step",
]  # fmt: skip


def load_run(name: str | Path) -> Run:
    """The run of a shipped config's name or of a file's path. Raises UserError as ``core.loading.load_run``."""
    return _load_run(str(name), Run)


def batches(run: Run, data: Data, placement: Placement, first: int, last: int) -> Iterator[dict[str, jax.Array]]:
    """The batches of updates ``first`` to ``last - 1``, on the devices, as training reads them.

    Args:
      run: the config.
      data: its text, opened.
      placement: mesh and rules, as ``open_model`` gives them.
      first: number of updates before the first batch.
      last: number of updates after the last batch.

    Raises:
      UserError: the devices cannot share the rows of a batch.
    """
    check_batch_size(placement, run.train.batch_size, run.train.micro_batches)
    share = local_share(placement, run.train.batch_size)
    return iter(Feed(placement, data.train.reader(first, *share, stop_step=last), share))
