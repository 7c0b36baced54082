"""The GPU kernels: numbers in the interpreter against a float64 definition, lowering for CUDA, and what XLA's
ahead-of-time compiler says for an H100 where its plugin is installed. Nothing here runs on a GPU."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import definition
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import gpu
from pallas_kernels.attention import attention
from pallas_kernels.biases import Alibi, Dense, T5Relative, alibi_slopes, relative_buckets
from pallas_kernels.blocks import BlockSizes
from pallas_kernels.dropout import Dropout, kept, stream
from pallas_kernels.masks import (
    BigBird,
    Blocks,
    Causal,
    Chunked,
    Full,
    Mask,
    Ordered,
    Prefix,
    Segments,
    SlidingWindow,
)
from pallas_kernels.rules import Slots, dense

BENCHMARK = Path(__file__).parent.parent.parent / "benchmarks" / "kernels_gpu.py"
B, L, S = 2, 40, 56  # neither is a multiple of a block of 16
# Compiling is what takes the time here, and the interpreter's loops do not need LLVM's best.
QUICK = {"xla_backend_optimization_level": 0}
NUMBERS = np.random.default_rng(3)
SEGMENTS = [np.sort(NUMBERS.integers(0, 4, (B, n)), axis=1).astype(np.int32) for n in (L, S)]
ORDERS = [NUMBERS.integers(-9, 9, (B, n)).astype(np.int32) for n in (L, S)]
PREFIX = (np.arange(S)[None] < np.array([[5], [40]])).astype(np.int32)


@dataclasses.dataclass
class Case:
    """A call, and whether it is one of the few that every run of the tests makes."""

    mask: Mask = dataclasses.field(default_factory=Full)
    bias: str = ""
    sizes: tuple[int, int] = (32, 16)
    heads: tuple[int, int] = (4, 2)
    soft_cap: float = 0.0
    sinks: bool = False
    rate: float = 0.0
    offset: int = 0
    traced: bool = False
    dtype: Any = jnp.float32
    blocks: BlockSizes | None = BlockSizes(16, 16, 16, 16)  # noqa: RUF009
    quick: bool = False


def packed() -> Segments:
    return Segments(*(jnp.asarray(x) for x in SEGMENTS))


CASES = {
    "t5, causal, grouped": Case(Causal(), "t5", quick=True),
    "alibi, packed, capped": Case(Causal() & packed(), "alibi", soft_cap=5.0, quick=True),
    "dense shared, prefix, sinks": Case(Causal() | Prefix(jnp.asarray(PREFIX)), "dense 1 1", sinks=True, quick=True),
    "t5 one way, blocks, traced offset": Case(
        Blocks(NUMBERS.random((20, 20)) < 0.4, 3), "t5 one way", offset=7, traced=True, quick=True
    ),
    "dropout, one key head, padded head": Case(Causal(), rate=0.3, heads=(2, 1), sizes=(80, 72), offset=16, quick=True),
    "bfloat16, window": Case(SlidingWindow(20, 3), "dense 2 4", dtype=jnp.bfloat16, quick=True),
    "full": Case(),
    "causal from a traced column": Case(Causal(), offset=16, traced=True),
    "chunked": Case(Chunked(24) & Causal()),
    "ordered": Case(Ordered(*(jnp.asarray(x) for x in ORDERS)), sinks=True),
    "bigbird": Case(BigBird(size=4, random=1, globals=1)),
    "blocks of one, two words": Case(Blocks(NUMBERS.random((60, 60)) < 0.4, 1), blocks=BlockSizes(16, 64, 16, 64)),
    "rows without a key, t5": Case(Segments(jnp.asarray(SEGMENTS[0]), jnp.ones((B, S), jnp.int32)), "t5"),
    "t5 one way, far": Case(Causal(), "t5 one way", offset=30),
    "dense one head": Case(Causal(), "dense 2 1"),
    "dense one row": Case(Causal(), "dense 1 4"),
    "everything": Case(Causal() & packed(), "t5", soft_cap=3.0, sinks=True, rate=0.2),
    "unequal blocks": Case(Causal(), "t5", blocks=BlockSizes(32, 16, 16, 32)),
    "table of blocks": Case(Causal(), "t5", blocks=None),
    "bfloat16, t5": Case(Causal(), "t5", dtype=jnp.bfloat16, soft_cap=9.0),
    **{f"head {n}": Case(Causal(), heads=(2, 1), sizes=(n, n)) for n in (64, 80, 96, 128, 192, 256)},
    "head 192, value 128": Case(Causal(), heads=(2, 1), sizes=(192, 128)),
    "head 128, value 8": Case(Causal(), heads=(2, 1), sizes=(128, 8)),
}


def _bias(name: str, heads: int, numbers: np.random.Generator):
    if name.startswith("t5"):
        return T5Relative(jnp.asarray(numbers.normal(size=(8, heads)), jnp.float32), name == "t5", 16)
    if name == "alibi":
        return Alibi(jnp.asarray(alibi_slopes(heads)))
    if name:
        shape = (*map(int, name.split()[1:]), L, S)
        return Dense(jnp.asarray(numbers.normal(size=shape), jnp.float32))
    return None


def _bias_gradient(bias, of_scores_BHLS: np.ndarray, offset: int) -> np.ndarray:
    distance_LS = np.arange(S, dtype=np.int32)[None] - np.arange(L, dtype=np.int32)[:, None] - offset
    if isinstance(bias, T5Relative):
        count = bias.table_KH.shape[0]
        buckets_LS = relative_buckets(jnp.asarray(distance_LS), bias.bidirectional, count, bias.max_distance)
        return definition.of_table(of_scores_BHLS, buckets_LS, count)
    if isinstance(bias, Alibi):
        return definition.of_slopes(of_scores_BHLS, distance_LS)
    return definition.of_dense(of_scores_BHLS, bias.array.shape)


def _kept(dropout: Dropout, heads: int, offset: int) -> np.ndarray:
    row, head = (jnp.arange(count, dtype=jnp.int32) + first for count, first in ((B, 1), (heads, 2)))
    streams = stream(dropout.seed, row[:, None], head[None])[:, :, None, None]
    query, key = (jnp.arange(n, dtype=jnp.int32) for n in (L, S))
    return np.asarray(kept(dropout.rate, streams, (query + offset)[None, None, :, None], key[None, None, None, :]))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if case.quick else [pytest.mark.slow]) for name, case in CASES.items()]
)
def test_values_and_gradients_are_those_of_the_definition(name):
    case, numbers = CASES[name], np.random.default_rng(11)
    (H, K), (N, V) = case.heads, case.sizes
    shapes = ((B, L, H, N), (B, S, K, N), (B, S, K, V), (B, L, H, V))
    q, k, v, d_out = (jnp.asarray(numbers.normal(size=shape), case.dtype) for shape in shapes)
    d_lse = jnp.asarray(numbers.normal(size=(B, H, L)), jnp.float32)
    bias = _bias(case.bias, H, numbers)
    sinks = jnp.asarray(numbers.normal(size=H), jnp.float32) if case.sinks else None
    dropout = Dropout(case.rate, jnp.int32(5), 1, 2) if case.rate else None

    def run(q, k, v, bias, sinks, mask, offset, gradients):
        def forward(q, k, v, bias, sinks):
            return attention(
                q, k, v, mask=mask, bias=bias, sinks=sinks, soft_cap=case.soft_cap, dropout=dropout, backend="gpu",
                q_offset=offset if case.traced else case.offset, blocks=case.blocks, return_lse=True, interpret=True,
            )  # fmt: skip

        out, pull = jax.vjp(forward, q, k, v, bias, sinks)
        return out, pull(gradients)

    arguments = (q, k, v, bias, sinks, case.mask, jnp.int32(case.offset), (d_out, d_lse))
    (out, lse), (dq, dk, dv, d_bias, d_sinks) = jax.jit(run).lower(*arguments).compile(QUICK)(*arguments)

    slots = Slots(L, S, case.offset)
    columns = jnp.arange(L, dtype=jnp.int32) + case.offset, jnp.arange(S, dtype=jnp.int32)
    seen = np.asarray(dense(case.mask.rule(slots), slots, *columns))
    problem = definition.Problem(
        q, k, v, seen, N**-0.5, case.soft_cap, None if bias is None else bias.expand(case.offset, L, S), sinks,
        None if dropout is None else _kept(dropout, H, case.offset), case.rate,
    )  # fmt: skip
    want_out, want_lse = definition.attention(problem)
    want = definition.gradients(problem, d_out, np.where(np.isfinite(want_lse), d_lse, 0))
    np.testing.assert_array_equal(np.isfinite(lse), np.isfinite(want_lse))
    finite = np.isfinite(want_lse)
    assert definition.error(np.asarray(lse)[finite], want_lse[finite]) <= 1e-5
    pairs = {"out": (out, want_out), "dq": (dq, want.q), "dk": (dk, want.k), "dv": (dv, want.v)}
    if bias is not None:
        pairs["d_bias"] = jax.tree.leaves(d_bias)[0], _bias_gradient(bias, want.scores, case.offset)
    if sinks is not None:
        pairs["d_sinks"] = d_sinks, want.sinks
    errors = {part: definition.error(*pair) for part, pair in pairs.items()}
    assert max(errors.values()) <= (1e-5 if case.dtype == jnp.float32 else 1e-2), errors
    blind = ~np.broadcast_to(seen[:, None], (B, H, L, S)).any(-1).transpose(0, 2, 1)
    assert not np.asarray(out, np.float32)[blind].any() and not np.asarray(dq, np.float32)[blind].any()


def test_the_cases_hold_rows_without_a_key_far_tiles_and_ragged_ends():
    assert (SEGMENTS[0] == 0).any(1).all()  # so that "rows without a key" is one
    assert L % 16 and S % 16
    assert S - 16 > 16 + 16  # a tile of which all distances are beyond the 16 that the T5 biases above reach


@pytest.mark.parametrize(("offset", "pairs"), [(0, 16 * 16 * (1 + 2)), (8, 16 * 16 * (2 + 3))])
def test_the_cost_counts_the_tiles_that_are_visited(offset, pairs):
    q, k = (jax.ShapeDtypeStruct((1, n, 2, 16), jnp.float32) for n in (32, 48))

    def run(q, k, v):
        blocks = BlockSizes(16, 16)
        return attention(q, k, v, mask=Causal(), q_offset=offset, backend="gpu", blocks=blocks, interpret=True)

    [cost] = _costs(jax.make_jaxpr(run)(q, k, k).jaxpr)
    assert cost.flops == 2 * 2 * pairs * (16 + 16) and cost.transcendentals == 2 * pairs


def _costs(jaxpr) -> list:
    """Cost estimates of all kernels in a jaxpr."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            found.append(equation.params["cost_estimate"])
            continue
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                found += _costs(inner)
    return found


