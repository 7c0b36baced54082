"""Compiles the TPU attention kernels without a TPU: forward and backward pass of every feature, for every chip.

    python benchmarks/install_libtpu.py .venv/libtpu    # as make test does
    python benchmarks/kernels_aot.py [--chips v5e,v6e] [--features causal,T5] [--block 256] [--json FILE]

Writes the matrix of pallas_kernels/AOT.md, as ``make kernels-aot`` does; with --chips or --features only those cells
change. --features takes beginnings of names. Blocks are those of the table and lengths are twice as long, so that every
kind of block occurs; with --block they are what is said and nothing is written. Compiling is the whole check: wrong
block shapes, unaligned slices and too much memory fail, no kernel runs. 5 to 60 seconds a cell. Exit code 1 where
something does not compile, 3 where libtpu is not installed.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import tpu_schedule  # noqa: E402  # before jax
from table import Point, at_most, write_json  # noqa: E402

MATRIX = HERE.parent / "pallas_kernels" / "AOT.md"
T5_8K, T5_16K = "T5 bidirectional, T 8192, D 64", "T5 bidirectional, T 16384, D 64"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of a call: batch, queries, keys, query heads, key heads, size of a query or key head, of a value head, dtype."""

    B: int
    L: int
    S: int
    H: int
    K: int
    N: int
    V: int
    dtype: str


@dataclasses.dataclass(frozen=True)
class Feature:
    """Something that ``attention`` can do.

    Attributes:
      options: makes the arguments beside queries, keys and values, with shapes in place of arrays.
      sizes: what is not as ``plain`` says.
    """

    options: Callable[[Sizes], dict[str, Any]]
    sizes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def features() -> dict[str, Feature]:
    """By name, which has no comma unless lengths follow."""
    return {**_masks(), **_biases(), **_sizes(), **_others()}


def _shape(dtype: str, *shape: int) -> Any:
    import jax

    return jax.ShapeDtypeStruct(shape, dtype)


def _segments(s: Sizes) -> Any:
    from pallas_kernels import Segments

    return Segments(_shape("int32", s.B, s.L), _shape("int32", s.B, s.S))


def _t5(s: Sizes, bidirectional: bool) -> Any:
    from pallas_kernels import T5Relative

    return T5Relative(_shape("float32", 32, s.H), bidirectional)


