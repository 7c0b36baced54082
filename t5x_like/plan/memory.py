"""Bytes per device of a run's state between steps, from declarations alone. Needs no device."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from t5x_like.arrays.trees import Tree, flatten
from t5x_like.sharding.rules import RULES, Rules, partition, parts


def bytes_per_device(specs: Tree, mesh: Mapping[str, int], rules: Rules = RULES) -> int:
    """Bytes per device of arrays declared by ``specs``, on a mesh given by its sizes."""
    return sum(
        spec.size * np.dtype(spec.dtype).itemsize // parts(partition(spec.axes, spec.shape, mesh, rules, path), mesh)
        for path, spec in flatten(specs).items()
    )
