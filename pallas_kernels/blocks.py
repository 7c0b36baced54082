"""Sizes of blocks: the best of each generation of chip, fitted to a call's lengths.

The TPU table was chosen by what the TPU compiler's own schedule costs (benchmarks/kernels_static.py), not measured on
chips; what ``tune`` has measured goes before it. Must not know kernels.
"""

from __future__ import annotations

import functools
import json
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax

MB = 2**20
LANES = 128


class BlockSizes(NamedTuple):
    """Sizes of the blocks of a kernel, multiples of 128 on TPUs; 0: from the table.

    Attributes:
      queries, keys: sizes of the forward pass.
      backward_queries, backward_keys: sizes of the backward pass.
      chip: generation whose table is read, for compiling without a chip: v4, v5e, v5p, v6e, tpu7x; empty: that
        of the default device.
    """

    queries: int = 0
    keys: int = 0
    backward_queries: int = 0
    backward_keys: int = 0
    chip: str = ""


class ForwardSub(NamedTuple):
    """How a block of the TPU's forward pass is divided (see ``tpu_forward``).

    Attributes:
      keys, queries: sizes of an item.
      chunk: keys of one matrix product.
      ahead, lag: number of items by which products with keys precede, and with values follow, the exponentials.
      group: items of different queries that take turns.
    """

    keys: int
    queries: int
    chunk: int
    ahead: int
    lag: int
    group: int


class BackwardSub(NamedTuple):
    """How a block of the TPU's backward pass is divided (see ``tpu_backward``).

    Attributes:
      keys, queries: sizes of a sub-block.
      lag: number of sub-blocks by which the products with a gradient follow the gradient.
      queries_first: whether sub-blocks of the same queries follow one another, or of the same keys.
      turned: whether dk and dv are accumulated transposed, which fills a matrix unit of 256.
    """

    keys: int
    queries: int
    lag: int
    queries_first: bool
    turned: bool

    def of_corner(self) -> BackwardSub:
        """Smaller where whole sub-blocks can be left out."""
        return self._replace(keys=min(self.keys, 256), queries=min(self.queries, 256))


class TpuBlocks(NamedTuple):
    """Sizes and options of the TPU kernels.

    Attributes:
      queries, keys, forward_sub: sizes and division of blocks of the forward pass.
      backward_queries, backward_keys, backward_sub: the same for the backward pass.
      sums_by_matmul: whether the forward pass's exponentials are added up by the matrix unit.
      vmem_bytes: memory that a kernel may use.
    """

    queries: int
    keys: int
    forward_sub: ForwardSub
    backward_queries: int
    backward_keys: int
    backward_sub: BackwardSub
    sums_by_matmul: bool
    vmem_bytes: int

    def fits_fused(self, length: int, head_size: int, itemsize: int, tiles_bytes: int) -> bool:
        """Whether dq of a whole head fits, in float32 and as it is written, beside the tiles of a bias and gradient."""
        whole = _up(length + self.backward_queries) * max(head_size, LANES) * (4 + itemsize)
        return whole + 2 * tiles_bytes <= self.vmem_bytes * 0.6


_NARROW = ForwardSub(keys=256, queries=128, chunk=128, ahead=2, lag=1, group=1)  # matrix units of 128
_WIDE = ForwardSub(keys=512, queries=256, chunk=256, ahead=2, lag=1, group=2)  # of 256
_NARROW_BACK = BackwardSub(keys=512, queries=1024, lag=0, queries_first=False, turned=False)
_WIDE_BACK = BackwardSub(keys=256, queries=256, lag=1, queries_first=True, turned=True)
TPU = {
    "v4": TpuBlocks(512, 512, _NARROW, 512, 512, _NARROW_BACK._replace(queries=512), True, 16 * MB),
    "v5e": TpuBlocks(1024, 1024, _NARROW, 1024, 1024, _NARROW_BACK, False, 100 * MB),
    "v5p": TpuBlocks(1024, 1024, _NARROW, 1024, 1024, _NARROW_BACK, False, 90 * MB),
    "v6e": TpuBlocks(1024, 1024, _WIDE, 1024, 1024, _WIDE_BACK, True, 100 * MB),
    "tpu7x": TpuBlocks(1024, 1024, _WIDE, 1024, 1024, _WIDE_BACK, True, 56 * MB),
}
_KINDS = {
    "TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v5": "v5p", "TPU v5p": "v5p",
    "TPU v6 lite": "v6e", "TPU v6e": "v6e", "TPU7x": "tpu7x", "TPU v7x": "tpu7x",
}  # fmt: skip


def chip_name(device: Any = None) -> str:
    """Name of a device, by default of JAX's first: a key of ``TPU``, or its own ``device_kind``."""
    kind = (jax.devices()[0] if device is None else device).device_kind
    return str(_KINDS.get(kind, kind))


def blocks_for(asked: BlockSizes | None, device: Any) -> BlockSizes | None:
    """The sizes asked for, of the generation of a TPU or GPU that need not be here; as they are for other devices."""
    if device is None or device.platform == "cpu" or (asked and asked.chip):
        return asked
    chip = chip_name(device)
    return (asked or BlockSizes())._replace(chip=chip if device.platform != "tpu" or chip in TPU else "v4")


