"""What a compiled program sends between devices, read from XLA's text of it: kind, mesh axes, loop depth, bytes.

For tests that a reduction is where it belongs. Needs no device: the text is
``compiled.as_text()`` of a program compiled for any topology.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

KINDS = ("all-reduce", "reduce-scatter", "all-gather", "all-to-all", "collective-permute", "ragged-all-to-all",
         "collective-broadcast")  # fmt: skip

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_OPERATION = re.compile(r"(?<=[\s)}\]])([a-z][\w\-]*)\(")
_CALLED = re.compile(r"(body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_ARRAY = re.compile(r"\b(pred|bf16|[a-z]+\d+\w*)\[([\d,<=]*)\]")
_LISTED = re.compile(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})?\}")
_NAMED = re.compile(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}")
_CHAIN = re.compile(r"channel_id=(\d+),.*chain_id=")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One instruction of the program of one device.

    Attributes:
      kind: one of KINDS.
      axes: the mesh axes along which it sends, in the mesh's order.
      depth: loops around it; 0 is once a call.
      times: how often it runs in a call of the program: the product of the loops' trip counts, 1 for an unknown one.
      operands: (dtype as XLA writes it, shape) of each array that a device puts in.
    """

    kind: str
    axes: tuple[str, ...]
    depth: int
    times: int
    operands: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def bytes(self) -> int:
        """Of the operands of one run."""
        return sum(_bytes(dtype, shape) for dtype, shape in self.operands)

    @property
    def bytes_of_arrays(self) -> int:
        """As ``bytes``, without scalars: sums of losses, norms, counts."""
        return sum(_bytes(dtype, shape) for dtype, shape in self.operands if math.prod(shape) > 1)

    @property
    def dtypes(self) -> frozenset[str]:
        """Of the operands that are no scalars."""
        return frozenset(dtype for dtype, shape in self.operands if math.prod(shape) > 1)


@dataclasses.dataclass(frozen=True)
class _Instruction:
    operation: str
    result: str  # the text of its type
    rest: str  # from its first argument on


def collectives(text: str, mesh: Mapping[str, int]) -> list[Collective]:
    """The collectives of a compiled program, in the order of its text.

    Args:
      text: of ``compiled.as_text()``.
      mesh: axis name to size, in the order of the mesh that it was compiled for: ``placement.mesh.shape``.

    Raises:
      ValueError: the text holds no entry computation, or groups of devices that the mesh does not have.
    """
    computations, entry = _computations(text)
    loops = _loops(computations, entry)
    found, chains = [], set()
    for name, instructions in computations.items():
        for instruction in instructions.values() if name in loops else ():
            if chain := _CHAIN.search(instruction.rest):  # sent a piece at a time, between several fused computations
                if chain[1] in chains:
                    continue
                chains.add(chain[1])
            kind = instruction.operation.removesuffix("-start")
            if kind == "all-reduce" and name.startswith("all-reduce-scatter"):  # how libtpu writes the fused form
                kind = "reduce-scatter"
            axes = _axes(_groups(instruction.rest, math.prod(mesh.values())), mesh) if kind in KINDS else ()
            if axes:  # along an axis of one device nothing is sent
                found.append(Collective(kind, axes, *loops[name], tuple(_operands(instruction, instructions))))
    return found


def reductions(found: Iterable[Collective], axis: str) -> list[Collective]:
    """Those that sum arrays over a mesh axis, alone or with others; sums of scalars alone are left out."""
    kinds = ("all-reduce", "reduce-scatter")
    return [c for c in found if c.kind in kinds and axis in c.axes and c.bytes_of_arrays]


def table(found: Iterable[Collective]) -> dict[tuple[str, tuple[str, ...], int, tuple[str, ...]], tuple[int, int]]:
    """(kind, axes, depth, dtypes) to (instructions, bytes of the operands in a call of the program)."""
    totals = {}
    for one in found:
        key = (one.kind, one.axes, one.depth, tuple(sorted(one.dtypes)))
        count, size = totals.get(key, (0, 0))
        totals[key] = (count + 1, size + one.times * one.bytes)
    return dict(sorted(totals.items()))


