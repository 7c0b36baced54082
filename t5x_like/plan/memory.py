"""Bytes per device of a run's state between steps, from declarations alone. Needs no device."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from t5x_like.arrays.spec import ParamSpec
from t5x_like.arrays.trees import Tree, flatten
from t5x_like.sharding.rules import RULES, Rules, partition


def bytes_per_device(specs: Tree, mesh: Mapping[str, int], rules: Rules = RULES) -> int:
    """Bytes per device of arrays declared by ``specs``, on a mesh given by its sizes."""
    return sum(_local_bytes(path, spec, mesh, rules) for path, spec in flatten(specs).items())


def _local_bytes(path: str, spec: ParamSpec, mesh: Mapping[str, int], rules: Rules) -> int:
    parts = partition(spec.axes, spec.shape, mesh, rules, path)
    names = [name for part in parts for name in ((part,) if isinstance(part, str) else part or ())]
    return spec.size * np.dtype(spec.dtype).itemsize // math.prod(mesh[name] for name in names)
