"""The state that a run starts from: initial values, or its latest good checkpoint, of the same text and order."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from t5x_like.checkpoint.checkpoints import Checkpoints
from t5x_like.core.config import to_plain
from t5x_like.core.errors import refuse
from t5x_like.input_pipeline.batches.order import ORDER_VERSION
from t5x_like.sharding.mesh import Placement
from t5x_like.train.config import Run
from t5x_like.train.data import Data, check_skipped
from t5x_like.train.directory import versions
from t5x_like.train.setup import Setup, State


def first_state(
    run: Run, setup: Setup, placement: Placement, data: Data, checkpoints: Checkpoints
) -> tuple[State, int]:
    """(state, number of updates made): of the latest good checkpoint if there is one, else initial values.

    Raises:
      UserError: the checkpoint is of other text or order.
    """
    if checkpoints.latest() is None:
        return setup.initial_state(placement, run.train.seed), 0
    state, metadata = checkpoints.restore(setup.abstract_state(placement))
    check(run, data, metadata)
    return state, int(metadata["step"])


def check(run: Run, data: Data, metadata: Mapping[str, Any]) -> None:
    """Raises UserError unless the run can resume, with the same batches, from a checkpoint with this metadata."""
    before = metadata["data"]
    refuse(before["fingerprint"] != data.fingerprint, "data.corpus",
           f"{run.data.corpus.name!r} is not what the run was trained on: its text, tokenizer or split has changed",
           "the same files as before", "another directory, or the old corpus")
    refuse(before["order"] != ORDER_VERSION, "the checkpoint",
           f"its batches were ordered by rules {before['order']}, those of this version are {ORDER_VERSION}",
           "the version of t5x-like that it was begun with")
    skipped = dataclasses.replace(run.data, skip=tuple(metadata["config"]["data"]["skip"]))
    check_skipped(skipped, run.data, int(metadata["step"]))


def metadata(run: Run, data: Data, step: int) -> dict[str, Any]:
    """Metadata of a checkpoint after ``step`` updates."""
    return {
        "config": to_plain(run),
        "versions": versions(),
        "seed": run.train.seed,
        "data": {
            "step": step,
            "order": ORDER_VERSION,
            "processes": jax.process_count(),
            "epoch": data.train.epoch_of(step),
            "seen": {name: seen._asdict() for name, seen in data.train.seen(step).items()},
            "fingerprint": data.fingerprint,
            "tokenizer": data.tokenizer.fingerprint,
        },
    }
