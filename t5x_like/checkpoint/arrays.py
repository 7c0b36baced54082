"""The arrays of one checkpoint as files that Orbax reads too, written and read by TensorStore. Knows no other metadata.

    state/ocdbt.process_N/       an OCDBT database: the chunks that process N wrote
    state/array_metadatas/process_N   which these are; written last, so it says that the process is done
    state/manifest.ocdbt, d/     the database of all chunks, which refers to those of the processes
    state/_METADATA              names of the arrays, for Orbax

Every process writes a part of its own of every array that it holds, also where others hold copies, so that what a host
writes is its share of the whole. Each chunk ends with a CRC-32C, which is checked wherever it is read.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import tensorstore as ts

from t5x_like.checkpoint.parts import Index, bounds, held, split
from t5x_like.core.storage import Place

STATE = "state"
FILES = 8  # files that a process writes for a checkpoint, unless one would be smaller or larger than FILE
FILE = (2**26, 2**30)  # least and most bytes of a file
THREADS = 4  # that copy to host memory: one does not fill the memory bus
AT_ONCE = 2**31  # bytes that are read at a time, unless one array is larger
LIMITS = {"cache_pool#nodes": {"total_bytes_limit": 10**8}, "file_io_concurrency": {"limit": 64}}


# Writing


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part of an array in host memory, whose values nobody else changes."""

    path: str
    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    index: Index
    data: np.ndarray


def pieces(arrays: Mapping[str, jax.Array], process: int) -> list[Piece]:
    """Copies to host memory what this process writes of arrays; they may change or be donated afterwards."""
    found: list[tuple[Piece, Any]] = []
    for number, (path, array) in enumerate(arrays.items()):
        shards = {bounds(shard.index, array.shape): shard.data for shard in array.addressable_shards}
        holders = held(array.sharding, array.shape)
        ours = split(array.shape, array.dtype.itemsize, holders, process, number)
        for piece in ours.pieces:
            whole, shard = next((i, data) for i, data in shards.items()
                                if all(a <= c and d <= b for (a, b), (c, d) in zip(i, piece, strict=True)))  # fmt: skip
            if whole != piece:
                shard = shard[tuple(slice(c - a, d - a) for (a, _), (c, d) in zip(whole, piece, strict=True))]
            shard.copy_to_host_async()
            found.append((Piece(path, array.shape, ours.chunk, piece, np.empty(0)), shard))
    with ThreadPoolExecutor(THREADS, "copies") as pool:
        copied = pool.map(_copied, [shard for _, shard in found])
        return [dataclasses.replace(piece, data=data) for (piece, _), data in zip(found, copied, strict=True)]


def _copied(shard: jax.Array) -> np.ndarray:
    """The values in memory that no device uses: on CPU ``np.asarray`` is the device's own."""
    return np.array(shard) if next(iter(shard.devices())).platform == "cpu" else np.asarray(shard)


