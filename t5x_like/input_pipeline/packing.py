"""Which examples share a row: first fit, planned from lengths alone before any text is read.

Knows lengths and capacities only. A plan is a function of the lengths, so every process makes the same one.
"""

from __future__ import annotations

import numpy as np

from t5x_like.core.errors import UserError


def plan(lengths: np.ndarray, capacity: tuple[int, ...], window: int = 2048) -> list[np.ndarray]:
    """Puts examples into bins so that no bin overflows on any side.

    Within each window of examples the longest are placed first, each in the first bin it fits. Windows keep the time
    linear: about 4 us an example.

    Args:
      lengths: (examples, sides) whole numbers.
      capacity: (sides,) tokens that a bin holds on each side.
      window: how many examples are planned together.

    Returns:
      the bins, each an int64 array of example numbers in ascending order; every example is in exactly one.

    Raises:
      UserError: an example that exceeds an empty bin.
    """
    lengths = np.asarray(lengths, np.int64).reshape(len(lengths), len(capacity))
    limits = np.asarray(capacity, np.int64)
    too_long = np.flatnonzero((lengths > limits).any(axis=1))
    if too_long.size:
        first = int(too_long[0])
        raise UserError(
            "data.packing", f"example {first} has {lengths[first].tolist()} tokens", f"at most {list(capacity)}"
        )
    bins: list[np.ndarray] = []
    for start in range(0, len(lengths), window):
        members_of_bins = _first_fit(lengths[start : start + window], limits)
        bins += [np.sort(np.asarray(members)) + start for members in members_of_bins]
    return bins


def _first_fit(lengths: np.ndarray, limits: np.ndarray) -> list[list[int]]:
    members: list[list[int]] = []
    room = np.empty((len(lengths), len(limits)), np.int64)
    first_open = 0  # bins before it have no room for the shortest example
    shortest = lengths.min(axis=0)
    for example in np.argsort(-(lengths / limits).max(axis=1), kind="stable"):
        length = lengths[example]
        fitting = np.flatnonzero((room[first_open : len(members)] >= length).all(axis=1))
        if fitting.size:
            place = first_open + int(fitting[0])
        else:
            place = len(members)
            members.append([])
            room[place] = limits
        members[place].append(int(example))
        room[place] -= length
        while first_open < len(members) and (room[first_open] < shortest).any():
            first_open += 1
    return members
