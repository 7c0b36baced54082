"""What the TPU attention kernels cost by the compiler's own schedule, beside those that come with JAX; needs no TPU.

    python benchmarks/install_libtpu.py .venv/libtpu    # as make test does
    python benchmarks/kernels_static.py [--chips v5e,v6e] [--quick] [--json FILE]

Per tile of 128 x 128 scores: the bundles (cycles that the core issues, waits for memory left out) and the share of
matrix-unit slots in use, forward and whole backward pass, without a mask, at blocks of 512 and at the best blocks of
each; then what masks and T5's bias add to a block and to a causal run, and temporary memory. T 8192, batch 2, 8 heads,
bfloat16. About five minutes a chip; --quick leaves head size 64 and most of the search for blocks out. Exit code 3
where libtpu is not installed.
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
# Cycles of a tile at peak on four units of 128 x 128, for 2 and 5 products of 128^3. Fewer bundles say nothing of time:
# the schedule then issues faster than the units work.
PEAK = {"v4": (64, 160), "v5e": (64, 160), "v5p": (64, 160)}
REACH = 128  # T5's max_distance


class Cost(NamedTuple):
    """Bundles per tile, and the share of the matrix unit's slots in use."""

    bundles: float
    filled: float


class Result(NamedTuple):
    """Of a contender with some blocks.

    Attributes:
      blocks: sizes.
      passes: of the forward and the whole backward pass; None where not compiled.
      megabytes: temporary memory of both passes.
      branches: bundles per tile of each kind of block, of each kernel of the forward and the backward pass.
    """

    blocks: tuple[int, ...]
    passes: tuple[Cost | None, Cost | None]
    megabytes: float
    branches: tuple[list[list[float]], list[list[float]]]


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
        given: dict[str, Any] = dict(mask=Full()) if options is None else options(*more)
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
    what: str, blocks: tuple[int, ...], tiles: Sequence[float], compile_now: Callable[[], Any]
) -> Result | None:
    """Compiles a contender.

    Args:
      what: in words.
      blocks: sizes.
      tiles: of a block of the forward and backward pass.
      compile_now: gives what was compiled.
    """
    name_it = f"# {what} {', '.join(map(str, blocks))}"
    try:
        found = compile_now()
    except Exception as failure:  # blocks that are too large for a chip, which is worth knowing
        print(f"{name_it}: does not compile: {str(failure)[:200]!r}", flush=True)
        return None
    passes: list[Cost | None] = [None, None]
    branches: tuple[list[list[float]], list[list[float]]] = ([], [])
    told = []
    for name, kernel in found.kernels.items():
        try:
            costs = kernel.branches()
        except ValueError as failure:
            print(f"{name_it}: {name}: {failure}", flush=True)
            continue
        back = "backward" in name or "dq" in name or "dkv" in name
        branches[back].append([branch.bundles / tiles[back] for branch in costs])
        told.append(f"{name} {', '.join(f'{cost:.1f}' for cost in branches[back][-1])}")
        # the last branch is the whole block; a pass may have several kernels
        more, filled = branches[back][-1][-1], costs[-1].filled["mxu"]
        before = passes[back] or Cost(0.0, 0.0)
        bundles = before.bundles + more
        passes[back] = Cost(bundles, (before.bundles * before.filled + more * filled) / bundles)
    print(f"{name_it}: {'; '.join(told)}; {found.temporary_mb:.0f} MB; {found.seconds:.0f} s", flush=True)
    return Result(blocks, (passes[False], passes[True]), found.temporary_mb, branches)


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
    found: dict[str, list[Result | None]] = {"ours": []}
    for sizes in dict.fromkeys([(512,) * 4, table_blocks(chip, D, reach=0)]):
        run = functools.partial(compile_both, chip, ours(chip, sizes), D)
        found["ours"].append(measure(f"{chip} D {D} ours", sizes, _tiles(*sizes), run))
    for sizes in () if quick or chip == "v4" else ((2048, 1024), (1024, 2048), (2048, 2048)):
        array = shape(B, T, H, D)
        run = functools.partial(tpu_schedule.compile_for, chip, ours(chip, (*sizes, 0, 0)), (array, array, array))
        found["ours"].append(measure(f"{chip} D {D} ours, forward", sizes, _tiles(*sizes), run))
    if chip == "v4":  # the others are not made for it
        return {"ours": [result for result in found["ours"] if result]}
    for block in (512, 1024):
        run = functools.partial(compile_both, chip, _from_model(flash(block)), D)
        result = measure(f"{chip} D {D} flash", (block,), _tiles(block, block), run)
        found.setdefault("flash", []).append(result)
    for fused in (False, True):
        name = "splash fused" if fused else "splash"
        known = {result.blocks for back in (False, True) if (result := best(searched.get(name, ()), back))}
        for choice in CHOICES[:1] + CHOICES[4:5] if quick else CHOICES:
            if known and choice != CHOICES[0] and choice not in known:
                continue
            run = functools.partial(compile_both, chip, _from_model(splash(choice, fused)), D)
            result = measure(f"{chip} D {D} {name}", choice, _tiles(*choice[:2]), run)
            found.setdefault(name, []).append(result)
    return {name: [result for result in results if result] for name, results in found.items()}


