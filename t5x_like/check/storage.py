"""Checks of the run's folder: whether it can be written, is shared, has room, and holds a checkpoint that fits. Leave
it as it was."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from t5x_like.arrays.trees import flatten
from t5x_like.check.case import Case, Said
from t5x_like.checkpoint.checkpoints import Checkpoints
from t5x_like.checkpoint.compare import compare
from t5x_like.checkpoint.config import CheckpointConfig
from t5x_like.core.errors import refuse
from t5x_like.plan.memory import in_bytes
from t5x_like.report.writers import check_outputs
from t5x_like.train import resume
from t5x_like.train.directory import CHECKPOINTS, locked, open_directory, refuse_changes, versions

MOUNTS = Path("/proc/self/mounts")
NETWORK = ("nfs", "nfs4", "lustre", "gpfs", "beegfs", "cephfs", "ceph", "glusterfs", "cifs", "smb3", "9p", "orangefs",
           "afs", "wekafs", "fuse.gcsfuse", "fuse.s3fs", "fuse.mount-s3", "fuse.juicefs", "fuse.sshfs",
           "virtiofs")  # fmt: skip
MEMORY = ("tmpfs", "ramfs")
LOCAL = ("ext4", "ext3", "xfs", "btrfs", "zfs", "overlay", "f2fs")
DECIDE_BITS = ("jax", "jaxlib", "t5x_like", "flax")  # versions of what makes the program


def storage(case: Case) -> Said:
    """The folder can be written and is nobody else's, and a run in it can resume with this config."""
    report = dataclasses.replace(case.run.report, wandb="")  # its package is among the extras
    with locked(case.directory) as directory:
        open_directory(directory, case.run, case.accept_changed)
        check_outputs(directory, report)
        return _shared(directory, case.cluster)


def _shared(directory: Path, cluster: str) -> Said:
    """What is known of whether other hosts see the same folder."""
    kind, text = file_system(directory), f"{directory} can be written"
    if not cluster:
        return Said(f"{text} ({kind})")
    if kind in NETWORK:
        return Said(f"{text}, on {kind}, which hosts can share")
    if kind in MEMORY:
        return Said(f"{text}, but lies in the memory of this host ({kind}): take a folder that the hosts of "
                    f"{cluster} share", "FAILED")  # fmt: skip
    local = f", on {kind}: a disk of this host, unless others mount it" if kind in LOCAL else f", on {kind}"
    return Said(f"{text}{local}; whether all hosts see it is known when the job starts", "warning")


def file_system(path: Path) -> str:
    """The kind of file system that a path lies on; ``unknown`` where the system does not say."""
    found, best = "unknown", -1
    resolved = path.resolve()
    for line in MOUNTS.read_text(errors="replace").splitlines() if MOUNTS.is_file() else ():
        _, where, kind, *_ = line.split(" ")
        mount = Path(where.encode().decode("unicode_escape"))
        if (resolved == mount or mount in resolved.parents) and len(mount.parts) >= best:
            found, best = kind, len(mount.parts)
    return found


def room(case: Case) -> Said:
    """There is room for the checkpoints that the rules keep, and for one more while it is written."""
    kept, each = most_kept(case.run.checkpoint, case.run.train.steps) + 1, state_bytes(case)
    there = Path(case.directory) / CHECKPOINTS
    steps = [path for path in there.glob("*") if path.name.isdigit()]
    needed = each * max(0, kept - len(steps))
    free = free_bytes(Path(case.directory))
    refuse(needed > free, "checkpoint", f"{in_bytes(free)} free in {case.directory}",
           f"{in_bytes(needed)}: {kept:,} checkpoints of {in_bytes(each)}, of which {len(steps)} are there",
           "a larger disk, or fewer: checkpoint.keep_last, checkpoint.keep_every, checkpoint.every")  # fmt: skip
    return Said(f"{in_bytes(needed)} for {kept:,} checkpoints of {in_bytes(each)}; {in_bytes(free)} are free")


def state_bytes(case: Case) -> int:
    """Of one checkpoint: the state of training, all devices together."""
    state = jax.tree.leaves(case.setup.abstract_state(case.layout))
    return sum(math.prod(array.shape) * np.dtype(array.dtype).itemsize for array in state)


def most_kept(config: CheckpointConfig, steps: int) -> int:
    """How many checkpoints the keep-rules allow at most on disk, in a run of ``steps`` steps."""
    saved = sum(config.every.due(step, steps) for step in range(1, steps + 1)) + (not config.every.end)
    for_good = steps // config.keep_every if config.keep_every else 0
    return min(saved, (config.keep_last or saved) + for_good)


def free_bytes(path: Path) -> int:
    """Free bytes of the disk that a path lies on, or will."""
    there = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
    return shutil.disk_usage(there).free


def checkpoint(case: Case) -> Said:
    """The latest checkpoint has the arrays of this run, and its text and order."""
    if (found := latest(case)) is None:
        return Said("none yet: the run starts from the beginning")
    metadata, arrays = found
    saved = {path: {"shape": list(array.shape)} for path, array in arrays.items()}
    step = int(metadata["step"])
    state = case.setup.abstract_state(case.layout)
    compare(f"checkpoint of step {step} in {case.directory}", saved, flatten(state), partial=False)
    changes = resume.changes_since(metadata["config"], case.run)
    refuse_changes(Path(case.directory), {name: pair for name, pair in changes.items() if not name.endswith(".code")})
    if case.data is not None:
        resume.check(case.run, case.data, metadata)
    changed = f"; changed since: {', '.join(changes)}" if changes else ""
    text = "" if case.data is not None else "; whether its text is this one is known once that is prepared"
    return Said(f"step {step:,} has the arrays of this run{changed}{text}")


def latest(case: Case) -> tuple[Mapping[str, Any], dict[str, Any]] | None:
    """(metadata, arrays) of the latest checkpoint; None where there is none."""
    folder = Path(case.directory) / CHECKPOINTS
    if not any(path.name.isdigit() for path in folder.glob("*")):
        return None
    with Checkpoints(folder, read_only=True) as checkpoints:
        metadata = checkpoints.metadata()
        return metadata, checkpoints.arrays(metadata["step"])


def packages(case: Case) -> Said:
    """The versions are those of the checkpoint, or it is said what that means."""
    now = versions()
    if (found := latest(case)) is None:
        return Said(", ".join(f"{name} {version}" for name, version in now.items()))
    before = found[0].get("versions", {})
    other = {name: (before.get(name, "none"), now[name]) for name in now if before.get(name) != now[name]}
    if not other:
        return Said("as in the checkpoint")
    shown = ", ".join(f"{name} {old} -> {new}" for name, (old, new) in other.items())
    bits = "it resumes from the same bits, and goes on with others: what compiles the step is another"
    same = "the compiled step is the same, so the bits can be kept"
    return Said(f"{shown}: {bits if set(other) & set(DECIDE_BITS) else same}", "warning")
