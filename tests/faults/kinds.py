"""The kinds of faults, each with its right end, stated before it is tried.

``goes_on``: the job ends with 0 by itself, through the launcher's restarts, bit-identical to one left alone.
``again``: the same command a second time does so: what was hit is the launcher.
``refused``: exit code 1 or 2 and one message that names the cause; nothing is damaged, and the same command once the
cause is gone ends bit-identical.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import tensorstore as ts
from faults.jobs import EVERY, STEPS, Job, beside, damageable


@dataclasses.dataclass(frozen=True)
class Fault:
    """One kind.

    Attributes:
      name: what happens.
      end: ``goes_on``, ``again`` or ``refused``.
      inject: function of a job and a random source: starts the job, and lets it happen; gives the time when it
        happened, or None where that means nothing.
      says: words of the message of ``refused``.
      mend: function of the job: takes the cause away.
      spoilt: number of the newest checkpoints that cannot be gone on from.
    """

    name: str
    end: str
    inject: Callable[[Job, random.Random], float | None]
    says: str = ""
    mend: Callable[[Job], None] = lambda job: None
    spoilt: int = 0


def hit(job: Job, pid: int, number: int) -> float:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
    return time.time()


def some_step(draw: random.Random) -> int:
    return draw.randrange(1, STEPS - 2)


def signalled(number: int, which: Callable[[Job, random.Random], int]) -> Callable[[Job, random.Random], float]:
    """A signal to a rank at a random moment: before the first step or after some."""

    def inject(job: Job, draw: random.Random) -> float:
        job.start()
        if draw.random() < 0.25:
            job.wait_until(lambda: len(job.working()) >= job.processes, "its processes")
            time.sleep(draw.uniform(0.0, 6.0))
            pids = sorted(job.working())
            return hit(job, draw.choice(pids), number) if pids else time.time()
        job.wait_for_steps(some_step(draw))
        return hit(job, which(job, draw), number)

    return inject


def worker(job: Job, draw: random.Random) -> int:
    return draw.choice([pid for rank, pid in job.ranks().items() if rank])


def first(job: Job, draw: random.Random) -> int:
    return job.ranks()[0]


def every_rank(job: Job, draw: random.Random) -> float:
    """SIGTERM, as from a cluster that takes its nodes back; half the time it says so twice."""
    job.start()
    job.wait_for_steps(some_step(draw))
    pids, happened = list(job.ranks().values()), 0.0
    for _ in range(draw.choice((1, 2))):
        for pid in pids:
            happened = hit(job, pid, signal.SIGTERM)
        time.sleep(draw.uniform(0.0, 0.5))
    return happened


def any_rank(job: Job, draw: random.Random) -> int:
    return draw.choice(list(job.ranks().values()))


def by_itself(do: str) -> Callable[[Job, random.Random], float]:
    def inject(job: Job, draw: random.Random) -> float:
        job.order(draw.randrange(job.processes), some_step(draw), do)
        job.start()
        job.wait_until(lambda: (job.folder / "fault.done").exists(), "the fault")
        return next((line["time"] for line in job.record() if "fault" in line), time.time())

    return inject


def clock_set(way: str) -> Callable[[Job, random.Random], None]:
    """On one rank."""

    def inject(job: Job, draw: random.Random) -> None:
        job.order(draw.randrange(job.processes), some_step(draw), f"clock an hour {way}")
        job.start()

    return inject


def killed_in_a_save(job: Job, draw: random.Random) -> float:
    job.start()
    saves = draw.randrange(1, STEPS // EVERY)
    folder = job.directory / "checkpoints"
    job.wait_until(lambda: any(p.name.startswith(f"{saves * EVERY}.") for p in folder.glob("*tmp*"))
                   or (folder / str(saves * EVERY)).exists(), "a save")  # fmt: skip
    time.sleep(draw.uniform(0.0, 0.05))
    return hit(job, any_rank(job, draw), signal.SIGKILL)


def launcher_killed(job: Job, draw: random.Random) -> float:
    job.start()
    job.wait_for_steps(some_step(draw))
    assert job.launcher is not None
    return hit(job, job.launcher.pid, signal.SIGKILL)


def killed_after(do: Callable[[Job, random.Random], None]) -> Callable[[Job, random.Random], float]:
    """Some time after two checkpoints or more something is done, and a rank is killed."""

    def inject(job: Job, draw: random.Random) -> float:
        job.start(pause=0.3)
        step = EVERY * draw.randrange(2, STEPS // EVERY)
        job.wait_until(lambda: any(line.get("committed") == step for line in job.record()), "a save")
        time.sleep(draw.uniform(0.0, 0.6))
        pid = any_rank(job, draw)
        do(job, draw)
        return hit(job, pid, signal.SIGKILL)

    return inject


def latest(damage: Callable[[Path, random.Random], None]) -> Callable[[Job, random.Random], None]:
    """Damages a file of the latest checkpoint; an older one is good."""
    return lambda job, draw: damage(draw.choice(damageable(job.directory)), draw)


def tear_beside(job: Job, draw: random.Random) -> None:
    truncate(draw.choice(beside(job.directory)), draw)


def truncate(path: Path, draw: random.Random) -> None:
    os.truncate(path, draw.randrange(path.stat().st_size))


def delete(path: Path, draw: random.Random) -> None:
    path.unlink()


def flip(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def flip_array(path: Path, draw: random.Random) -> None:
    """A bit of an array's data, as it is without any check. ``path`` is a file of the step."""
    step = next(parent for parent in path.parents if parent.name.isdigit())
    before = values(step)
    while True:
        of = draw.choice(sorted(step.glob("state/ocdbt.process_*/d")))
        file = max(of.iterdir(), key=lambda p: p.stat().st_size)
        whole = file.read_bytes()
        flip(file, draw)
        with contextlib.suppress(ValueError):  # a bit of the index: of those "a flipped bit anywhere" has its share
            if values(step) != before:
                return
        file.write_bytes(whole)  # a bit that nobody reads