def _masks() -> dict[str, Feature]:
    from pallas_kernels import BigBird, Blocks, Causal, Chunked, Full, Ordered, Prefix, SlidingWindow

    def checkered(s: Sizes):
        count = -(-max(s.L, s.S) // 64)
        return Blocks(tuple(tuple((i + j) % 3 != 0 for j in range(count)) for i in range(count)), 64)

    def prefix_marks(s: Sizes):
        return (Causal() | Prefix(_shape("int32", s.B, s.S))) & _segments(s)

    def ordered(s: Sizes):
        return Ordered(_shape("int32", s.B, s.L), _shape("int32", s.B, s.S))

    masks = {
        "full": lambda s: Full(),
        "causal": lambda s: Causal(),
        "sliding window": lambda s: SlidingWindow(700, 0),
        "prefix lengths": lambda s: Causal() | Prefix(_shape("int32", s.B)),
        "prefix marks and segments": prefix_marks,
        "segments": _segments,
        "causal and segments": lambda s: Causal() & _segments(s),
        "chunked and causal": lambda s: Chunked(300) & Causal(),
        "blocks": checkered,
        "BigBird": lambda s: BigBird(size=64),
        "ordered": ordered,
    }
    return {name: Feature(lambda s, mask=mask: dict(mask=mask(s))) for name, mask in masks.items()}


def _biases() -> dict[str, Feature]:
    from pallas_kernels import Alibi, Causal, Dense, Full

    def t5_causal(s: Sizes):
        return dict(mask=Causal() & _segments(s), bias=_t5(s, False))

    def t5_offset(s: Sizes):
        return dict(mask=Causal(), bias=_t5(s, False), q_offset=_shape("int32"))

    def t5(s: Sizes):
        return dict(mask=Full(), bias=_t5(s, True))

    return {
        "T5 bidirectional": Feature(t5),
        "T5 causal and segments": Feature(t5_causal),
        "T5 causal and traced q_offset": Feature(t5_offset),
        "ALiBi": Feature(lambda s: dict(mask=Causal(), bias=Alibi(_shape("float32", s.H)))),
        "dense bias of each head": Feature(
            lambda s: dict(mask=Causal(), bias=Dense(_shape("float32", 1, s.H, s.L, s.S)))
        ),
        "dense bias of each row": Feature(
            lambda s: dict(mask=Full(), bias=Dense(_shape("bfloat16", s.B, 1, s.L, s.S)))
        ),
        T5_8K: Feature(t5, dict(B=2, L=8192, S=8192, H=8, K=8, N=64, V=64)),
        T5_16K: Feature(t5, dict(B=2, L=16384, S=16384, H=8, K=8, N=64, V=64)),
    }


def _sizes() -> dict[str, Feature]:
    from pallas_kernels import Causal, Full

    def causal(**sizes: Any) -> Feature:
        return Feature(lambda s: dict(mask=Causal()), sizes)

    return {
        "GQA": causal(H=4, K=2),
        "MQA": causal(H=4, K=1),
        **{f"head size {size}": causal(N=size, V=size) for size in (64, 80, 96, 192, 256)},
        "head size 192 and values 128": causal(N=192, V=128),
        "float32": causal(dtype="float32"),
        "ragged 1000 x 700": Feature(lambda s: dict(mask=Full()), dict(L=1000, S=700)),
        "ragged and causal 700 x 1000": causal(L=700, S=1000),
        "one head of T 65536": causal(B=1, L=65536, S=65536, H=1, K=1),
        "one head of T 131072": causal(B=1, L=131072, S=131072, H=1, K=1),
    }


def _others() -> dict[str, Feature]:
    from pallas_kernels import Causal, Dropout

    def dropout():
        return Dropout(0.1, _shape("int32"), _shape("int32"), _shape("int32"))

    def together(s: Sizes):
        return dict(
            mask=Causal() & _segments(s), bias=_t5(s, False), sinks=_shape("float32", s.H), soft_cap=30.0,
            dropout=dropout(), q_offset=_shape("int32"), return_lse=True,
        )  # fmt: skip

    def three(s: Sizes):
        return dict(mask=Causal(), sinks=_shape("float32", s.H), soft_cap=30.0, dropout=dropout())

    return {
        "soft cap": Feature(lambda s: dict(mask=Causal(), soft_cap=30.0)),
        "sinks": Feature(lambda s: dict(mask=Causal(), sinks=_shape("float32", s.H))),
        "dropout": Feature(lambda s: dict(mask=Causal(), dropout=dropout())),
        "log-sum-exp returned": Feature(lambda s: dict(mask=Causal(), return_lse=True)),
        "T5 causal and segments of GQA": Feature(_biases()["T5 causal and segments"].options, dict(H=4, K=2)),
        "sinks soft cap and dropout": Feature(three),
        "head size 80 and ragged": Feature(lambda s: dict(mask=Causal()), dict(N=80, V=80, L=1000, S=700)),
        "all together and GQA": Feature(together, dict(H=4, K=2)),
    }


def both_ways(feature: Feature, chip: str, block: int) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The forward and backward pass, to be compiled, and the shapes of its arguments.

    Args:
      feature: what to compile.
      chip: for which.
      block: size of blocks; 0: of the table.
    """
    import jax

    from pallas_kernels import BlockSizes, attention
    from pallas_kernels.blocks import TPU

    length = 2 * (block or max(TPU[chip].queries, TPU[chip].keys))
    plain = dict(B=2, L=length, S=length, H=2, K=2, N=128, V=128, dtype="bfloat16")
    s = Sizes(**{**plain, **feature.sizes})
    blocks = BlockSizes(block, block, block, block, chip=chip)
    options = feature.options(s)
    static = {name: options.pop(name) for name in ("soft_cap", "return_lse") if name in options}
    trained = {name: options.pop(name) for name in ("bias", "sinks") if name in options}
    q, k = _shape(s.dtype, s.B, s.L, s.H, s.N), _shape(s.dtype, s.B, s.S, s.K, s.N)
    v = _shape(s.dtype, s.B, s.S, s.K, s.V)
    given: Any = _shape(s.dtype, s.B, s.L, s.H, s.V)
    if static.get("return_lse"):
        given = given, _shape("float32", s.B, s.H, s.L)

    def run(q, k, v, trained, options, given):
        def forward(q, k, v, trained):
            return attention(q, k, v, **trained, **options, **static, backend="tpu", blocks=blocks)

        out, pull = jax.vjp(forward, q, k, v, trained)
        return out, pull(given)

    return run, (q, k, v, trained, options, given)


def _work(chip: str, block: int, names: list[str]) -> None:
    """In a process of its own, as the compiler may end it: a line of JSON before and after each feature."""
    every = features()
    for name in names:
        print(json.dumps({"begun": name}), flush=True)
        try:
            found = tpu_schedule.compile_for(chip, *both_ways(every[name], chip, block))
            told = {"megabytes": found.temporary_mb, "seconds": found.seconds}
        except Exception as failure:  # the rest of the matrix is worth having
            told = {"error": f"{type(failure).__name__}: {failure}"}
        print(json.dumps({"name": name, **told}), flush=True)


def measure(chip: str, block: int, names: list[str]) -> Iterator[dict[str, Any]]:
    """For each feature its name with megabytes and seconds, or with an error."""
    left = list(names)
    while left:
        command = [sys.executable, str(HERE / "kernels_aot.py"), "--worker", chip, "--block", str(block), "--features"]
        with tempfile.TemporaryFile("w+") as errors:
            # one argument for all names, as some have commas
            process = subprocess.Popen([*command, "|".join(left)], stdout=subprocess.PIPE, stderr=errors, text=True)
            assert process.stdout is not None
            begun = left[0]
            for line in process.stdout:
                if not line.startswith("{"):
                    continue  # what libtpu says
                told = json.loads(line)
                begun = told.get("begun", begun)
                if "name" in told:
                    left.remove(told["name"])
                    yield told
            if process.wait() and left:
                errors.seek(0)
                left.remove(begun)
                yield {"name": begun, "error": f"the compiler ended the process: {errors.read()[-1500:].strip()}"}


def cell(told: dict[str, Any]) -> str:
    if "error" in told:
        words = re.sub(r"\s+", " ", told["error"]).replace("|", "/")
        return f"no: {words[:120]}"
    return f"yes, {told['megabytes']:.3g} MB, {told['seconds']:.0f} s"


HEADING = """# What compiles for which TPU

Written by `make kernels-aot` (benchmarks/kernels_aot.py) on a CPU machine; nothing ran on a chip. Each cell is a
forward and a backward pass with the blocks of the table: whether it compiles, its temporary memory, the time it took.
Unless a row says otherwise: bfloat16, head size 128, 2 heads, batch 2, causal, a length of two blocks. T 8192 and
T 16384: 8 heads. `-`: not compiled yet.

"""


def read_matrix(path: Path) -> dict[tuple[str, str], str]:
    """The cells of a file, by row and chip."""
    rows = [line.strip("| \n").split(" | ") for line in path.read_text().splitlines()] if path.exists() else []
    rows = [row for row in rows if len(row) > 1]
    if not rows:
        return {}
    return {(row[0], chip): text for row in rows[1:] for chip, text in zip(rows[0][1:], row[1:], strict=True)}


def write_matrix(path: Path, cells: Mapping[tuple[str, str], str]) -> None:
    chips = list(tpu_schedule.TOPOLOGIES)
    lines = [f"| feature | {' | '.join(chips)} |", f"|{'---|' * (len(chips) + 1)}"]
    for row in (*features(), LINEAR, WITH):
        lines.append(f"| {' | '.join([row, *(cells.get((row, chip), '-') for chip in chips)])} |")
    path.write_text(HEADING + "\n".join(lines) + "\n")


LINEAR, WITH = "temporary memory of T 16384 over T 8192", "last compiled with"


def _report(chips: list[str], names: list[str], block: int) -> tuple[list[Point], list[str]]:
    """(figures, failures); prints each cell, and writes the matrix after each where blocks are the table's."""
    points, failures, cells = [], [], read_matrix(MATRIX)
    for chip in chips:
        found = {}
        for told in measure(chip, block, names):
            name = told["name"]
            print(f"{chip:6} {name}: {cell(told)}", flush=True)
            if "error" in told:
                failures.append(f"{chip}, {name}: {told['error'][:3000]}")
            else:
                found[name] = told["megabytes"]
                points.append(Point(f"{name}, {chip}: temporary MB, forward and backward", told["megabytes"]))
            cells[name, chip] = cell(told)
            cells[WITH, chip] = f"{tpu_schedule.versions()}, {datetime.date.today()}"
            if T5_8K in found and name == T5_16K and name in found:
                ratio = found[T5_16K] / found[T5_8K]
                cells[LINEAR, chip] = f"{ratio:.2f}"
                # 2 if linear, 4 if quadratic; more than 2 where a part of the shorter one's stays on the chip
                points.append(at_most(f"{LINEAR}, {chip}", ratio, 3))
            if not block:
                write_matrix(MATRIX, cells)
    return points, failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chips", default=",".join(tpu_schedule.TOPOLOGIES), help="separated by commas")
    parser.add_argument("--features", default="", help="beginnings of names, separated by commas; empty: all")
    parser.add_argument("--block", type=int, default=0, help="size of blocks; 0: the table's")
    parser.add_argument("--json", metavar="FILE", help="file to write the figures to")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--names", action="store_true", help="print the names of the features and do nothing")
    options = parser.parse_args()
    if options.names:
        print("\n".join(features()))
        return 0
    tpu_schedule.require_libtpu()
    if options.worker:
        _work(options.worker, options.block, options.features.split("|"))
        return 0
    wanted = tuple(options.features.split(","))
    names = [name for name in features() if name.startswith(wanted)]
    if not names:
        parser.error(f"--features {options.features}: allowed: {'; '.join(features())}")
    points, failures = _report(options.chips.split(","), names, options.block)
    write_json(options.json, points)
    print(f"\n{len(failures)} of {len(names) * len(options.chips.split(','))} cells failed")
    print("\n".join(failures))
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
