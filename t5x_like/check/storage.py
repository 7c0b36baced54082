"""Checks of the run's folder: whether it can be written, is shared, has room, and holds a checkpoint that fits. Leave
it as it was."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import jax
import numpy as np

from t5x_like.arrays.trees import flatten
from t5x_like.check.case import Case, NotKnown
from t5x_like.check.said import Said
from t5x_like.checkpoint.compare import compare
from t5x_like.checkpoint.config import CheckpointConfig
from t5x_like.checkpoint.folder import Folder
from t5x_like.core.errors import refuse
from t5x_like.core.storage import is_address
from t5x_like.plan.memory import in_bytes
from t5x_like.train import resume
from t5x_like.train.directory import open_directory, refuse_changes, versions
from t5x_like.train.working import checkpoints_of, opened

DECIDE_BITS = ("jax", "jaxlib", "t5x_like", "flax")  # versions of what makes the program


def storage(case: Case) -> Said:
    """The folder can be written, and no other training runs in it."""
    return case.folder


def room(case: Case) -> Said:
    """There is room for the checkpoints that the rules keep, and for one more while it is written."""
    if case.folder.state == "FAILED":
        raise NotKnown("storage")
    kept, each = most_kept(case.run.checkpoint, case.run.train.steps) + 1, state_bytes(case)
    steps = Folder(checkpoints_of(case.directory)).steps()
    needed = each * max(0, kept - len(steps))
    if is_address(case.directory):
        return Said(f"{in_bytes(needed)} for {kept:,} checkpoints of {in_bytes(each)}; a bucket has no end")
    free = free_bytes(Path(case.directory))
    refuse(needed > free, "checkpoint", f"{in_bytes(free)} free in {case.directory}",
           f"{in_bytes(needed)}: {kept:,} checkpoints of {in_bytes(each)}, of which {len(steps)} are there",
           "a larger disk, or fewer: checkpoint.keep_last, checkpoint.keep_every, checkpoint.every")  # fmt: skip
    return Said(f"{in_bytes(needed)} for {kept:,} checkpoints of {in_bytes(each)}; {in_bytes(free)} are free")


def state_bytes(case: Case) -> int:
    """Of one checkpoint: the state of training, all devices together."""
    return sum(math.prod(array.shape) * np.dtype(array.dtype).itemsize for array in jax.tree.leaves(case.state))


def most_kept(config: CheckpointConfig, steps: int) -> int:
    """How many checkpoints the keep-rules allow at most on disk, in a run of ``steps`` steps; without ``keep_hours``,
    since nobody knows yet how long a step takes."""
    between = config.every.steps or (max(1, round(config.every.share * steps)) if config.every.share else steps)
    saved = -(-steps // between)  # the end of a run is always saved
    for_good = steps // config.keep_every if config.keep_every else 0
    return min(saved, (config.keep_last or saved) + for_good + config.keep_best)


def free_bytes(path: Path) -> int:
    """Free bytes of the disk that a path lies on, or will."""
    there = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
    return shutil.disk_usage(there).free


def checkpoint(case: Case) -> Said:
    """The run in the folder can resume with this config, from a checkpoint with its arrays, text and order."""
    directory = Path(case.directory)
    if is_address(case.directory) and case.latest is not None:
        directory = opened(case.directory)
    if directory.is_dir() or not is_address(case.directory):
        open_directory(directory, case.run, case.accept_changed)
    if (found := case.latest) is None:
        return Said("none yet: the run starts from the beginning")
    metadata, arrays = found
    saved = {path: {"shape": list(array.shape)} for path, array in arrays.items()}
    step = int(metadata["step"])
    compare(f"checkpoint of step {step} in {case.directory}", saved, flatten(case.state), partial=False)
    changes = resume.changes_since(metadata["config"], case.run)
    refuse_changes(directory, {name: pair for name, pair in changes.items() if not name.endswith(".code")})
    if case.data is not None:
        resume.check(case.run, case.data, metadata)
    changed = f"; changed since: {', '.join(changes)}" if changes else ""
    text = "" if case.data is not None else "; whether its text is this one is known once that is prepared"
    return Said(f"step {step:,} has the arrays of this run{changed}{text}")


def packages(case: Case) -> Said:
    """The versions are those of the checkpoint, or it is said what that means."""
    now = versions()
    if (found := case.latest) is None:
        return Said(", ".join(f"{name} {version}" for name, version in now.items()))
    before = found[0].get("versions", {})
    other = {name: (before.get(name, "none"), now[name]) for name in now if before.get(name) != now[name]}
    if not other:
        return Said("as in the checkpoint")
    shown = ", ".join(f"{name} {old} -> {new}" for name, (old, new) in other.items())
    bits = "it resumes from the same bits, and goes on with others: what compiles the step is another"
    same = "the compiled step is the same, so the bits can be kept"
    return Said(f"{shown}: {bits if set(other) & set(DECIDE_BITS) else same}", "warning")
