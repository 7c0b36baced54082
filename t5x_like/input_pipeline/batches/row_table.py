"""The pieces of each row, computed once: in memory for a small split, else in a file beside its cache.

A table on disk is read by memory map, so that 100 million documents cost a run, and each of its worker processes, next
to no memory. Knows lengths and files; must not know ids, examples or orders.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from t5x_like.input_pipeline.batches.packing import Fit, plan
from t5x_like.input_pipeline.disk import NewFolder, check_files, held_lock, map_array, room_in, temporary_name
from t5x_like.input_pipeline.prepare.token_cache import TokenSplit

# Bump when what a table holds changes, so that older ones are made anew.
FORMAT_VERSION = 1
# Largest number of documents of a split whose table is in memory (about 60 MB, made in 2 s).
_IN_MEMORY = 2**22
# Documents planned together: the more, the better their pieces fit; in order, so that offsets are read in order.
_WINDOW = 2**18


@dataclass(frozen=True)
class RowPacking:
    """How pieces share rows.

    Attributes:
      rule: choice of the row for the next piece.
      sizes: function from the length of a piece to its tokens on each side.
      capacity: tokens of a row on each side.
    """

    rule: Fit
    sizes: Callable[[int], tuple[int, ...]]
    capacity: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class RowTable:
    """Piece ``j`` is the ``part[j]``-th cut of document ``document[j]``.

    Attributes:
      starts: (rows + 1,) uint64, row r holds the pieces from ``starts[r]`` up to ``starts[r + 1]``.
      document, part: (pieces,) unsigned.
      tokens: number of tokens in all pieces.
      left_out: number of tokens in no piece.
    """

    starts: np.ndarray
    document: np.ndarray
    part: np.ndarray
    tokens: int
    left_out: int


def row_table(split: TokenSplit, length: int, minimum: int, with_eos: bool, packing: RowPacking | None) -> RowTable:
    """The rows of documents cut every ``length`` tokens; made now if it is not there yet.

    Args:
      split: the documents.
      length: tokens per piece at most.
      minimum: a last piece of a document that is shorter is left out.
      with_eos: whether each document has one token more than the split says.
      packing: packing of pieces in rows; None: one piece per row.

    Raises:
      UserError: the table of a large split cannot be written.
    """
    if not len(split):
        return RowTable(np.zeros(1, np.uint64), np.zeros(0, np.uint32), np.zeros(0, np.uint16), 0, 0)
    windows = _windows(split, length, minimum, with_eos, packing)
    dtypes = _dtypes(split, length)
    # In a shared cache that cannot be written, too, the table is this process's own.
    if split.folder is None or len(split) <= _IN_MEMORY or not os.access(split.folder, os.W_OK):
        columns, facts = zip(*windows, strict=True)
        per_row, document, part = (np.concatenate(column) for column in zip(*columns, strict=True))
        arrays = {"starts": np.concatenate([[0], np.cumsum(per_row)]), "document": document, "part": part}
        arrays = {name: array.astype(dtypes[name]) for name, array in arrays.items()}
        return RowTable(**arrays, tokens=sum(taken for taken, _ in facts), left_out=sum(short for _, short in facts))
    shape = packing and (packing.rule, packing.capacity, [packing.sizes(size) for size in range(minimum, length + 1)])
    key = repr((FORMAT_VERSION, split.name, length, minimum, with_eos, shape))
    folder = split.folder / f"rows-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    if not (folder / "table.json").is_file():
        with held_lock(folder.with_name(f".{folder.name}.lock")):
            if not (folder / "table.json").is_file():
                _store(folder, windows, dtypes)
    return _open(folder, dtypes)


def _dtypes(split: TokenSplit, length: int) -> dict[str, str]:
    longest = 1 if len(split) == 0 else int(split.offsets[-1])  # no document has more cuts than the split has tokens
    document, part = "<u4" if len(split) < 2**32 else "<u8", "<u2" if longest // length < 2**16 else "<u4"
    return {"starts": "<u8", "document": document, "part": part}


_Window = tuple[tuple[np.ndarray, np.ndarray, np.ndarray], tuple[int, int]]


def _windows(
    split: TokenSplit, length: int, minimum: int, with_eos: bool, packing: RowPacking | None
) -> Iterator[_Window]:
    """For each window of documents: pieces per row, document and part of each piece; tokens taken and left out."""
    for start in range(0, len(split), _WINDOW):
        end = min(start + _WINDOW, len(split))
        lengths = np.diff(np.asarray(split.offsets[start : end + 1])) + with_eos
        rest = lengths % length
        too_short = rest < minimum
        cuts = lengths // length + (~too_short & (rest > 0))
        document = np.repeat(np.arange(end - start), cuts)
        part = np.arange(len(document)) - np.repeat(np.cumsum(cuts) - cuts, cuts)
        per_row = np.ones(len(document), np.int64)
        sizes = np.minimum(lengths[document] - part * length, length)
        if packing is not None and len(document):
            # In a fixed mixed order, so that those of one length that share a row are not neighbours in the corpus.
            mixed = np.random.Generator(np.random.Philox(start)).permutation(len(document))
            members, starts = plan(sizes[mixed], packing.sizes, packing.capacity, packing.rule)
            members = mixed[members]
            document, part, per_row = document[members], part[members], np.diff(starts)
        yield (per_row, document + start, part), (int(sizes.sum()), int(rest[too_short].sum()))


def _store(folder: Path, windows: Iterator[_Window], dtypes: dict[str, str]) -> None:
    with room_in(folder.parent), NewFolder(folder.parent / temporary_name(folder.name), dtypes) as table:
        facts = {"rows": 0, "pieces": 0, "tokens": 0, "left_out": 0}
        table.files["starts"].write(np.zeros(1, dtypes["starts"]).data)
        for (per_row, document, part), (taken, short) in windows:
            columns = {"starts": facts["pieces"] + np.cumsum(per_row), "document": document, "part": part}
            for name, column in columns.items():
                table.files[name].write(column.astype(dtypes[name]).data)
            found = {"rows": len(per_row), "pieces": len(document), "tokens": taken, "left_out": short}
            facts = {name: facts[name] + found[name] for name in facts}
        table.publish(folder, "table.json", {**facts, "files": table.close()})


def _open(folder: Path, dtypes: dict[str, str]) -> RowTable:
    facts = json.loads((folder / "table.json").read_text())
    check_files(folder, facts["files"], by_content=False)
    arrays = {name: map_array(folder / name, dtype) for name, dtype in dtypes.items()}
    return RowTable(**arrays, tokens=facts["tokens"], left_out=facts["left_out"])