class Measured(NamedTuple):
    """The fastest sizes for heads of a size and sequences of a length."""

    head: int
    length: int
    queries: int
    keys: int
    backward_queries: int
    backward_keys: int


def measured_path() -> Path:
    """Where ``tune`` keeps what it has measured."""
    return Path(os.environ.get("PALLAS_KERNELS_MEASURED") or Path(__file__).with_name("measured.json"))


@functools.lru_cache(maxsize=1)
def load_measured() -> dict[str, list[Measured]]:
    """By chip; empty where nothing was measured. Read once.

    Raises:
      ValueError: the file is not one that ``tune`` wrote.
    """
    path = measured_path()
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text())
        return {
            chip: [Measured(**{n: int(x) for n, x in e.items()}) for e in entries] for chip, entries in found.items()
        }
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: not a table of block sizes ({error}); remove it or run pallas_kernels.tune"
        ) from None


def save_measured(table: dict[str, list[Measured]]) -> None:
    """Writes the table whole or not at all."""
    path = measured_path()
    temporary = path.with_suffix(".partial")
    plain = {chip: [entry._asdict() for entry in entries] for chip, entries in table.items()}
    temporary.write_text(json.dumps(plain, indent=1) + "\n")
    temporary.replace(path)
    load_measured.cache_clear()


def resolve(asked: BlockSizes | None, head: int, length: int) -> BlockSizes:
    """Sizes asked for, and where none are, those measured on the chip: of the nearest head, then the nearest length."""
    asked = asked or BlockSizes()
    entries = load_measured().get(asked.chip or chip_name(), ())
    if not entries:
        return asked
    best = min(entries, key=lambda e: (abs(e.head - head), abs(math.log(e.length / max(length, 1)))))
    sizes = [own or found for own, found in zip(asked[:4], best[2:], strict=True)]
    return BlockSizes(*sizes, chip=asked.chip)


def tpu_blocks(
    asked: BlockSizes | None, queries: int, keys: int, head: int, reach: int, head_bytes: int = 256
) -> TpuBlocks:
    """The table's entry for a call.

    Args:
      asked: sizes to use instead, and the generation.
      queries, keys: lengths.
      head: larger size of a head.
      head_bytes: bytes of one row of a head.
      reach: max_distance of T5's bias, whose tiles near the diagonal must fit too; 0 without.

    Raises:
      ValueError: an unknown generation, sizes that are not multiples of 128, or tiles of a bias that do not fit.
    """
    sizes = resolve(asked, head, keys)
    name = sizes.chip or chip_name()
    if not sizes.chip and name not in TPU:
        name = "v4"  # whose blocks fit all
    if name not in TPU:
        raise ValueError(f"attention: blocks: chip: got {name!r}; allowed: {', '.join(TPU)}")
    table = TPU[name]
    if head_bytes > 512 and table.vmem_bytes < 32 * MB:  # float32 of 256, beside a dense bias
        table = table._replace(**{name: getattr(table, name) // 2 for name in BlockSizes._fields[:4]})
    if any(size % LANES or size < 0 for size in sizes[:4]):
        raise ValueError(f"attention: blocks: got {sizes}; allowed on TPUs: multiples of {LANES}")
    bq, bk = _fit(sizes.queries, table.queries, queries), _fit(sizes.keys, table.keys, keys)
    back_q = _fit(sizes.backward_queries, table.backward_queries, queries)
    back_k = _fit(sizes.backward_keys, table.backward_keys, keys)
    bq, bk = _with_tiles(bq, bk, reach, table.vmem_bytes // 2)
    back_q, back_k = _with_tiles(back_q, back_k, reach, table.vmem_bytes // 4)
    forward, backward = table.forward_sub, table.backward_sub
    return table._replace(
        queries=bq, keys=bk, backward_queries=back_q, backward_keys=back_k,
        forward_sub=forward._replace(queries=_divisor(bq, forward.queries), chunk=_divisor(bk, forward.chunk)),
        backward_sub=backward._replace(
            queries=_divisor(back_q, backward.queries), keys=_divisor(back_k, backward.keys)
        ),
    )  # fmt: skip


def _fit(asked: int, most: int, length: int) -> int:
    """A block of at most ``most`` that cuts a length with little left over."""
    if asked:
        return min(asked, _up(length))
    count = -(-length // most)
    return _up(-(-length // count))


def _with_tiles(bq: int, bk: int, reach: int, limit: int) -> tuple[int, int]:
    """Blocks so small that the float32 tiles of a bias up to ``reach`` fit into ``limit`` bytes."""
    while reach:
        count = -(-(2 * reach + bq + bk) // math.gcd(bq, bk))
        if 4 * count * bq * bk <= limit:
            break
        if bq == bk == LANES:
            raise ValueError(
                f"attention: bias: T5Relative of max_distance {reach} needs {4 * count * bq * bk / MB:.0f} MB on "
                f"backend 'tpu'; allowed: {limit / MB:.0f}; try backend='xla'"
            )
        bq, bk = (max(LANES, size // 2 // LANES * LANES) for size in (bq, bk))
    return bq, bk


def _up(length: int) -> int:
    return max(LANES, -(-length // LANES) * LANES)


def _divisor(size: int, wanted: int) -> int:
    """The largest of ``wanted``, its half... down to 128 that divides ``size``."""
    while size % wanted:
        wanted //= 2
    return wanted
