"""TPU slices: what each chip is called, and how a slice's chips lie on hosts. Standard library only, Python 3.8."""

from __future__ import annotations

import math
import re
from typing import NamedTuple


class Chip(NamedTuple):
    """One kind of TPU, as Google Cloud rents it.

    Attributes:
      gke: value of the node label cloud.google.com/gke-tpu-accelerator.
      type: accelerator type of a TPU VM, before the number.
      numbered: what that number counts for each chip: 2 where it counts cores.
      runtime: software version of a TPU VM.
      dimensions: how many numbers a topology has.
      alone: chips that the host of a slice of one host may have.
    """

    gke: str
    type: str
    numbered: int
    runtime: str
    dimensions: int
    alone: tuple[int, ...]


CHIPS = {
    "v5e": Chip("tpu-v5-lite-podslice", "v5litepod", 1, "v2-alpha-tpuv5-lite", 2, (1, 4, 8)),
    "v5p": Chip("tpu-v5p-slice", "v5p", 2, "v2-alpha-tpuv5", 3, (4,)),
    "v6e": Chip("tpu-v6e-slice", "v6e", 1, "v2-alpha-tpuv6e", 2, (1, 4, 8)),
}
TOGETHER = 4  # chips of each host of a slice of several


class Slice(NamedTuple):
    """A slice such as v5e:4x4: its kind of chip, its sides, its hosts and the chips of each."""

    kind: str
    topology: str
    hosts: int
    chips: int  # of each host

    @property
    def accelerator_type(self) -> str:
        """Its name as a TPU VM, such as v5litepod-16."""
        chip = CHIPS[self.kind]
        return f"{chip.type}-{self.hosts * self.chips * chip.numbered}"


def slice_of(topology: str, per_host: int = 0) -> Slice:
    """The slice of a topology such as v5e:4x4.

    Args:
      topology: kind of chip, colon, sides.
      per_host: chips of each host; 0: 4, or all of a slice of fewer.

    Raises:
      ValueError: no such chip, no such topology, or more chips a host than hosts have.
    """
    kind, _, sides = topology.partition(":")
    if kind not in CHIPS:
        raise ValueError(f"{topology!r}: {kind!r} is none of {', '.join(CHIPS)}; such as v5e:4x4 or v5p:2x2x4")
    chip, numbers = CHIPS[kind], sides.split("x")
    if len(numbers) != chip.dimensions or not all(re.fullmatch(r"[1-9]\d*", number) for number in numbers):
        example = "x".join(["4"] * chip.dimensions)
        raise ValueError(f"{topology!r}: a topology of {kind} has {chip.dimensions} numbers, such as {kind}:{example}")
    chips = math.prod(map(int, numbers))
    fitting = [n for n in chip.alone if n == chips] + [TOGETHER] * (chips % TOGETHER == 0 and chips > TOGETHER)
    if not fitting:
        raise ValueError(f"{topology!r}: {chips} chips do not fill hosts of {TOGETHER}")
    each = per_host or (fitting[-1] if TOGETHER in fitting else fitting[0])
    if each not in fitting:
        allowed = " or ".join(map(str, sorted(set(fitting))))
        raise ValueError(f"{topology!r}: its hosts have {allowed} chips each, not {each}")
    return Slice(kind, sides, chips // each, each)
