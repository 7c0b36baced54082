"""The printed table of parameters: name, shape, logical axes, placement, bytes. Needs no devices."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from t5x_like.arrays.trees import Tree, flatten
from t5x_like.core.text import table
from t5x_like.sharding.rules import RULES, Rules, partition, parts


def parameter_table(specs: Tree, mesh: Mapping[str, int], rules: Rules = RULES) -> str:
    """One line per parameter and a total, for a mesh given by its sizes."""
    rows = [("parameter", "shape", "axes", "placement", "bytes", "a device")]
    total = local_total = 0
    for path, spec in flatten(specs).items():
        placement = partition(spec.axes, spec.shape, mesh, rules, path)
        ways = parts(placement, mesh)
        size = spec.size * np.dtype(spec.dtype).itemsize
        total, local_total = total + size, local_total + size // ways
        split = "whole" if ways == 1 else " x ".join("-" if p is None else str(p) for p in placement)
        axes = " ".join(a or "-" for a in spec.axes)
        rows.append((path, "x".join(map(str, spec.shape)), axes, split, f"{size:,}", f"{size // ways:,}"))
    rows.append(("total", "", "", "", f"{total:,}", f"{local_total:,}"))
    return "\n".join(table(rows, left=4))
