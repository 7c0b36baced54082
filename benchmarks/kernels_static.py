"""What the TPU attention kernels cost by the compiler's own schedule, beside those that come with JAX; needs no TPU.

    pip install 'jax[tpu]'
    python benchmarks/kernels_static.py [--chips v5e,v6e] [--quick] [--json FILE]

Per tile of 128 x 128 scores: the bundles (cycles that the core issues, waits for memory left out) and the share of
matrix-unit slots in use, forward and whole backward pass, without a mask, at blocks of 512 and at the best blocks of
each; then what masks and T5's bias add to a block and to a causal run, and temporary memory. T 8192, batch 2, 8 heads,
bfloat16. --quick leaves head size 64 and most of the search for blocks out. Exit code 3 where libtpu is not installed.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import tpu_schedule  # noqa: E402  # before jax
from table import Point, at_most, show, show_points, write_json  # noqa: E402

T, B, H = 8192, 2, 8
TILE = 128
# (block_q, block_kv, block_kv_compute) of splash
CHOICES = (
    (512, 512, 512), (512, 1024, 512), (512, 2048, 1024), (1024, 1024, 512), (1024, 1024, 1024), (1024, 2048, 1024),
)  # fmt: skip
GOALS = {"v5e": (62, 160), "v5p": (62, 160), "v6e": (42, 115)}  # forward, whole backward; head size 128
# Cycles of a forward tile at peak: 2 x 128^3 products on four units of 128 x 128. A schedule can have fewer, as the
# units then still are at work when the next block starts.
PEAK_FORWARD = {"v4": 64, "v5e": 64, "v5p": 64}
REACH = 128  # T5's max_distance


class Result(NamedTuple):
    """Of a contender with some blocks.

    Attributes:
      blocks: in words.
      forward, backward: (bundles per tile, share of the matrix unit); None where not compiled.
      megabytes: temporary memory of both passes.
      branches: bundles per tile of each kind of block, by kernel.
    """

    blocks: str
    forward: tuple[float, float] | None
    backward: tuple[float, float] | None
    megabytes: float
    branches: dict[str, list[float]]


def shape(*sizes: int, dtype: str = "bfloat16") -> Any:
    import jax

    return jax.ShapeDtypeStruct(sizes, dtype)


def both_ways(function: Callable[..., Any]) -> Callable[..., Any]:
    """(arrays that are trained, others, gradient of the output) -> output and gradients."""
    import jax

    def run(trained, others, gradient):
        out, pull = jax.vjp(lambda trained: function(*trained, *others), trained)
        return out, pull(gradient)

    return run


def ours(chip: str, blocks: Sequence[int] = (0, 0, 0, 0), options: Callable[..., dict[str, Any]] | None = None) -> Any:
    """Of q, k, v [B, T, H, D] and what ``options`` takes."""
    from pallas_kernels import BlockSizes, Full, attention

    def run(q, k, v, *more):
        given = dict(mask=Full()) if options is None else options(*more)
        return attention(q, k, v, **given, backend="tpu", blocks=BlockSizes(*blocks, chip=chip))

    return run


def _from_model(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """From [B, T, H, D], as a model has its arrays, for a kernel that takes [B, H, T, D]."""
    return lambda q, k, v: kernel(*(x.swapaxes(1, 2) for x in (q, k, v))).swapaxes(1, 2)


def flash(block: int) -> Callable[..., Any]:
    """Of q, k, v [B, H, T, D]."""
    from jax.experimental.pallas.ops.tpu import flash_attention as jax_flash

    sizes = jax_flash.BlockSizes(block, block, block, 1, *(block,) * 7)
    return lambda q, k, v: jax_flash.flash_attention(q, k, v, sm_scale=q.shape[-1] ** -0.5, block_sizes=sizes)


def splash(choice: tuple[int, int, int], fused: bool) -> Callable[..., Any]:
    """Of q, k, v [B, H, T, D]."""
    import jax
    from jax.experimental.pallas.ops.tpu import splash_attention as jax_splash

    dq = (None, None) if fused else choice[:2]
    sizes = jax_splash.BlockSizes(*choice, *choice, *dq, use_fused_bwd_kernel=fused)
    mask = jax_splash.MultiHeadMask([jax_splash.FullMask((T, T)) for _ in range(H)])

    def run(q, k, v):
        kernel = jax_splash.make_splash_mha_single_device(mask, block_sizes=sizes)
        return jax.vmap(kernel)((q * q.shape[-1] ** -0.5).astype(q.dtype), k, v)

    return run


def compile_both(chip: str, function: Callable[..., Any], D: int, more: Sequence[Any] = (), array: Any = None) -> Any:
    """Forward and backward pass of a function of q, k, v as ``array``; floats of ``more`` are trained."""
    array = array or shape(B, T, H, D)
    floats = [x for x in more if x.dtype == "float32"]
    others = [x for x in more if x.dtype != "float32"]
    return tpu_schedule.compile_for(chip, both_ways(function), ((array, array, array, *floats), others, array))


def measure(
    chip: str, what: str, blocks: str, tiles: tuple[float, float], compile_now: Callable[[], Any]
) -> Result | None:
    """Compiles a contender.

    Args:
      chip, what, blocks: in words.
      tiles: of a block of the forward and backward pass.
      compile_now: gives what was compiled.
    """
    try:
        found = compile_now()
    except Exception as failure:  # blocks that are too large for a chip, which is worth knowing
        print(f"# {chip} {what} {blocks}: does not compile: {str(failure)[:200]!r}", flush=True)
        return None
    sums: dict[bool, list[float]] = {}
    branches = {}
    for name, kernel in found.kernels.items():
        try:
            costs = kernel.branches()
        except ValueError as failure:
            print(f"# {chip} {what} {blocks}: {name}: {failure}", flush=True)
            continue
        back = "backward" in name or "dq" in name or "dkv" in name
        branches[name] = [branch.bundles / tiles[back] for branch in costs]
        total = sums.setdefault(back, [0.0, 0.0])
        # the last branch is the whole block; a pass may have several kernels
        total[0] += branches[name][-1]
        total[1] += branches[name][-1] * costs[-1].filled["mxu"]
    forward, backward = ((s[0], s[1] / s[0]) if (s := sums.get(back)) else None for back in (False, True))
    each = "; ".join(f"{name} {', '.join(f'{cost:.1f}' for cost in costs)}" for name, costs in branches.items())
    print(f"# {chip} {what} {blocks}: {each}; {found.temporary_mb:.0f} MB; {found.seconds:.0f} s", flush=True)
    return Result(blocks, forward, backward, found.temporary_mb, branches)


def _tiles(*blocks: int) -> tuple[float, float]:
    return blocks[0] * blocks[1] / TILE**2, blocks[-2] * blocks[-1] / TILE**2


def table_blocks(chip: str, D: int, reach: int) -> tuple[int, int, int, int]:
    """Ours where none are asked for."""
    from pallas_kernels.blocks import BlockSizes, tpu_blocks

    table = tpu_blocks(BlockSizes(chip=chip), queries=T, keys=T, head=D, reach=reach)
    return table.queries, table.keys, table.backward_queries, table.backward_keys


def plain(chip: str, D: int, quick: bool, searched: Mapping[str, list[Result]]) -> dict[str, list[Result]]:
    """Results without a mask, by contender; first those at blocks of 512.

    Args:
      chip, D, quick: what to measure.
      searched: of head size 128: at others only the blocks that were best there are tried.
    """
    default = table_blocks(chip, D, reach=0)
    found: dict[str, list[Result | None]] = {"ours": []}
    for sizes in dict.fromkeys([(512,) * 4, default]):
        run = functools.partial(compile_both, chip, ours(chip, sizes), D)
        found["ours"].append(measure(chip, f"D {D} ours", str(sizes), _tiles(*sizes), run))
    for sizes in () if quick or chip == "v4" else ((2048, 1024), (1024, 2048)):
        array = shape(B, T, H, D)
        run = functools.partial(tpu_schedule.compile_for, chip, ours(chip, (*sizes, 0, 0)), (array, array, array))
        found["ours"].append(measure(chip, f"D {D} ours, forward", str(sizes), _tiles(*sizes), run))
    if chip == "v4":  # the others are not made for it
        return {"ours": [result for result in found["ours"] if result]}
    for block in (512, 1024):
        run = functools.partial(compile_both, chip, _from_model(flash(block)), D)
        found.setdefault("flash", []).append(measure(chip, f"D {D} flash", str(block), _tiles(block, block), run))
    for fused in (False, True):
        name = "splash fused" if fused else "splash"
        known = {r.blocks for r in (best(searched.get(name, ()), back) for back in (False, True)) if r}
        for choice in CHOICES[:1] + CHOICES[4:5] if quick else CHOICES:
            if known and choice != CHOICES[0] and str(choice) not in known:
                continue
            run = functools.partial(compile_both, chip, _from_model(splash(choice, fused)), D)
            result = measure(chip, f"D {D} {name}", str(choice), _tiles(*choice[:2]), run)
            found.setdefault(name, []).append(result)
    return {name: [result for result in results if result] for name, results in found.items()}


def best(results: Sequence[Result], back: bool) -> Result | None:
    """The result with the cheapest pass."""
    there = [result for result in results if (result.backward if back else result.forward)]
    return min(there, key=lambda result: (result.backward if back else result.forward)[0], default=None)  # pyright: ignore[reportOptionalSubscript]


def at_table(found: Mapping[str, list[Result]]) -> Result:
    """Ours at the blocks of the table, which come after those of 512 where they are others."""
    return found["ours"][:2][-1]


def plain_rows(chip: str, D: int, found: Mapping[str, list[Result]]) -> list[tuple[object, ...]]:
    rows = []
    for name, results in found.items():
        at_512 = [r for r in results if "1024" not in r.blocks and "2048" not in r.blocks][:1]
        cells: list[object] = []
        for back in (False, True):
            for result in (best(at_512, back), best(results, back)):
                cost = (result.backward if back else result.forward) if result else None
                cells.append(f"{cost[0]:.1f} ({cost[1]:.2f})" if cost else "-")
            cells.append(result.blocks.strip("()") if result else "-")
        rows.append((f"{chip} D {D} {name}", *cells))
    return rows


class Added(NamedTuple):
    """Something that makes blocks dearer.

    Attributes:
      name: of it.
      options: arguments of ``attention`` from further arrays.
      more: shapes of those.
      kinds: of block, in the order in which a kernel has code for them.
      occurs: (block of queries, of keys, size of both) -> kind; "" where nothing is visited.
    """

    name: str
    options: Callable[..., dict[str, Any]]
    more: tuple[Any, ...]
    kinds: tuple[str, ...]
    occurs: Callable[[int, int, int, int], str]


def _cut(i: int, j: int, bq: int, bk: int) -> str:
    if j * bk > (i + 1) * bq - 1:
        return ""
    return "corner" if (j + 1) * bk - 1 > i * bq else "whole"


def _near(i: int, j: int, bq: int, bk: int) -> str:
    offset = j * bk - i * bq
    return "near" if offset + bk - 1 > -REACH and offset - bq + 1 < REACH else "far"


def added() -> list[Added]:
    from pallas_kernels import Causal, Full, Segments, T5Relative

    table, ids = shape(32, H, dtype="float32"), shape(B, T, dtype="int32")

    def both(i, j, bq, bk):
        return f"{cut} {_near(i, j, bq, bk)}" if (cut := _cut(i, j, bq, bk)) else ""

    def asked(i, j, bq, bk):
        return "asked" if (cut := _cut(i, j, bq, bk)) == "whole" else cut

    kinds = tuple(f"{cut} {near}" for cut in ("corner", "whole") for near in ("near", "far"))
    return [
        Added("causal", lambda: dict(mask=Causal()), (), ("corner", "whole"), _cut),
        Added(
            "causal and segments", lambda ids: dict(mask=Causal() & Segments(ids, ids)), (ids,),
            ("corner", "asked", "whole"), asked,
        ),
        Added("T5", lambda t: dict(mask=Full(), bias=T5Relative(t, True, REACH)), (table,), ("near", "far"), _near),
        Added("T5 causal", lambda t: dict(mask=Causal(), bias=T5Relative(t, False, REACH)), (table,), kinds, both),
    ]  # fmt: skip


def features(chip: str, D: int, base: Result) -> tuple[list[tuple[object, ...]], list[Point]]:
    """What masks and T5's bias add to a block of the plain kernel (``base``, same blocks)."""
    rows, points = [], []
    for feature in added():
        reach = REACH if feature.name.startswith("T5") else 0
        sizes = table_blocks(chip, D, reach)
        run = functools.partial(compile_both, chip, ours(chip, options=feature.options), D, feature.more)
        result = measure(chip, f"D {D} {feature.name}", str(sizes), _tiles(*sizes), run)
        for name, costs in (result.branches if result else {}).items():
            whole = base.branches.get(name)
            if whole is None or len(costs) != len(feature.kinds):
                print(f"# {chip} {feature.name} {name}: {len(costs)} branches, not {feature.kinds}", flush=True)
                continue
            bq, bk = sizes[2:] if "backward" in name else sizes[:2]
            cost = {kind: bundles / whole[-1] - 1 for kind, bundles in zip(feature.kinds, costs, strict=True)}
            visits = [feature.occurs(i, j, bq, bk) for i in range(T // bq) for j in range(T // bk)]
            mean = sum(cost[kind] for kind in visits if kind) / sum(map(bool, visits))
            each = ", ".join(f"{kind} {value:+.1%} (x {visits.count(kind)})" for kind, value in cost.items())
            rows.append((f"{chip} D {D} {feature.name}, {name}", f"{mean:+.1%}", each))
            points += _feature_points(f"{chip} D {D} {name}", feature.name, cost, mean)
    return rows, points


def _feature_points(where: str, name: str, cost: Mapping[str, float], mean: float) -> list[Point]:
    if name == "T5":
        goals = (("near", 30), ("far", 5))
        return [at_most(f"{where}: T5, {kind} block, % added", 100 * cost[kind], goal) for kind, goal in goals]
    return [
        at_most(f"{where}: {name}, mean of a run, % added", 100 * mean, 10)
        if not name.startswith("T5")
        else Point(f"{where}: {name}, mean of a run, % added", 100 * mean)
    ]


def memory(chip: str, found: Mapping[str, list[Result]], quick: bool) -> tuple[list[tuple[object, ...]], list[Point]]:
    """Temporary memory of T 8192, D 128: forward, and both passes, from a model's layout and from the peers' own."""
    D, rows, figures = 128, [], {}
    array, own = shape(B, T, H, D), shape(B, H, T, D)
    contenders: dict[str, Callable[..., Any]] = {"ours": ours(chip)}
    for block in () if chip == "v4" else ((512,) if quick else (512, 1024)):
        contenders[f"flash {block}"] = flash(block)
        contenders[f"splash {block}"] = splash((block,) * 3, fused=False)
        contenders[f"splash fused {block}"] = splash((block,) * 3, fused=True)
    for name, native in contenders.items():
        layouts = [(native, array)] if name == "ours" else [(_from_model(native), array), (native, own)]
        cells: list[object] = []
        for function, given in layouts:
            try:
                forward = tpu_schedule.compile_for(chip, function, (given,) * 3).temporary_mb
                both = compile_both(chip, function, D, array=given).temporary_mb
            except Exception as failure:
                print(f"# {chip} memory of {name}: {str(failure)[:200]!r}", flush=True)
                cells += ["-", "-"]
                continue
            figures[name] = min(both, figures.get(name, both))
            cells += [f"{forward:.0f}", f"{both:.0f}"]
        print(f"# {chip} memory of {name}: {', '.join(map(str, cells))} MB", flush=True)
        rows.append((f"{chip} {name}", *cells, *[""] * (4 - len(cells))))
    least = min((value for name, value in figures.items() if name.startswith("splash")), default=None)
    if least is None or "ours" not in figures:
        return rows, []
    name = f"{chip} D 128: temporary MB of both passes (goal: splash's least)"
    return rows, [at_most(name, figures["ours"], least)]


def t5_memory(chip: str) -> list[Point]:
    """T5's bias at T 8192, D 64."""
    feature = next(feature for feature in added() if feature.name == "T5")
    found = compile_both(chip, ours(chip, options=feature.options), 64, feature.more)
    return [at_most(f"{chip} D 64: T5, temporary MB of both passes", found.temporary_mb, 300)]


def goals(chip: str, found: Mapping[str, list[Result]]) -> list[Point]:
    """Of head size 128, at the blocks of the table; the best of JAX's beside it."""
    points = []
    for back, what in ((False, "forward"), (True, "backward")):
        base = at_table(found)
        cost = base.backward if back else base.forward
        if cost is None:
            continue
        name = f"{chip} D 128: bundles per tile, whole {what} pass, blocks {base.blocks}"
        if not back and chip in PEAK_FORWARD:
            name += f" (bound by peak flops: {PEAK_FORWARD[chip]} cycles)"
        points.append(at_most(name, cost[0], GOALS[chip][back]) if chip in GOALS else Point(name, cost[0]))
        for other in ("splash", "splash fused", "flash"):
            if result := best(found.get(other, ()), back):
                peer = (result.backward if back else result.forward) or cost
                points.append(Point(f"{chip} D 128: {what}, {other}'s best over ours", peer[0] / cost[0]))
    return points


PLAIN = ("chip, head size", "forward, 512 (MXU)", "best", "at", "backward, 512 (MXU)", "best", "at")
MEMORY = ("chip", "forward", "both", "forward, own layout", "both, own layout")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chips", default="v5e,v5p,v6e,tpu7x,v4", help="separated by commas")
    parser.add_argument("--quick", action="store_true", help="head size 128 and few blocks only")
    parser.add_argument("--json", metavar="FILE", help="file to write the figures to")
    options = parser.parse_args()
    tpu_schedule.require_libtpu()
    tpu_schedule.dump_schedules()
    print(f"# {tpu_schedule.versions()}; T {T}, batch {B}, {H} heads, bfloat16", flush=True)
    points: list[Point] = []
    for chip in options.chips.split(","):
        searched: dict[str, list[Result]] = {}
        rows = []
        for D in (128,) if options.quick else (128, 64):
            found = plain(chip, D, options.quick, searched)
            searched = searched or found
            rows += plain_rows(chip, D, found)
        print(flush=True)
        show(PLAIN, rows)
        points += goals(chip, searched)
        for heading, (more, figures) in (
            (
                ("what is added to bundles of the plain kernel", "mean", "kinds of block"),
                features(chip, 128, at_table(searched)),
            ),
            (MEMORY, memory(chip, searched, options.quick)),
        ):
            print(flush=True)
            show(heading, more)
            points += figures
        points += t5_memory(chip) if chip == "v5e" else []
        write_json(options.json, points)
    print("\ncorner: a block that the diagonal cuts; it counts as a whole block of tiles, although half is left out.")
    print("asked: a block whose segments are compared pair by pair; the mean takes all but corners to be so.\n")
    show_points(points)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