def write(place: Place, own: Sequence[Piece], process: int, compress: bool) -> None:
    """Writes the pieces of this process below ``place``, and lastly that it is done.

    Raises:
      Exception: of TensorStore or the file system.
    """
    folder, context = f"{STATE}/ocdbt.process_{process}", ts.Context(LIMITS)
    codecs = [{"name": "bytes"}, *[{"name": "zstd", "configuration": {"level": 1}}] * compress, {"name": "crc32c"}]
    size = sorted((sum(piece.data.nbytes for piece in own) // FILES, *FILE))[1]  # gathered before it is written
    database = {**_database(place.spec(folder)), "target_data_file_size": size}
    stores: dict[str, tuple[Any, Piece]] = {}
    for piece in own:
        grid = {"name": "regular", "configuration": {"chunk_shape": piece.chunk}}
        metadata = {"shape": piece.shape, "data_type": piece.data.dtype.name, "chunk_grid": grid, "codecs": codecs}
        spec = {"driver": "zarr3", "kvstore": {**database, "path": f"{_name(piece.path)}/"}, "metadata": metadata,
                "store_data_equal_to_fill_value": True}  # fmt: skip
        if piece.path not in stores:
            stores[piece.path] = ts.open(spec, context=context, create=True, open=True), piece
    written = []
    for piece in own:
        part = stores[piece.path][0].result()[_slices(piece.index)]
        written.append(part.write(piece.data, can_reference_source_data_indefinitely=True))
    for one in written:
        one.result()
    each = [{"param_name": _name(path), "write_shape": piece.chunk, "chunk_shape": piece.chunk, "ext_metadata": None}
            for path, (_, piece) in stores.items()]  # fmt: skip
    done = {"array_metadatas": [{"array_metadata": one} for one in each]}
    place.write(f"{STATE}/array_metadatas/process_{process}", json.dumps(done).encode())


def merge(place: Place, paths: Mapping[str, Sequence[int]], processes: int, seconds: float) -> None:
    """In one process: waits for those that write, and makes one database of theirs.

    Args:
      place: the folder that all have written to.
      paths: array to its shape.
      processes: number of these.
      seconds: how long to wait for them.

    Raises:
      TimeoutError: some are not done in time.
    """
    end, pause = time.monotonic() + seconds, 0.002
    expected = {f"process_{process}" for process in range(processes)}
    while missing := expected - set(place.children(f"{STATE}/array_metadatas")):
        if time.monotonic() > end:
            raise TimeoutError(f"{', '.join(sorted(missing)[:5])} of {processes} did not write in {seconds:.0f} s")
        time.sleep(pause)
        pause = min(2 * pause, 0.25)
    context, transaction = ts.Context(LIMITS), ts.Transaction(atomic=True)
    whole = ts.KvStore.open(_database(place.spec(STATE)), context=context).result().with_transaction(transaction)
    parts = [ts.KvStore.open(_database(place.spec(f"{STATE}/ocdbt.process_{process}")), context=context)
             for process in range(processes)]  # fmt: skip
    for part in [part.result().experimental_copy_range_to(whole) for part in parts]:
        part.result()
    transaction.commit_async().result()
    place.write(f"{STATE}/_METADATA", json.dumps(_described(paths)).encode())


def _described(paths: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """What Orbax keeps of the names in a checkpoint: for each array the keys of nested dicts (its key type 2)."""
    tree = {}
    for path, shape in paths.items():
        keys = path.split("/")
        value = {"value_type": "jax.Array", "skip_deserialize": False, "write_shape": list(shape)}
        of_keys = [{"key": key, "key_type": 2} for key in keys]
        tree[str(tuple(keys))] = {"key_metadata": of_keys, "value_metadata": value}
    return {"tree_metadata": tree, "use_ocdbt": True, "use_zarr3": True, "store_array_data_equal_to_fill_value": True,
            "custom_metadata": None}  # fmt: skip


# Reading


def read(place: Place, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Arrays with their saved dtypes on the given shardings; each process reads the parts of its devices, once each.

    Raises:
      Exception: of TensorStore or the file system: something is missing or is not what was written.
    """
    database, context = _database(place.spec(STATE)), ts.Context(LIMITS)
    stores = {path: ts.open({"driver": "zarr3", "kvstore": {**database, "path": f"{_name(path)}/"},
                             "fill_missing_data_reads": False}, context=context, open=True)
              for path in wanted}  # fmt: skip
    found: dict[str, jax.Array] = {}
    for group in _groups(wanted):
        reads = {}
        for path in group:
            leaf, store = wanted[path], stores[path].result()
            if store.shape != leaf.shape or store.dtype.numpy_dtype != leaf.dtype:
                raise ValueError(f"{path} is {store.dtype.name}{list(store.shape)}, not {leaf.dtype}{list(leaf.shape)}")
            indices = leaf.sharding.addressable_devices_indices_map(leaf.shape)
            reads[path] = {device: bounds(index or (), leaf.shape) for device, index in indices.items()}
        parts = {(path, index): _aligned([end - start for start, end in index], wanted[path].dtype)
                 for path in group for index in dict.fromkeys(reads[path].values())}  # fmt: skip
        filled = [ts.array(part).write(stores[path].result()[_slices(index)]) for (path, index), part in parts.items()]
        for each in filled:
            each.result()
        for path in group:
            on = [jax.device_put(parts[path, index], device, may_alias=True) for device, index in reads[path].items()]
            leaf = wanted[path]
            found[path] = jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, on)
    return found


def _aligned(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """Memory that JAX's CPU device uses as it is; it copies what does not begin at a multiple of 64 bytes."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    whole = np.empty(size + 64, np.uint8)
    start = -whole.ctypes.data % 64
    return whole[start : start + size].view(dtype).reshape(shape)


def _groups(wanted: Mapping[str, jax.ShapeDtypeStruct]) -> list[list[str]]:
    """The paths in groups whose arrays take at most ``AT_ONCE`` bytes of this process's memory."""
    groups, size = [[]], 0
    for path, leaf in wanted.items():
        part = math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        its = part * len(leaf.sharding.addressable_devices)
        if groups[-1] and size + its > AT_ONCE:
            groups, size = [*groups, []], 0
        groups[-1].append(path)
        size += its
    return groups


def _database(base: dict[str, Any]) -> dict[str, Any]:
    """The OCDBT database in a folder."""
    if base["driver"] != "file":
        return {"driver": "ocdbt", "base": base, "cache_pool": "cache_pool#nodes"}
    # Files of data have random names and may be written in place; the manifest says which are whole.
    data = {**base, "file_io_locking": {"mode": "non_atomic"}}
    return {"driver": "ocdbt", "base": data, "manifest": base, "cache_pool": "cache_pool#nodes"}


def _name(path: str) -> str:
    return path.replace("/", ".")


def _slices(index: Index) -> tuple[slice, ...]:
    return tuple(slice(start, end) for start, end in index)