def values(step: Path) -> dict[bytes, bytes]:
    """What is stored of the arrays of a checkpoint: key to bytes."""
    stored = ts.KvStore.open({"driver": "ocdbt", "base": f"file://{step}/state/"}).result()
    return {key: stored.read(key).result().value for key in stored.list().result()}


def damage_all(job: Job, draw: random.Random) -> None:
    folder = job.directory / "checkpoints"
    shutil.copytree(folder, job.folder / "kept")
    for step in (path for path in folder.iterdir() if path.name.isdigit()):
        flip_array(step / "x", draw)


def every_checkpoint_damaged(job: Job, draw: random.Random) -> None:
    killed_after(damage_all)(job, draw)


def whole_again(job: Job) -> None:
    folder = job.directory / "checkpoints"
    shutil.rmtree(folder)
    shutil.copytree(job.folder / "kept", folder)


def fail_a_read(job: Job, draw: random.Random) -> None:
    job.order(draw.randrange(job.processes), 0, "failed read")


def port_in_use(job: Job, draw: random.Random) -> None:
    job.order(0, 0, "port in use")
    job.start()


def second_trainer(job: Job, draw: random.Random) -> None:
    """While the job runs, the same command a second time: that one is refused, the first goes on."""
    job.start(pause=0.3)
    job.wait_for_steps(1)
    second = Job(job.folder / "second", job.processes, job.devices, job.directory)
    second.config = job.config
    second.start()
    code = second.wait()
    second.end()
    assert code == 2 and "another training is running in this folder: process " in second.said, second.said
    assert second.said.count("error: ") == 1 and "Traceback" not in second.said, second.said


def unshared(job: Job, draw: random.Random) -> None:
    job.start(UNSHARED="1")


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A file system of its own, which only root can have."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(2**16))


def filled_by_others(job: Job, draw: random.Random) -> None:
    job.start(pause=0.2)
    job.wait_for_steps(draw.randrange(1, STEPS - EVERY))
    fill(job.directory.parent / "others")


def others_removed(job: Job) -> None:
    (job.directory.parent / "others").unlink()


def kill_all_and_fill(job: Job, draw: random.Random) -> None:
    for pid in job.ranks().values():
        hit(job, pid, signal.SIGKILL)
    left = job.directory / "checkpoints" / f"{STEPS}.orbax-checkpoint-tmp-1"
    left.mkdir()
    fill(left / "part")


def filled_by_leftovers(job: Job, draw: random.Random) -> None:
    """Before the launcher's restart what killed saves leave behind has filled the disk."""
    killed_after(kill_all_and_fill)(job, draw)


def compiled_programs_damaged(job: Job, draw: random.Random) -> float:
    """A bit of each program that is kept between starts, and a kill: the next start would run them."""
    folder = job.folder / "compiled"
    job.fields = (*job.fields, f"train.compiled={folder}")
    job.start(pause=1.0, JAX_ENABLE_COMPILATION_CACHE="true")
    job.wait_until(lambda: any(folder.glob("*/jit_step*-cache.crc")), "a kept program")
    job.wait_for_steps(1)
    pid = any_rank(job, draw)
    for note in folder.glob("*/*.crc"):
        flip(note.with_suffix(""), draw)
    return hit(job, pid, signal.SIGKILL)


SMALL_DISK = ("disk full of others' files", "disk full of own leftovers")

KINDS = (
    Fault("SIGTERM to a rank", "goes_on", signalled(signal.SIGTERM, any_rank)),
    Fault("SIGKILL of a worker", "goes_on", signalled(signal.SIGKILL, worker)),
    Fault("SIGKILL of process 0", "goes_on", signalled(signal.SIGKILL, first)),
    Fault("SIGSTOP of a rank", "goes_on", signalled(signal.SIGSTOP, any_rank)),
    Fault("an exception on one rank", "goes_on", by_itself("exception")),
    Fault("a rank stuck in the data", "goes_on", by_itself("stuck")),
    Fault("a rank stuck in C", "goes_on", by_itself("stuck in C")),
    Fault("kill in a save", "goes_on", killed_in_a_save),
    Fault("port in use", "goes_on", port_in_use),
    Fault("launcher killed", "again", launcher_killed),
    Fault("a truncated file", "goes_on", killed_after(latest(truncate)), spoilt=1),
    Fault("a deleted file", "goes_on", killed_after(latest(delete)), spoilt=1),
    Fault("a flipped bit in array data", "goes_on", killed_after(latest(flip_array)), spoilt=1),
    Fault("a flipped bit anywhere", "goes_on", killed_after(latest(flip)), spoilt=1),
    Fault("one failed read", "goes_on", killed_after(fail_a_read)),
    Fault("disk full of own leftovers", "goes_on", filled_by_leftovers),
    Fault("disk full of others' files", "refused", filled_by_others, "a folder with room left", others_removed),
    Fault("a directory that is not shared", "refused", unshared, "is not the same folder"),
    Fault("a second trainer", "goes_on", second_trainer),
    Fault("every checkpoint damaged", "refused", every_checkpoint_damaged, "damaged", whole_again),
    Fault("flipped bits in compiled programs", "goes_on", compiled_programs_damaged),
    Fault("the clock set back an hour", "goes_on", clock_set("back")),
    Fault("SIGTERM to every rank", "goes_on", every_rank),
    Fault("a torn file beside the checkpoints", "goes_on", killed_after(tear_beside)),
)  # fmt: skip
