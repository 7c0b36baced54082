"""Which pieces of text share a row: first fit or best fit, planned from lengths alone before any text is read.

Pieces of one length are alike, so what is planned is how many of each length go together ("histogram packing", Krell et
al. 2021, Efficient sequence packing without cross-contamination): the cost does not grow with the number of pieces.
Knows lengths and capacities only; a plan is a function of them, so every process makes the same one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from t5x_like.core.errors import UserError

Fit = Literal["first_fit", "best_fit"]


@dataclass
class _Bins:
    """``count`` bins with the same content: (length, how often) pairs."""

    count: int
    content: list[tuple[int, int]]


def plan(
    lengths: np.ndarray, sizes: Callable[[int], tuple[int, ...]], capacity: tuple[int, ...], rule: Fit = "best_fit"
) -> tuple[np.ndarray, np.ndarray]:
    """Puts pieces into bins so that no bin overflows on any side; the longest are placed first.

    Args:
      lengths: (pieces,) whole numbers above 0.
      sizes: function from the length of a piece to its tokens on each side.
      capacity: tokens of a bin on each side.
      rule: the first bin made that has room, or the bin in which the least room is left.

    Returns:
      members: (pieces,) int64 piece numbers, bin after bin, ascending in each; every piece is in exactly one.
      starts: (bins + 1,) int64, bin b is ``members[starts[b] : starts[b + 1]]``.

    Raises:
      UserError: a piece that exceeds an empty bin.
    """
    lengths = np.asarray(lengths, np.int64)
    known, class_of = np.unique(lengths, return_inverse=True)
    counts = np.bincount(class_of, minlength=len(known))
    sizes_of = np.asarray([sizes(int(length)) for length in known], np.int64).reshape(len(known), len(capacity))
    limits = np.asarray(capacity, np.int64)
    for first in np.flatnonzero((sizes_of > limits).any(axis=1)):
        got = f"a piece of {known[first]} tokens takes {sizes_of[first].tolist()}"
        raise UserError("data.packing", got, f"at most {capacity}")
    groups = _fill(counts, sizes_of, limits, rule)
    # Pieces in the order of their length, so that each class is one run, from which bins take their members in turn.
    by_class = np.argsort(class_of, kind="stable")
    taken = np.concatenate([[0], np.cumsum(counts)])[:-1]
    members, bin_sizes = [np.zeros(0, np.int64)], [np.zeros(1, np.int64)]
    for group in groups:
        columns = []
        for kind, often in group.content:
            start, end = taken[kind], taken[kind] + group.count * often
            columns.append(by_class[start:end].reshape(group.count, often))
            taken[kind] = end
        rows = np.sort(np.concatenate(columns, axis=1), axis=1)
        members.append(rows.reshape(-1))
        bin_sizes.append(np.full(group.count, rows.shape[1], np.int64))
    return np.concatenate(members), np.cumsum(np.concatenate(bin_sizes))


def _fill(counts: np.ndarray, sizes: np.ndarray, limits: np.ndarray, rule: Fit) -> list[_Bins]:
    """The bins of (classes,) ``counts`` pieces of (classes, sides) ``sizes``."""
    closed: list[_Bins] = []  # no piece that is left fits
    open_bins: list[_Bins] = []
    rooms = np.empty((0, len(limits)), np.int64)
    order = np.argsort(-(sizes / limits).max(axis=1), kind="stable")
    smallest_left = np.minimum.accumulate(sizes[order][::-1], axis=0)[::-1]
    for place, kind in enumerate(order):
        size, left = sizes[kind], int(counts[kind])
        useful = (rooms >= smallest_left[place]).all(axis=1)
        closed += [group for group, keep in zip(open_bins, useful, strict=True) if not keep]
        open_bins = [group for group, keep in zip(open_bins, useful, strict=True) if keep]
        rooms = rooms[useful]
        candidates = np.flatnonzero((rooms >= size).all(axis=1))
        if rule == "best_fit":
            candidates = candidates[np.argsort((rooms[candidates] / limits).sum(axis=1), kind="stable")]
        made: list[tuple[int, _Bins, np.ndarray]] = []  # (the open group it is split from, what, its room)
        for index in map(int, candidates):
            if not left:
                break
            left = _place(open_bins[index], rooms[index], int(kind), size, left, index, made)
        if left:
            new = _Bins(-(-left // _times(limits, size, left)), [])
            _place(new, limits.copy(), int(kind), size, left, len(open_bins), made)
        if made:
            open_bins, rooms = _replace(open_bins, rooms, made)
    return closed + open_bins


def _times(room: np.ndarray, size: np.ndarray, left: int) -> int:
    """How often ``size`` fits; a piece may take nothing on one side."""
    return int(min((r // s for r, s in zip(room, size, strict=True) if s > 0), default=left))


def _place(group: _Bins, room: np.ndarray, kind: int, size: np.ndarray, left: int, index: int, made: list) -> int:
    """Fills bins of ``group`` one after the other; what becomes of it goes to ``made``. Returns what is still left."""
    often = _times(room, size, left)
    full = min(group.count, left // often)
    rest = min(left - full * often, often) if full < group.count else 0
    for count, times in ((full, often), (rest > 0, rest), (group.count - full - (rest > 0), 0)):
        if count:
            content = [*group.content, (kind, times)] if times else group.content
            made.append((index, _Bins(int(count), content), room - times * size))
    return left - full * often - rest


def _replace(
    open_bins: list[_Bins], rooms: np.ndarray, made: list[tuple[int, _Bins, np.ndarray]]
) -> tuple[list[_Bins], np.ndarray]:
    """Puts what groups were split into in their place, so that the order stays that in which bins were made."""
    touched = {index for index, _, _ in made}
    every = [(index, group, rooms[index]) for index, group in enumerate(open_bins) if index not in touched] + made
    every.sort(key=lambda entry: entry[0])
    return [group for _, group, _ in every], np.asarray([room for _, _, room in every], np.int64)