def best(results: Sequence[Result], back: bool) -> Result | None:
    """The result with the cheapest pass."""
    costs = [(cost.bundles, number) for number, result in enumerate(results) if (cost := result.passes[back])]
    return results[min(costs)[1]] if costs else None


def at_table(found: Mapping[str, list[Result]]) -> Result:
    """Ours at the blocks of the table, which come after those of 512 where they are others."""
    return found["ours"][:2][-1]


def plain_rows(chip: str, D: int, found: Mapping[str, list[Result]]) -> list[tuple[object, ...]]:
    rows = []
    for name, results in found.items():
        at_512 = [result for result in results if set(result.blocks) == {512}]
        cells: list[object] = []
        for back in (False, True):
            chosen = best(at_512, back), best(results, back)
            for result in chosen:
                cost = result.passes[back] if result else None
                cells.append(f"{cost.bundles:.1f} ({cost.filled:.2f})" if cost else "-")
            cells.append(", ".join(map(str, chosen[1].blocks)) if chosen[1] else "-")
        rows.append((f"{chip} D {D} {name}", *cells))
    return rows


class Added(NamedTuple):
    """Something that makes blocks dearer.

    Attributes:
      name: of it.
      options: arguments of ``attention`` from further arrays.
      more: shapes of those.
      kinds: of block, in the order in which a kernel has code for them.
      runs: by name, (block of queries, of keys, sizes of both) -> kind; "" where nothing is visited.
      goals: % added by kind or run.
    """

    name: str
    options: Callable[..., dict[str, Any]]
    more: tuple[Any, ...]
    kinds: tuple[str, ...]
    runs: dict[str, Callable[[int, int, int, int], str]]
    goals: dict[str, float]


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

    def packed(i, j, bq, bk):  # visited where a document of 1000 has queries and keys
        return asked(i, j, bq, bk) if i * bq // 1000 <= ((j + 1) * bk - 1) // 1000 else ""

    def segments(ids):
        return dict(mask=Causal() & Segments(ids, ids))

    t5_kinds = tuple(f"{cut} {near}" for cut in ("corner", "whole") for near in ("near", "far"))
    segment_runs = {"all asked": asked, "documents of 1000": packed}
    return [
        Added("causal", lambda: dict(mask=Causal()), (), ("corner", "whole"), {"run": _cut}, {"run": 10}),
        Added(
            "causal and segments", segments, (ids,), ("corner", "asked", "whole"), segment_runs, {"all asked": 10}
        ),
        Added(
            "T5", lambda t: dict(mask=Full(), bias=T5Relative(t, True, REACH)), (table,), ("near", "far"),
            {"run": _near}, {"near": 30, "far": 5},
        ),
        Added(
            "T5 causal", lambda t: dict(mask=Causal(), bias=T5Relative(t, False, REACH)), (table,), t5_kinds,
            {"run": both}, {},
        ),
    ]  # fmt: skip


