"""A program compiled for devices that need not be here: the TPUs of a topology, by libtpu on any machine.

    devices = topology_devices("v5e:4x4")
    program = compile_ahead(step, arguments, devices[0])

A whole compilation of a large step takes minutes, nearly all of it for machine code. How much memory a program takes is
known before that: a compiler that is allowed less says within seconds what it would need (measured 2026-11-28, 7B on 16
v5e: 10.8 GiB in 6 s of CPU; compiled whole, 11.3 GiB in 71 s). Must not know what the program computes.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from t5x_like.core.errors import UserError, refuse
from t5x_like.plan.chips import memory_bytes

CHIPS = ("v4", "v5e", "v5p", "v6e", "tpu7x")
_ALLOWED = f"CHIP:SIZES, where CHIP is one of {', '.join(CHIPS)}, and xN behind it for N slices"
# What libtpu needs to know where there is no TPU, read once.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # there is no metadata server to ask
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # or a second process aborts on libtpu's lock file
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # any: which chip is compiled for is said by the topology
    "TPU_WORKER_HOSTNAMES": "localhost",
}
_LIMIT = "xla_tpu_max_hbm_size_mib"  # a compiler option of libtpu; it can lower the chip's own limit only
_NEEDED = re.compile(r"(?:required for HLO temporaries \(|Used |program )([\d.]+)([KMGT]?)")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_CLOSE = 0.97  # the second limit as a share of what is needed under the first, when nothing fits


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program, or what its compiler said of it before machine code.

    Attributes:
      arguments: bytes of the arguments on each device.
      temporaries: bytes of all else at the fullest moment; without the machine code unless ``compiled``.
      available: bytes that a device has; None if that is not known.
      compiled: the whole program; None where only its memory was asked for.
    """

    arguments: int
    temporaries: int
    available: int | None = None
    compiled: jax.stages.Compiled | None = None

    @property
    def total(self) -> int:
        return self.arguments + self.temporaries


def missing_compiler() -> str:
    """Why nothing can be compiled here for TPUs that are not here; empty if it can. Looks in the folder of
    benchmarks/install_libtpu.py too."""
    beside = Path(sys.prefix) / "libtpu"
    if importlib.util.find_spec("libtpu") is None and beside.is_dir() and str(beside) not in sys.path:
        sys.path.append(str(beside))
    return "" if importlib.util.find_spec("libtpu") else "libtpu, the TPU compiler, is not installed"


def topology_size(name: str) -> int:
    """How many devices a TPU topology has. Raises UserError for what is none by its name."""
    chip, (sizes, _, slices) = _parts(name)
    return math.prod(map(int, sizes.split("x"))) * int(slices or 1) * (2 if chip == "tpu7x" else 1)


def _parts(name: str) -> tuple[str, tuple[str, str, str]]:
    chip, _, rest = name.partition(":")
    known = chip in CHIPS and re.fullmatch(r"\d+(x\d+){1,2}( x[1-9]\d*)?", rest)
    refuse(not known, "--topology", f"got {name!r}", _ALLOWED, "--topology v5e:4x4")
    return chip, rest.partition(" x")


def topology_devices(name: str) -> Sequence[Any]:
    """The devices of a TPU topology such as ``v5e:4x4`` or, of two slices, ``v5e:4x4 x2``.

    Raises:
      UserError: libtpu is not installed, or knows no such topology.
    """
    chip, (sizes, _, slices) = _parts(name)
    refuse(bool(missing_compiler()), "--topology", missing_compiler(), "", "python benchmarks/install_libtpu.py FOLDER")
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    more = {"num_slices": int(slices)} if slices else {}
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=f"{chip}:{sizes}", **more).devices
    except Exception as error:  # of libtpu: an XLA error, or a ValueError of jax
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError("--topology", f"{name}: {reason}", _ALLOWED, "--topology v5e:4x4") from None


def compile_ahead(step: Any, arguments: Sequence[Any], device: Any, whole: bool = False) -> Program:
    """The memory that a program takes on each device, by the compiler of that device; of TPUs seconds for any model.

    Args:
      step: a function made by ``jax.jit``.
      arguments: its arguments, trees of jax.ShapeDtypeStruct with shardings.
      device: one of the devices.
      whole: whether to compile it whole for TPUs too, for its text and code; minutes for a large one.

    Raises:
      UserError: with ``whole``, it does not fit.
      jax.errors.JaxRuntimeError: the compiler fails for another reason than memory.
    """
    lowered = step.trace(*arguments).lower(lowering_platforms=("tpu",) if device.platform == "tpu" else None)
    given = sum(map(_bytes_on_one_device, jax.tree.leaves(arguments)))
    available = memory_bytes(device)
    if device.platform != "tpu" or whole:
        return _whole(lowered, given, available)
    needed = _needed(lowered, 1)
    if isinstance(needed, int):  # under a limit near to it the compiler makes less again, as it would on the chip
        closer = _needed(lowered, max(1, int(_CLOSE * needed / 2**20)))
        needed = closer if not isinstance(closer, int) else max(needed, closer)
    if not isinstance(needed, int):  # so small that it fits even so
        return _of_compiled(needed, given, available)
    return Program(given, max(0, needed - given), available)


def _needed(lowered: jax.stages.Lowered, limit: int) -> int | jax.stages.Compiled:
    """Bytes that a program needs where a TPU has ``limit`` MiB only; the program itself where that is enough."""
    try:
        return lowered.compile(compiler_options={_LIMIT: str(limit)})
    except jax.errors.JaxRuntimeError as error:
        if (needed := _bytes_in(str(error))) is None:
            raise
        return needed


def _bytes_in(message: str) -> int | None:
    """What a program needs by the compiler's words; None where they are not of memory."""
    if "RESOURCE_EXHAUSTED" not in message or not (found := _NEEDED.search(message)):
        return None
    return int(float(found[1]) * _UNITS[found[2]])


def _whole(lowered: jax.stages.Lowered, arguments: int, available: int | None) -> Program:
    try:
        return _of_compiled(lowered.compile(), arguments, available)
    except jax.errors.JaxRuntimeError as error:
        needed = _bytes_in(str(error))
        if needed is None:
            raise
        return Program(arguments, max(0, needed - arguments), available)


def _of_compiled(compiled: jax.stages.Compiled, arguments: int, available: int | None) -> Program:
    memory: Any = compiled.memory_analysis()
    peak = getattr(memory, "peak_memory_in_bytes", 0) or memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return Program(arguments, max(0, peak - arguments), available, compiled)


def _bytes_on_one_device(array: jax.ShapeDtypeStruct) -> int:
    shape = array.sharding.shard_shape(array.shape) if array.sharding else array.shape
    return math.prod(shape) * array.dtype.itemsize
