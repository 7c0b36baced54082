"""Every mesh of every topology that libtpu names, in a process of its own: prints as JSON, by topology and number of
slices, how many meshes there are and what was wrong."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
    import tpu_schedule

    tpu_schedule.require_libtpu()

from jax.experimental import topologies

from t5x_like.core.config import override
from t5x_like.core.errors import UserError
from t5x_like.sharding.config import MeshConfig
from t5x_like.sharding.device_grid import device_grid, slices_of

TOPOLOGIES = (
    "v2:2x2 v3:2x2 v4:2x2x1 v4:2x2x4 v4:4x4x4 v4:4x4x8 v4:4x4x12 v5e:1x1 v5e:2x2 v5e:2x4 v5e:4x4 v5e:4x8 v5e:8x8 "
    "v5e:8x16 v5e:16x16 v5p:2x2x1 v5p:2x2x2 v5p:2x2x4 v5p:2x4x4 v5p:4x4x4 v5p:4x4x8 v5p:4x4x12 v5p:4x8x8 v6e:1x1 "
    "v6e:2x2 v6e:2x4 v6e:4x4 v6e:8x8 v6e:8x16 v6e:16x16 tpu7x:2x2x1 tpu7x:2x2x4 tpu7x:2x4x4 tpu7x:4x4x4 tpu7x:4x4x8"
).split()


def meshes(devices: int) -> list[tuple[int, int, int]]:
    """(data, fsdp, tensor) of every mesh that divides."""
    divisors = [n for n in range(1, devices + 1) if devices % n == 0]
    return [(d, f, devices // (d * f)) for d in divisors for f in divisors if devices % (d * f) == 0]


def wrong(sizes: tuple[int, int, int], devices: list) -> str:
    """What is wrong with the grid of a mesh; empty if nothing is."""
    slices = len(slices_of(devices))
    try:
        grid = device_grid(MeshConfig(*sizes), devices)
    except UserError as refused:
        try_instead = override(MeshConfig(), refused.suggestion.removeprefix("try: ").replace("mesh.", "").split())
        works = device_grid(try_instead, devices).size == len(devices)
        leaves = sizes[0] * sizes[1] % slices != 0
        return "" if works and leaves and refused.where == "mesh.tensor" else f"refused: {refused}"
    if grid.shape != sizes or len({id(device) for device in grid.flat}) != len(devices):
        return "not every device once"
    number = [{getattr(d, "slice_index", 0) for d in row} for row in grid.reshape(-1, sizes[2])]
    if any(len(each) > 1 for each in number):
        return "a tensor axis leaves its slice"
    along_data = [{getattr(d, "slice_index", 0) for d in part.flat} for part in grid]
    if any(len(each) > slices // math.gcd(sizes[0], slices) for each in along_data):
        return "more of fsdp than needed leaves its slice"
    held: dict = {}  # as the feed needs it: the rows of processes are the same or have nothing in common
    for row, group in enumerate(grid.reshape(-1, sizes[2])):
        for device in group:
            held.setdefault((getattr(device, "slice_index", 0), device.process_index), set()).add(row)
    distinct = {tuple(sorted(rows)) for rows in held.values()}
    if sum(map(len, distinct)) != sizes[0] * sizes[1] or len({*map(len, distinct)}) != 1:
        return "rows of processes overlap"
    return ""


def main() -> None:
    found = {}
    for name in TOPOLOGIES:
        for slices in (1, 2, 3):
            described = topologies.get_topology_desc(platform="tpu", topology_name=name, num_slices=slices)
            devices = list(described.devices)
            if len(devices) <= 512:
                every = meshes(len(devices))
                bad = {"x".join(map(str, sizes)): said for sizes in every if (said := wrong(sizes, devices))}
                found[f"{name} {slices}"] = [len(every), bad]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
