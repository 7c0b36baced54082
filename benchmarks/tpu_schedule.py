"""Compiles for TPUs on a machine without one, and reads what the compiler's own schedule costs.

Not a benchmark itself: a library of kernels_static.py and kernels_aot.py. libtpu compiles for any topology on a CPU
machine and can dump the final schedule of each kernel. A bundle is what the core issues in a cycle, so the number of
bundles of a stretch of code without loops is its cost, waits for memory left out, and the share of the matrix unit's
slots that are filled is how close that comes to the best possible. Import it before jax: libtpu reads its environment
once. Must not know any kernel.
"""

from __future__ import annotations

import atexit
import dataclasses
import glob
import importlib.util
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",  # there is no metadata server to ask
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # or a second process aborts on libtpu's lock file
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # any: which chip is compiled for is said by the topology
    "TPU_WORKER_HOSTNAMES": "localhost",
}
for _name, _value in ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)
# Where install_libtpu.py puts it: out of the way of everything that does not compile for TPUs.
if (LIBTPU := Path(sys.prefix) / "libtpu").is_dir():
    sys.path.append(str(LIBTPU))

TOPOLOGIES = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}
# A bundle's slots in the order of the dump: matrix unit, cross-lane unit, vector unit, results taken from units,
# transcendentals, loads (of these: refills of what was spilled), stores (of these: spills), scalar unit.
SLOTS = ("mxu", "xlu", "valu", "vpop", "eup", "vload", "fill", "vstore", "spill", "salu")
NOT_INSTALLED = 3  # exit code


def missing() -> str:
    """Why nothing can be compiled here; empty if it can."""
    if importlib.util.find_spec("libtpu") is None:
        return f"libtpu is not installed; try: python benchmarks/install_libtpu.py {LIBTPU}"
    return ""


def require_libtpu() -> None:
    """Ends the process where libtpu is not installed."""
    if reason := missing():
        print(f"cannot compile for TPUs: {reason}", file=sys.stderr)
        raise SystemExit(NOT_INSTALLED)


def versions() -> str:
    return f"jax {version('jax')}, libtpu {version('libtpu')}"


def sharding(chip: str) -> Any:
    """Of arrays on one chip of a generation that is not there."""
    import jax
    from jax.experimental import topologies

    if chip not in TOPOLOGIES:
        raise SystemExit(f"chip: got {chip!r}; allowed: {', '.join(TOPOLOGIES)}")
    device = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[chip]).devices[0]
    return jax.sharding.SingleDeviceSharding(device)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled function.

    Attributes:
      temporary_mb: memory beside arguments and results, in units of 2**20 bytes.
      seconds: that tracing and compiling took.
      kernels: by name, without what derivatives and XLA put around it; empty where schedules are not dumped.
    """

    temporary_mb: float
    seconds: float
    kernels: dict[str, Kernel]


def compile_for(chip: str, function: Callable[..., Any], arguments: Any) -> Compiled:
    """Compiles ``function(*arguments)``, given shapes and dtypes, for one chip."""
    import jax

    place = sharding(chip)
    arguments = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), arguments)
    if _folder:
        for path in glob.glob(f"{_folder}/*"):
            os.remove(path)
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    assert memory is not None  # libtpu always tells
    return Compiled(memory.temp_size_in_bytes / 2**20, seconds, _read(_folder) if _folder else {})


_folder = ""


def dump_schedules() -> None:
    """Makes libtpu write schedules; to be called before anything is compiled."""
    global _folder
    if not _folder:
        _folder = tempfile.mkdtemp(prefix="tpu_schedule_")
        atexit.register(shutil.rmtree, _folder, ignore_errors=True)
        # only the last passes: those before take more than half of the time and hundreds of megabytes
        flags = f"--xla_jf_dump_to={_folder} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=final.*"
        os.environ["LIBTPU_INIT_ARGS"] = f"{flags} {os.environ.get('LIBTPU_INIT_ARGS', '')}".strip()


@dataclasses.dataclass(frozen=True)
class Branch:
    """A stretch of code that holds matrix products.

    Attributes:
      bundles: how many.
      filled: for each of ``SLOTS``, the share of slots in use.
      matrix_bundles: how many there would be if the matrix units never had to wait.
    """

    bundles: int
    filled: dict[str, float]
    matrix_bundles: float


@dataclasses.dataclass(frozen=True)
class Kernel:
    """The schedule of a kernel.

    Attributes:
      used: [bundles, slots], how many of each kind are in use.
      capacity: [slots], of a bundle.
      regions: (first bundle, last bundle) of each part of the code; they lie in each other.
    """

    used: np.ndarray
    capacity: np.ndarray
    regions: list[tuple[int, int]]

    def branches(self) -> list[Branch]:
        """The innermost regions that hold matrix products, in the order of the code: of a kernel that does different
        things to different blocks, one for each.

        Raises:
          ValueError: some of the products lie outside of them, so that their sizes are not what blocks cost.
        """
        before = np.concatenate([[0], np.cumsum(self.used[:, 0])])
        total = int(before[-1])
        work = {span: int(before[span[1] + 1] - before[span[0]]) for span in self.regions}
        heavy = [span for span, amount in work.items() if amount > 0.03 * total]
        inner = [a for a in heavy if not any(b != a and b[0] >= a[0] and b[1] <= a[1] for b in heavy)]
        if sum(work[span] for span in inner) < 0.95 * total:
            held = [work[span] for span in inner]
            raise ValueError(f"{total} matrix operations, of which the innermost regions hold {held}")
        return [self._branch(first, last) for first, last in sorted(inner)]

    def _branch(self, first: int, last: int) -> Branch:
        used = self.used[first : last + 1]
        total = used.sum(0)
        share = total / (len(used) * self.capacity)
        return Branch(len(used), dict(zip(SLOTS, share.tolist(), strict=True)), float(total[0] / self.capacity[0]))


def _read(folder: str) -> dict[str, Kernel]:
    """The kernels of what was compiled last that hold matrix products."""
    found = {}
    for path in sorted(glob.glob(f"{folder}/*-final_bundles.txt")):
        matched = re.match(r"\d+-(.*?)-\d+-final_bundles.txt", Path(path).name)
        if matched is None or "schedule-analysis" in path:
            continue
        name = matched[1]
        tables = glob.glob(f"{folder}/*-{glob.escape(name)}-*-final_hlo-static-per-bundle-utilization.txt")
        if not tables:
            continue
        heading, rows = Path(tables[0]).read_text().split("== UTILIZATION:\n")
        used = np.array([row.split() for row in rows.splitlines() if row.strip()], int)
        if used.size and used[:, 0].any():
            capacity = np.array(heading.splitlines()[2].split(), int)
            own = re.sub(r"^(transpose_|jvp_)+|_*(\.\d+)?$", "", name)
            found[own] = Kernel(used, capacity, _regions(Path(path).read_text()))
    return found


def _regions(text: str) -> list[tuple[int, int]]:
    opened: dict[str, int] = {}
    spans, bundle = set(), -1
    for line in text.splitlines():
        if at := re.match(r"\s*(0x[0-9a-f]+|0)\s", line):
            bundle = int(at[1], 16)
        for kind, region in re.findall(r"(Start|End) (?:empty )?region (\d+)", line):
            if kind == "Start":
                opened[region] = bundle
            elif region in opened:
                spans.add((opened[region], bundle))
    return sorted(spans)