def features(chip: str, D: int, base: Result) -> tuple[list[tuple[object, ...]], list[Point]]:
    """What masks and T5's bias add to a block of the plain kernel (``base``, same blocks)."""
    rows, points = [], []
    for feature in added():
        reach = REACH if feature.name.startswith("T5") else 0
        sizes = table_blocks(chip, D, reach)
        run = functools.partial(compile_both, chip, ours(chip, options=feature.options), D, feature.more)
        result = measure(f"{chip} D {D} {feature.name}", sizes, _tiles(*sizes), run)
        for back, what in enumerate(("forward", "backward")):
            whole, kernels = base.passes[back], result.branches[back] if result else []
            if not whole or not kernels or any(len(costs) != len(feature.kinds) for costs in kernels):
                print(f"# {chip} {feature.name} {what}: branches {kernels}, not {feature.kinds}", flush=True)
                continue
            bq, bk = sizes[2:] if back else sizes[:2]
            sums = (sum(costs) for costs in zip(*kernels, strict=True))
            cost = {kind: bundles / whole.bundles - 1 for kind, bundles in zip(feature.kinds, sums, strict=True)}
            where = f"{chip} D {D} {what}: {feature.name}"
            for run_name, kind_of in feature.runs.items():
                visits = [kind_of(i, j, bq, bk) for i in range(T // bq) for j in range(T // bk)]
                mean = sum(cost[kind] for kind in visits if kind) / sum(map(bool, visits))
                each = ", ".join(f"{kind} {cost[kind]:+.1%} (x {visits.count(kind)})" for kind in feature.kinds)
                rows.append((f"{where}, {run_name}", f"{mean:+.1%}", each))
                cost[run_name] = mean
            for kind in {**feature.goals, **feature.runs}:
                label, figure = f"{where}, {kind}, % added", 100 * cost[kind]
                goal = feature.goals.get(kind)
                points.append(Point(label, figure) if goal is None else at_most(label, figure, goal))
    return rows, points


def memory(chip: str, found: Mapping[str, list[Result]], quick: bool) -> tuple[list[tuple[object, ...]], list[Point]]:
    """Temporary memory of D 128: of the forward and of both passes, from [B, T, H, D] as a model has it, and from
    [B, H, T, D], which all kernels read; ours then has two transposes more, which cancel."""
    D = 128
    rows, layouts = [], (shape(B, T, H, D), shape(B, H, T, D))
    # of both passes from a model's layout, which are compiled already where their schedules were asked for
    figures = {("ours", 0): at_table(found).megabytes}
    for name in ("flash", "splash", "splash fused"):
        for result in found.get(name, ()):
            sizes = dict.fromkeys(result.blocks)  # one number where all are the same
            figures[f"{name} {', '.join(map(str, sizes))}", 0] = result.megabytes
    contenders: dict[str, Callable[..., Any]] = {"ours": _from_model(ours(chip))}
    for block in () if chip == "v4" else ((512,) if quick else (512, 1024)):
        contenders[f"flash {block}"] = flash(block)
        contenders[f"splash {block}"] = splash((block, block, block), fused=False)
        contenders[f"splash fused {block}"] = splash((block, block, block), fused=True)
    for name, native in contenders.items():
        cells: list[object] = []
        for layout, function in enumerate((ours(chip) if name == "ours" else _from_model(native), native)):
            given, key = layouts[layout], (name, layout)
            try:
                forward = tpu_schedule.compile_for(chip, function, (given,) * 3).temporary_mb
                if key not in figures:
                    figures[key] = compile_both(chip, function, D, array=given).temporary_mb
                cells += [f"{forward:.0f}", f"{figures[key]:.0f}"]
            except Exception as failure:  # blocks too large for the chip: the rest is worth having
                print(f"# {chip} memory of {name}: {str(failure)[:200]!r}", flush=True)
                cells += ["-", "-"]
        print(f"# {chip} memory of {name}: {', '.join(map(str, cells))} MB", flush=True)
        rows.append((f"{chip} {name}", *cells))
    points = []
    for layout, what in enumerate(("[B, T, H, D]", "[B, H, T, D]")):
        peers = [value for (name, there), value in figures.items() if there == layout and name.startswith("splash")]
        if peers and ("ours", layout) in figures:
            label = f"{chip} D 128: temporary MB of both passes from {what} (goal: splash's least from there)"
            points.append(at_most(label, figures["ours", layout], min(peers)))
    return rows, points


def t5_memory(chip: str) -> list[Point]:
    """T5's bias at T 8192, D 64."""
    feature = next(feature for feature in added() if feature.name == "T5")
    found = compile_both(chip, ours(chip, options=feature.options), 64, feature.more)
    return [at_most(f"{chip} D 64: T5, temporary MB of both passes", found.temporary_mb, 300)]


def goals(chip: str, found: Mapping[str, list[Result]]) -> list[Point]:
    """Of head size 128, at the blocks of the table; the best of JAX's beside it."""
    points = []
    ours_there = at_table(found)
    for back, what in ((False, "forward"), (True, "backward")):
        if (cost := ours_there.passes[back]) is None:
            continue
        name = f"{chip} D 128: bundles per tile, whole {what} pass, blocks of the table"
        if chip in PEAK:
            name += f" (bound by peak flops: {PEAK[chip][back]} cycles)"
        figure = cost.bundles
        points.append(at_most(name, figure, GOALS[chip][back]) if chip in GOALS else Point(name, figure))
        for other in ("splash", "splash fused", "flash"):
            if (result := best(found.get(other, ()), back)) and (peer := result.passes[back]):
                points.append(Point(f"{chip} D 128: {what}, {other}'s best over ours", peer.bundles / figure))
    return points


PLAIN = ("chip, head size", "forward, 512 (MXU)", "best", "at", "backward, 512 (MXU)", "best", "at")
ADDED = ("added to the bundles of the plain kernel", "mean", "kinds of block")
MEMORY = ("temporary MB", "forward, BTHD", "both, BTHD", "forward, BHTD", "both, BHTD")


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
        more, figures = features(chip, 128, at_table(searched))
        print(flush=True)
        show(ADDED, more)
        points += figures
        more, figures = memory(chip, searched, options.quick)
        print(flush=True)
        show(MEMORY, more)
        points += figures
        points += t5_memory(chip) if chip == "v5e" else []
        write_json(options.json, points)
    print("\ncorner: a block that the diagonal cuts; it counts as a whole block of tiles, although half is left out.")
    print("asked: a block whose segments are compared pair by pair, as nearly all are where documents are packed.")
    print("Left out: what is done once for a row of blocks, or for a head (T5's tiles, and their gradient's sum).\n")
    show_points(points)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