def _computations(text: str) -> tuple[dict[str, dict[str, _Instruction]], str]:
    """({computation: {name: instruction}}, the name of the entry)."""
    found: dict[str, dict[str, _Instruction]] = {}
    entry, current = "", dict[str, _Instruction]()
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current = found.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif (matched := _INSTRUCTION.match(line)) and (operation := _OPERATION.search(matched[2])):
            result, rest = matched[2][: operation.start()], matched[2][operation.end() :]
            current[matched[1]] = _Instruction(operation[1], result, rest)
    if not entry:
        raise ValueError("no ENTRY computation: this is not the text of a compiled program")
    return found, entry


def _loops(computations: dict[str, dict[str, _Instruction]], entry: str) -> dict[str, tuple[int, int]]:
    """(depth, times) of every computation that is reached; the largest where it is called more than once."""
    loops = {entry: (0, 1)}
    waiting = [entry]
    while waiting:
        name = waiting.pop()
        depth, times = loops[name]
        for instruction in computations[name].values():
            trips = _TRIPS.search(instruction.rest)
            for how, called in _calls(instruction.rest):
                n = int(trips[1]) if trips and how == "body" else 1
                reached = (depth + (instruction.operation == "while"), times * n)
                if called in computations and reached > loops.get(called, (-1, 0)):
                    loops[called] = reached
                    waiting.append(called)
    return loops


def _calls(rest: str) -> Iterator[tuple[str, str]]:
    yield from _CALLED.findall(rest)
    for branches in _BRANCHES.findall(rest):
        yield from (("branch", name.strip().lstrip("%")) for name in branches.split(","))


def _operands(instruction: _Instruction, beside: dict[str, _Instruction]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The arrays put in, from where they were made: newer texts do not repeat their types."""
    depths = itertools.accumulate(({"(": 1, ")": -1}.get(c, 0) for c in instruction.rest), initial=1)
    arguments = instruction.rest[: list(depths).index(0) - 1]
    names = re.findall(r"%?([\w.\-]+)", re.sub(r"/\*.*?\*/", "", arguments))
    typed = list(_arrays(arguments))
    yield from typed or (array for name in names for array in _arrays(beside[name].result))


def _arrays(text: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    for dtype, sizes in _ARRAY.findall(re.sub(r"\{[^{}]*\}", "", text)):
        yield dtype, tuple(int(size.removeprefix("<=")) for size in sizes.split(",") if size)


def _groups(rest: str, devices: int) -> list[list[int]]:
    """The numbers of the devices that send to each other; all of them where the text lists none."""
    if named := _NAMED.search(rest):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", named[1])}
        along = re.findall(r"'([^']+)'", named[2])
        apart = [i for i, name in enumerate(sizes) if name not in along]
        numbers = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
        order = (*apart, *(i for i in range(len(sizes)) if i not in apart))
        return numbers.transpose(order).reshape(math.prod(numbers.shape[i] for i in apart), -1).tolist()
    if iota := _IOTA.search(rest):
        shape, source, order = ([int(n) for n in part.split(",")] if part else None for part in iota.groups())
        numbers: Any = np.arange(math.prod(source or ())).reshape(source)
        return (numbers.transpose(order) if order else numbers).reshape(shape).tolist()
    listed = _LISTED.search(rest)
    if listed and listed[1]:
        return [[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", listed[1])]
    return [list(range(devices))]


def _axes(groups: list[list[int]], mesh: Mapping[str, int]) -> tuple[str, ...]:
    if max(map(max, groups)) >= math.prod(mesh.values()):
        raise ValueError(f"devices {groups} of a mesh of {math.prod(mesh.values())}: {dict(mesh)}")
    along = set()
    for group in groups:
        places = np.array(np.unravel_index(group, tuple(mesh.values())))
        along |= {name for name, place in zip(mesh, places, strict=True) if len(set(place.tolist())) > 1}
    return tuple(name for name in mesh if name in along)


def _bytes(dtype: str, shape: tuple[int, ...]) -> int:
    bits = 8 if dtype == "pred" else int(re.findall(r"\d+", dtype)[0])
    return -(-bits * math.prod(shape) // 8)
