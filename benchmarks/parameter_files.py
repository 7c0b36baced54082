"""Parameters of the first contender of ``step.py`` in a file, for the others to start from."""

from __future__ import annotations

from typing import Any

import numpy as np


def write(path: str, parameters: dict[str, Any]) -> None:
    """One .npz; names of nested dicts are joined by "/"."""
    layers = {f"layers/{name}": array for name, array in parameters.get("layers", {}).items()}
    np.savez(path, **{name: array for name, array in parameters.items() if name != "layers"}, **layers)


def read(path: str) -> dict[str, Any]:
    """What ``write`` was given."""
    with np.load(path, allow_pickle=False) as file:
        flat = {name: file[name] for name in file.files}
    layers = {name.removeprefix("layers/"): array for name, array in flat.items() if "/" in name}
    return {name: array for name, array in flat.items() if "/" not in name} | {"layers": layers}
