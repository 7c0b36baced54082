"""What a check says; and of a folder, whether other hosts see it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

Word = Literal["ok", "warning", "FAILED", "unknown"]
MOUNTS = Path("/proc/self/mounts")
NETWORK = ("nfs", "nfs4", "lustre", "gpfs", "beegfs", "cephfs", "ceph", "glusterfs", "cifs", "smb3", "9p", "orangefs",
           "afs", "wekafs", "fuse.gcsfuse", "fuse.s3fs", "fuse.mount-s3", "fuse.juicefs", "fuse.sshfs",
           "virtiofs")  # fmt: skip
MEMORY = ("tmpfs", "ramfs")
LOCAL = ("ext4", "ext3", "xfs", "btrfs", "zfs", "overlay", "f2fs")


@dataclasses.dataclass(frozen=True)
class Said:
    """What a check found.

    Attributes:
      text: what there is, or what is wrong, in one line.
      state: ``unknown`` where it cannot be known here.
    """

    text: str
    state: Word = "ok"


def shared(directory: Path, cluster: str) -> Said:
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
