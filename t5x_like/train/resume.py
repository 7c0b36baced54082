"""The state that a run starts from: initial values, or its latest good checkpoint, of the same text and order."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from t5x_like.checkpoint.checkpoints import Checkpoints
from t5x_like.core.config import diff, flatten, structure, to_plain
from t5x_like.core.errors import UserError, refuse
from t5x_like.core.own_code import accept, own_code
from t5x_like.core.text import table
from t5x_like.input_pipeline.batches.order import ORDER_VERSION
from t5x_like.optim.schedules import learning_rate
from t5x_like.sharding.mesh import Placement
from t5x_like.train.branch import begun_from
from t5x_like.train.config import Run, why_free
from t5x_like.train.data import Data, check_skipped
from t5x_like.train.directory import refuse_changes, versions
from t5x_like.train.history import History
from t5x_like.train.setup import Setup, State

Changes = dict[str, tuple[Any, Any]]  # field to its values in the checkpoint's config and in that of this start

OPTIONAL = ("skipped", "spikes")  # of the state: those that a checkpoint lacks begin anew


@dataclasses.dataclass(frozen=True)
class Start:
    """What a run starts from.

    Attributes:
      state: the state of training.
      step: number of updates made.
      changes: what has changed in the config since the checkpoint.
      described: the same in words; empty where nothing has.
      totals: metrics since the last row of them, as of ``loop.Loop``.
    """

    state: State
    step: int = 0
    changes: Changes = dataclasses.field(default_factory=dict)
    described: str = ""
    totals: dict[str, list[float]] = dataclasses.field(default_factory=dict)


def first_state(
    run: Run, setup: Setup, placement: Placement, data: Data, checkpoints: Checkpoints, directory: Path,
    history: History,
) -> Start:  # fmt: skip
    """The state of the latest good checkpoint if there is one, else that of ``start.from``, else initial values.

    Raises:
      UserError: the checkpoint is of other text or order, or of a config that this one cannot continue (where the
        folder's config.json says otherwise, it has been edited).
    """
    if checkpoints.latest() is None and run.start.from_:
        state, record = begun_from(run, setup, placement, before=history.begun_from)
        if history.begun_from is None:
            history.add(record)
            history.commit()
        return Start(state)
    if checkpoints.latest() is None:
        return Start(setup.initial_state(placement, run.train.seed))
    state, metadata = checkpoints.restore(setup.abstract_state(placement), optional=OPTIONAL)
    state = setup.completed(placement, state)
    check(run, data, metadata)
    changes, step = changes_since(metadata["config"], run), int(metadata["step"])
    refuse_changes(directory, {name: pair for name, pair in changes.items() if not name.endswith(".code")})
    described = _describe(changes, step) + _rate(metadata["config"], run, step)
    return Start(state, step, changes, described, metadata.get("totals", {}))


def changes_since(before: Any, run: Run) -> Changes:
    """What differs from the JSON of a checkpoint's config; fields that its version did not have are left out. Files of
    the user's own that differ have been accepted, now or at an earlier start."""
    accepted = copy.deepcopy(before)
    accept(accepted, run, list(own_code(run)))
    try:
        then = structure(Run, accepted)
    except UserError:  # of another version
        then = accepted
    known, files = flatten(then), diff(before, run)
    changes = {name: pair for name, pair in diff(then, run).items() if name in known}
    return changes | {name: pair for name, pair in files.items() if name.endswith(".code")}


def _describe(changes: Changes, step: int) -> str:
    """A table of the changes and why each is allowed; empty where there are none."""
    if not changes:
        return ""
    rows = [("field", "before", "now", "changes")]
    rows += [(name, _text(old), _text(new), why_free(name) or "accepted by --accept-changed")
             for name, (old, new) in changes.items()]  # fmt: skip
    title = f"the config is not that of the checkpoint of step {step:,}; it may differ in these fields:"
    return "\n".join([title, *table(rows, left=4, indent="  ")])


def _text(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _rate(before: Any, run: Run, step: int) -> str:
    """A warning if the learning rate jumps at ``step``; empty where it does not, or cannot be compared.

    Args:
      before: JSON of the checkpoint's config.
      run: the config of this start.
      step: number of updates made.
    """
    try:
        then = structure(Run, before)
        old, new = (float(learning_rate(each.optimizer, each.train.steps)(jnp.int32(step))) for each in (then, run))
    except UserError:  # of another version, or with an optimizer of the user's own that has changed
        return ""
    if abs(new - old) <= 0.01 * abs(old):
        return ""
    ratio = f"{new / old:.3g} times" if old else "not"
    return f"\nWARNING: the learning rate of step {step + 1:,} is {new:.3g}, {ratio} the {old:.3g} of the config before"


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


def metadata(run: Run, data: Data, history: History, step: int) -> dict[str, Any]:
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
        **({"history": history.records} if history.records else {}),
    }
