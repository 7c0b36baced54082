"""The state that a run begins with if it begins from another: that run's parameters, on request its optimizer's state.

Reads arrays and metadata of a checkpoint only: no config of the other run is built, and no code of it runs.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import jax

from t5x_like.arrays.keys import named
from t5x_like.arrays.trees import flatten, join, split, unflatten
from t5x_like.checkpoint import digests
from t5x_like.checkpoint.checkpoints import Checkpoints
from t5x_like.checkpoint.compare import compare
from t5x_like.checkpoint.folder import Folder
from t5x_like.core.errors import UserError, refuse
from t5x_like.layers.param import initialize
from t5x_like.models.transformer import make_model
from t5x_like.sharding.mesh import Placement
from t5x_like.train.config import Run
from t5x_like.train.setup import Setup, State
from t5x_like.train.working import CHECKPOINTS, checkpoints_of


def begun_from(
    run: Run, setup: Setup, placement: Placement, before: dict[str, Any] | None = None
) -> tuple[State, dict[str, Any]]:
    """(the state before the first update, the record of it) of a run with ``start.from``.

    Parameters of the run's adapters that the other run lacks have their initial values.

    Args:
      run, setup, placement: the run that begins.
      before: the record of an earlier start that saved nothing: the same checkpoint is taken, not a later one.

    Raises:
      UserError: no such run or checkpoint; it is damaged; it has other parameters, with every name.
    """
    parent, step = parse(run.start.from_)
    folder, step = checkpoints_of(parent), before["parent_step"] if before else step
    got = f"there is no run in {parent}: it has no folder {CHECKPOINTS}"
    there = Folder(folder).exists()
    refuse(not there, "start.from", got, "the folder of a run with a checkpoint", "start.from=RUN@STEP")
    with Checkpoints(folder, read_only=True) as checkpoints:
        steps = checkpoints.steps()
        shown = ", ".join(f"{each}" for each in steps)
        refuse(not steps, "start.from", f"{parent} has no checkpoint", "a run with one")
        refuse(step is not None and step not in steps, "start.from", f"{parent} has no checkpoint of step {step}",
               f"one of {shown}")  # fmt: skip
        template = _template(run, setup, placement, checkpoints.arrays(step), parent)
        found, metadata = checkpoints.restore(template, step, partial=True)
    if lacking := {path for path in flatten(setup.specs) if path not in flatten(found["params"])}:
        specs, _ = split(setup.specs, lacking)
        places, _ = split(placement.of(setup.specs), lacking)
        drawn = initialize(specs, named(jax.random.key(run.train.seed), "params"), places)
        whole = flatten(join(found["params"], drawn))
        found["params"] = unflatten({path: whole[path] for path in flatten(setup.specs)})
    record = {"event": "branch", "parent": parent, "parent_step": int(metadata["step"]), "what": run.start.what,
              "digest": digest(found if "optimizer" in found else {"params": found["params"]})}  # fmt: skip
    record |= {"averaged": metadata["averaged"]} if "averaged" in metadata else {}
    changed = before is not None and before["digest"] != record["digest"]
    refuse(changed, "start.from", f"{parent} at step {step} is not what it was when this run was first started",
           "the same checkpoint", "another folder for the run")  # fmt: skip
    return setup.completed(placement, found), record


def parse(text: str) -> tuple[str, int | None]:
    """(folder, step or None for the latest) of RUN or RUN@STEP."""
    folder, at, step = text.rpartition("@")
    return (folder, int(step)) if at and step.isdecimal() and folder else (text, None)


def digest(tree: Any) -> str:
    """A digest of the bits of all arrays, whatever mesh they lie on."""
    found = digests.of(flatten(tree))
    return hashlib.sha256(json.dumps(sorted(found.items())).encode()).hexdigest()


def _template(run: Run, setup: Setup, placement: Placement, there: dict[str, Any], parent: str) -> State:
    """What is read of the other run's arrays ``there``. Raises UserError where it is not what the run has."""
    kinds = ("params", "optimizer") if run.start.what == "parameters+optimizer" else ("params",)
    wanted = flatten({kind: setup.abstract_state(placement)[kind] for kind in kinds})
    own = {f"params/{path}" for path in flatten(make_model(run.model)[1])}
    wanted = {path: leaf for path, leaf in wanted.items() if path in there or path in own or path.startswith("opt")}
    saved = {path: {"shape": leaf.shape} for path, leaf in there.items() if path.split("/")[0] in kinds}
    try:
        compare(f"start.from: {parent}", saved, wanted, partial=False, shown=len(wanted) + len(saved))
    except UserError as error:
        suggestion = f"the model and optimizer of {parent}/config.json"
        raise UserError(error.where, error.got, "a run with the same parameters", suggestion) from None
    return unflatten(wanted)