def test_what_is_refused_names_the_argument_and_who_can():
    q, v = (jax.ShapeDtypeStruct((1, 16, 2, n), jnp.float32) for n in (512, 64))
    assert gpu.refusal(v, v, v) == ""
    assert gpu.refusal(q, q, v).startswith("q and k: head size 512")
    assert gpu.refusal(q, q, v).endswith("backend='xla'")
    assert gpu.refusal(v, v, q).startswith("v: head size 512")
    none = jax.ShapeDtypeStruct((1, 0, 2, 64), jnp.float32)
    assert gpu.refusal(v, none, none).startswith("k: shape (1, 0, 2, 64) is empty")
    x = jnp.ones((1, 16, 2, 16))
    with pytest.raises(ValueError, match="blocks: got 24 keys for backend 'gpu'; allowed: powers of 2 from 16"):
        attention(x, x, x, mask=Full(), backend="gpu", blocks=BlockSizes(16, 24), interpret=True)


def _benchmark():
    spec = importlib.util.spec_from_file_location("kernels_gpu", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FEATURES = list(_benchmark().features())
QUICK_FEATURES = ("all", "dense shared", "bigbird")
HEADS = ((80, 80), (96, 96), (192, 128), (256, 256), (72, 8))


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")  # from JAX 0.12 on
@pytest.mark.parametrize(
    ("feature", "sizes"),
    [pytest.param(x, (64, 64), marks=[] if x in QUICK_FEATURES else [pytest.mark.slow]) for x in FEATURES]
    + [pytest.param("ragged", x, marks=pytest.mark.slow) for x in HEADS],
)
def test_the_kernels_lower_for_cuda(feature, sizes):
    benchmark = _benchmark()
    run, arguments = benchmark.both_ways(
        benchmark.features()[feature](), *sizes, lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
    )
    # JAX warrants no compatibility of the calls of Triton kernels; this one is not kept
    known = [jax.export.DisabledSafetyCheck.custom_call(x) for x in ("__gpu$xla.gpu.triton", "triton_kernel_call_ffi")]
    try:
        text = jax.export.export(jax.jit(run), platforms=["cuda"], disabled_checks=known)(*arguments).mlir_module()
    except RuntimeError as error:  # from JAX 0.12 on
        if "No supported GPU devices found" in str(error):
            pytest.skip("this JAX compiles Triton kernels while it lowers them, which takes a GPU")
        raise
    assert [x for x in benchmark.KERNELS if f'name = "{x}"' not in text] == []


@pytest.mark.slow
@pytest.mark.parametrize("head", ["64", "128"])
def test_the_kernels_compile_for_an_h100_without_spills(head, tmp_path):
    if reason := _benchmark().missing():
        pytest.skip(reason)
    if shutil.which("ptxas") is None:
        pytest.skip("there is no ptxas on PATH")
    file = tmp_path / "points.json"
    command = [sys.executable, str(BENCHMARK), "--chips", "h100", "--heads", head, "--json", str(file)]
    done = subprocess.run([*command, "--features", "causal,segments,t5"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    points = json.loads(file.read_text())
    assert len(points) == 9 and all(point["met"] for point in points), done.stdout
