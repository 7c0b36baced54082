"""The TPU kernels, interpreted, are what the definition in float64 says, forward and backward, whatever is joined; they
touch nothing that they should not, and their cost is told truly."""

from __future__ import annotations

import functools

import definition
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from definition import draw, error
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from tiny_models import compiled

import pallas_kernels
from pallas_kernels import (
    Alibi,
    BigBird,
    Blocks,
    BlockSizes,
    Causal,
    Chunked,
    Dense,
    Dropout,
    Full,
    Ordered,
    Prefix,
    Segments,
    SlidingWindow,
    T5Relative,
    attention,
)
from pallas_kernels.biases import relative_buckets
from pallas_kernels.blocks import TPU, TpuBlocks
from pallas_kernels.dropout import kept, stream
from pallas_kernels.rules import Slots, dense

B, H = 2, 2
SMALL = BlockSizes(128, 128, 128, 128)
NUMBERS = np.random.default_rng(3)
TABLE = Blocks(tuple(map(tuple, (NUMBERS.random((20, 20)) < 0.3).tolist())), 32)


@pytest.fixture(autouse=True)
def _no_implicit_ranks():
    with jax.numpy_rank_promotion("raise"):
        yield


def numbers(length: int, high: int, low: int = 0) -> jax.Array:
    """Sorted int32 [B, length], other ones for another length."""
    return jnp.asarray(np.sort(np.random.default_rng(length).integers(low, high, (B, length)), axis=1), jnp.int32)


def segments(L: int, S: int, high: int = 4) -> Segments:
    """Query segment ``high - 1`` meets no key: rows without any."""
    return Segments(numbers(L, high), numbers(S, high - 1))


def ordered(L: int, S: int) -> Ordered:
    draw_order = np.random.default_rng(1)
    return Ordered(*(jnp.asarray(draw_order.integers(-99, 99, (B, n)), jnp.int32) for n in (L, S)))


MASKS = {
    "full": lambda L, S: Full(),
    "causal": lambda L, S: Causal(),
    "window": lambda L, S: SlidingWindow(70, 20),
    "causal & window": lambda L, S: Causal() & SlidingWindow(150, 0),
    "segments": segments,
    "causal & segments": lambda L, S: Causal() & segments(L, S),
    "chunked": lambda L, S: Chunked(100),
    "causal | prefix": lambda L, S: Causal() | Prefix(jnp.asarray([5, 170], jnp.int32)),
    "(causal | marks) & segments": lambda L, S: (Causal() | Prefix(numbers(S, 2))) & segments(L, S),
    "ordered": ordered,
    "blocks": lambda L, S: TABLE,
    "bigbird": lambda L, S: BigBird(window=1, globals=1, random=1, size=64),
}
BIASES = {
    "none": lambda L, S: None,
    "t5": lambda L, S: T5Relative(jnp.asarray(draw((32, H), 5)), True),
    "t5, near": lambda L, S: T5Relative(jnp.asarray(draw((8, H), 6)), False, 20),
    "alibi": lambda L, S: Alibi(jnp.asarray([0.5, 0.06])),
    "dense": lambda L, S: Dense(jnp.asarray(draw((B, H, L, S), 8))),
    "dense, one row": lambda L, S: Dense(jnp.asarray(draw((1, H, L, S), 9))),
    "dense, one": lambda L, S: Dense(jnp.asarray(draw((1, 1, L, S), 10))),
}


def dense_bias(bias, L: int, S: int, offset: int):
    """([1 or B, 1 or H, L, S], gradient of the arrays from that of the scores), pair by pair."""
    distance = np.arange(S)[None, :] - np.arange(L)[:, None] - offset
    if isinstance(bias, T5Relative):
        count = bias.table_KH.shape[0]
        buckets = np.asarray(relative_buckets(jnp.asarray(distance), bias.bidirectional, count, bias.max_distance))
        values = np.asarray(bias.table_KH)[buckets].transpose(2, 0, 1)[None]
        return values, lambda ds: definition.of_table(ds, buckets, count)
    if isinstance(bias, Alibi):
        values = -np.asarray(bias.slopes_H)[None, :, None, None] * np.abs(distance)[None, None]
        return values, lambda ds: definition.of_slopes(ds, distance)
    if bias is None:
        return None, lambda ds: None
    return np.asarray(bias.array), lambda ds: definition.of_dense(ds, bias.array.shape)


def run(arguments, blocks, interpret, **options):
    """(out, lse) and the gradients of q, k, v, bias, sinks for given gradients of both."""
    *arrays, dout, dlse = arguments

    def call(q, k, v, bias, sinks):
        return attention(
            q, k, v, bias=bias, sinks=sinks, **options, backend="tpu", blocks=blocks, interpret=interpret,
            return_lse=True,
        )  # fmt: skip

    results, pull = jax.vjp(call, *arrays)
    return results, pull((dout.astype(results[0].dtype), jnp.where(results[1] == -jnp.inf, 0.0, dlse)))


def check(
    mask: str, bias: str = "none", *, L=300, S=300, K=H, N=16, V=16, blocks=SMALL, offset=0, traced=False, soft_cap=0.0,
    with_sinks=False, rate=0.0, limit=1e-5, interpret=True, rows_without_keys=False,
):  # fmt: skip
    """Values and gradients of one call against the definition."""
    mask_made, bias_made = MASKS[mask](L, S), BIASES[bias](L, S)
    q, k, v, dout, dlse = definition.inputs(B, L, S, H, K, N, V, seed=N)
    sinks = draw((H,), 3) if with_sinks else None
    dropout = Dropout(rate, 17) if rate else None
    options = dict(mask=mask_made, scale=0.3, soft_cap=soft_cap, dropout=dropout)
    arguments = q, k, v, bias_made, sinks, dout, dlse
    if traced:
        got = compiled(lambda a, o: run(a, blocks, interpret, **options, q_offset=o))(arguments, jnp.int32(offset))
    else:
        got = compiled(lambda a: run(a, blocks, interpret, **options, q_offset=offset))(arguments)
    slots = Slots(L, S, offset)
    allowed = np.asarray(dense(mask_made.rule(slots), slots, jnp.arange(L) + offset, jnp.arange(S)))
    bits = None
    if dropout is not None:
        column_L1, column_1S = jnp.arange(L)[:, None] + offset, jnp.arange(S)[None, :]
        bits = np.asarray(
            [[kept(rate, jnp.full((1, 1), stream(17, b, h)), column_L1, column_1S) for h in range(H)] for b in range(B)]
        )
    values, bias_gradient = dense_bias(bias_made, L, S, offset)
    problem = definition.Problem(q, k, v, allowed, 0.3, soft_cap, values, sinks, bits, rate)
    (out, lse), (dq, dk, dv, dbias, dsinks) = got
    wanted_out, wanted_lse = definition.attention(problem)
    empty = np.isneginf(wanted_lse)
    assert not rows_without_keys or empty.any()
    wanted = definition.gradients(problem, dout, np.where(empty, 0.0, dlse))
    np.testing.assert_array_equal(np.isneginf(lse), empty)
    pairs = {
        "out": (out, wanted_out), "lse": (np.where(empty, 0.0, lse), np.where(empty, 0.0, wanted_lse)),
        "q": (dq, wanted.q), "k": (dk, wanted.k), "v": (dv, wanted.v),
    }  # fmt: skip
    if bias_made is not None:
        pairs["bias"] = jax.tree.leaves(dbias)[0], bias_gradient(wanted.scores)
    if with_sinks:
        pairs["sinks"] = dsinks, wanted.sinks
    errors = {name: error(*pair) for name, pair in pairs.items()}
    assert max(errors.values()) < limit, errors
    nothing = empty.transpose(0, 2, 1)
    assert not np.asarray(out)[nothing].any() and not np.asarray(dq)[nothing].any()


CASES = [
    ("full", "t5", dict(L=200, S=640, blocks=BlockSizes(128, 256, 256, 128), offset=100)),
    ("causal", "none", dict(K=1, V=24, with_sinks=True, soft_cap=2.0)),
    ("window", "alibi", dict(L=130, S=260)),
    ("causal & window", "t5, near", dict(L=400, S=400)),
    ("segments", "dense", dict(K=1, rows_without_keys=True)),
    ("causal & segments", "t5", dict(K=1, rate=0.3, rows_without_keys=True)),
    ("chunked", "none", dict(L=90, S=300)),
    ("causal | prefix", "dense, one row", {}),
    ("(causal | marks) & segments", "t5", dict(rows_without_keys=True)),
    ("ordered", "none", dict(rate=0.2, with_sinks=True)),
    ("blocks", "dense, one", {}),
    ("bigbird", "t5, near", dict(L=250, blocks=BlockSizes(256, 128, 128, 256, "v6e"))),
    ("causal", "t5", dict(L=200, S=400, offset=150, traced=True)),
    ("blocks", "alibi", dict(L=200, S=400, offset=100, traced=True)),
]
QUICK = (0, 1, 5, 8, 11)


@pytest.mark.parametrize(
    "mask, bias, options",
    [pytest.param(*case, marks=[] if n in QUICK else [pytest.mark.slow]) for n, case in enumerate(CASES)],
)
def test_against_the_definition(mask, bias, options):
    check(mask, bias, **options)


@pytest.mark.slow
@pytest.mark.parametrize("chip", ["v4", "v5e", "v6e"])
@pytest.mark.parametrize("size", [512, 0])
def test_the_forms_of_each_generation(chip, size):
    """Blocks so large that they are divided; the diagonal's are cut."""
    check("causal", "t5", L=1100, S=1100, blocks=BlockSizes(size, size, size, size, chip))


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(64, 64), (80, 80), (96, 96), (128, 128), (192, 128), (256, 256)])
def test_sizes_of_heads(sizes):
    check("causal & segments", N=sizes[0], V=sizes[1], K=1)


@pytest.mark.parametrize(
    "mask, bias", [("causal & segments", "t5"), pytest.param("full", "none", marks=pytest.mark.slow)]
)
def test_two_passes_where_dq_does_not_fit(monkeypatch, mask, bias):
    monkeypatch.setattr(TpuBlocks, "fits_fused", lambda *_: False)
    check(mask, bias, K=1, soft_cap=3.0)


@pytest.mark.slow
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    st.sampled_from(sorted(MASKS)), st.sampled_from(sorted(BIASES)), st.integers(1, 420), st.integers(1, 420),
    st.sampled_from([1, 2]), st.sampled_from([0.0, 1.5]), st.booleans(), st.sampled_from([0.0, 0.25]),
    st.sampled_from([0, 3, 130]),
    st.sampled_from([SMALL, BlockSizes(256, 128, 128, 256), BlockSizes(128, 384, 384, 128)]),
)  # fmt: skip
def test_any_combination(mask, bias, L, S, K, soft_cap, with_sinks, rate, offset, blocks):
    offset = min(offset, max(0, 32 * len(TABLE.blocks) - L))
    check(
        mask, bias, L=L, S=S, K=K, soft_cap=soft_cap, with_sinks=with_sinks, rate=rate, offset=offset, blocks=blocks,
        limit=2e-5,
    )  # fmt: skip


@pytest.mark.parametrize("chip", ["v5e", pytest.param("v6e", marks=pytest.mark.slow)])
def test_bfloat16_is_as_exact_as_jax(chip):
    """At most twice the error of JAX's own attention in the same type."""
    q, k, v, dout, _ = definition.inputs(B, 384, 384, H, H, 64, 64)
    low = [jnp.asarray(x, jnp.bfloat16) for x in (q, k, v, dout)]
    allowed = np.tril(np.ones((384, 384), bool))[None]
    exact = [np.asarray(x, np.float64) for x in low]
    problem = definition.Problem(*exact[:3], allowed, 0.125)
    wanted = definition.attention(problem)[0], *definition.gradients(problem, exact[3])[:3]

    def both(function):
        def ways(q, k, v, dout):
            out, pull = jax.vjp(function, q, k, v)
            return out, *pull(dout)

        try:
            return jax.block_until_ready(compiled(ways)(*low))
        except jax.errors.JaxRuntimeError as error:  # of XLA's CPU backend in JAX 0.12
            if "Unsupported element type" in str(error):
                pytest.skip(f"this XLA cannot interpret it: {error}")
            raise

    kernel = functools.partial(attention, backend="tpu", interpret=True, blocks=BlockSizes(chip=chip))
    ours = both(functools.partial(kernel, mask=Causal(), scale=0.125))
    with jax.numpy_dtype_promotion("standard"):
        theirs = both(functools.partial(jax.nn.dot_product_attention, is_causal=True, scale=0.125))
    for name, x, y, z in zip(("out", "q", "k", "v"), ours, theirs, wanted, strict=True):
        rms = [float(np.sqrt(np.mean((np.asarray(a, np.float64) - z) ** 2))) for a in (x, y)]
        assert rms[0] <= 2 * rms[1], (name, rms)


BIG = BlockSizes(256, 256, 256, 256)  # so that the diagonal's blocks are cut


@pytest.mark.parametrize(
    "mask, bias, options",
    [
        ("causal", "dense, one row", dict(L=300, S=256, blocks=BIG)),
        pytest.param("causal & segments", "dense", dict(blocks=BIG, rows_without_keys=True), marks=pytest.mark.slow),
        pytest.param("chunked", "none", dict(L=300, S=256, blocks=BIG), marks=pytest.mark.slow),
        pytest.param("causal | prefix", "alibi", dict(blocks=BIG, rate=0.2), marks=pytest.mark.slow),
    ],
)
def test_blocks_that_are_cut(mask, bias, options):
    check(mask, bias, **options)


@pytest.mark.parametrize(
    "size", [2, pytest.param(48, marks=pytest.mark.slow), pytest.param(160, marks=pytest.mark.slow)]
)
def test_blocks_of_any_size(monkeypatch, size):
    count = -(-260 // size)
    table = Blocks(tuple(map(tuple, (np.random.default_rng(size).random((count, count)) < 0.5).tolist())), size)
    monkeypatch.setitem(MASKS, "any", lambda L, S: table)
    check("any", L=260, S=260, blocks=BIG)


def test_a_block_whose_sub_blocks_are_all_forbidden(monkeypatch):
    monkeypatch.setitem(MASKS, "none", lambda L, S: Causal() & Blocks(((False, True), (False, False)), 128))
    check("none", L=256, S=256, blocks=BIG, rows_without_keys=True)


@pytest.mark.parametrize("backend", [*(pytest.param(x, marks=pytest.mark.slow) for x in ("tpu", "gpu")), "xla"])
def test_a_large_bias_and_an_infinite_gradient_of_rows_without_keys(backend):
    """A constant of a head changes no softmax; nothing comes of a row that sees nothing, whatever comes in."""
    L = 40
    q, k, v, dout, _ = (jnp.asarray(x) for x in definition.inputs(B, L, L, H, H, 8, 8))
    table = jnp.asarray(draw((8, H), 2))
    seen = Segments(jnp.asarray([[1] * (L - 3) + [2] * 3] * B), jnp.ones((B, L), jnp.int32))

    def gradients(table, mask):
        def total(q, k, v, table):
            out, lse = attention(
                q, k, v, mask=mask, bias=T5Relative(table, True, 12), backend=backend, return_lse=True, interpret=True
            )
            return jnp.sum(out * dout) + jnp.sum(jnp.exp(lse - jax.lax.stop_gradient(lse)) * 0.1)

        return compiled(jax.grad(total, argnums=(0, 1, 2, 3)))(q, k, v, table)

    for one, other in zip(gradients(table, Full()), gradients(table + 100.0, Full()), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-4)
    for gradient in gradients(table, seen):
        assert np.all(np.isfinite(gradient))


STRICT = pltpu.InterpretParams(
    detect_races=True, num_cores_or_threads=2, out_of_bounds_reads="raise", uninitialized_memory="nan"
)


@pytest.mark.slow
@pytest.mark.parametrize("mask, bias, fused", [("causal & segments", "t5", True), ("causal", "dense, one", False)])
def test_no_races_and_nothing_out_of_bounds(monkeypatch, capfd, mask, bias, fused):
    if not fused:
        monkeypatch.setattr(TpuBlocks, "fits_fused", lambda *_: False)
    check(mask, bias, L=200, S=200, interpret=STRICT)
    assert "RACE DETECTED" not in "".join(capfd.readouterr())


def test_a_race_would_be_seen(capfd):
    def kernel(x, out):
        out[...] = jnp.where(pl.program_id(0) == 0, x[...], out[...] + x[...])

    adding = pl.pallas_call(
        kernel, grid=(2,), in_specs=[pl.BlockSpec((8, 128), lambda i: (i, 0))],
        out_specs=pl.BlockSpec((8, 128), lambda i: (0, 0)), out_shape=jax.ShapeDtypeStruct((8, 128), jnp.float32),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)), interpret=STRICT,
    )  # fmt: skip
    try:  # newer versions of JAX raise what older ones print
        jax.block_until_ready(jax.jit(adding)(jnp.ones((16, 128))))
        said = ""
    except jax.errors.JaxRuntimeError as error:
        said = str(error)
    assert "RACE DETECTED" in said + "".join(capfd.readouterr())


def estimates(jaxpr) -> list:
    """Cost estimates of all kernels in a jaxpr."""
    found = []
    for equation in jaxpr.eqns:
        if "cost_estimate" in equation.params:
            found.append(equation.params["cost_estimate"])
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns") and "cost_estimate" not in equation.params:
                found += estimates(inner)
    return found


@pytest.mark.parametrize(
    "mask, blocks_seen, fetched",
    # of causal masks, the first key block of the second row of blocks is there already
    [(Full(), 16, 16), (Causal(), 10, 9), (Causal() & SlidingWindow(128, 0), 7, 4)],
)
def test_cost_is_that_of_the_blocks_visited(mask, blocks_seen, fetched):
    q = jnp.zeros((B, 512, H, 64))

    def total(q):
        return jnp.sum(attention(q, q, q, mask=mask, backend="tpu", interpret=True, blocks=SMALL))

    forward, backward = estimates(jax.make_jaxpr(jax.grad(total))(q).jaxpr)
    pairs = blocks_seen * 128 * 128 * B * H
    assert forward.flops == 2 * 2 * 64 * pairs and forward.transcendentals == pairs
    assert backward.flops == 5 * 2 * 64 * pairs
    block = 128 * 64 * 4  # bytes of one of q, k, v, out; lse is a row of 128
    assert forward.bytes_accessed == B * H * (4 * (2 * block + 128 * 4) + 2 * fetched * block)


def test_errors_name_the_argument_and_what_would_do():
    q = jnp.zeros((1, 200, 2, 16))
    call = functools.partial(attention, q, q, q, mask=Causal(), backend="tpu", interpret=True)
    with pytest.raises(ValueError, match="blocks: got .*100.*multiples of 128"):
        call(blocks=BlockSizes(100))
    with pytest.raises(ValueError, match="chip: got 'v9'; allowed: v4, v5e"):
        call(blocks=BlockSizes(chip="v9"))
    with pytest.raises(ValueError, match="max_distance 2000000 needs .*backend 'tpu'.*backend='xla'"):
        call(bias=T5Relative(jnp.zeros((32, 2)), True, 2_000_000))
    rows = Segments(jnp.ones((3, 200), jnp.int32), jnp.ones((3, 200), jnp.int32))
    with pytest.raises(ValueError, match=r"mask: an array of shape \(3, 200\); allowed: 1 or 1 rows"):
        attention(q, q, q, mask=rows)
    for name, value in (("mask", None), ("bias", q), ("dropout", 0.1), ("q_offset", 2.5)):
        with pytest.raises(ValueError, match=f"attention: {name}: got .*; allowed: "):
            attention(q, q, q, **{"mask": Causal(), name: value})
    with pytest.raises(ValueError, match="allowed: no dimension of 0"):
        attention(q[:, :0], q, q, mask=Causal())
    with pytest.raises(ValueError, match="T5Relative: got 2 buckets"):
        attention(q, q, q, mask=Causal(), bias=T5Relative(jnp.zeros((2, 2)), True))
    with pytest.raises(ValueError, match="mask: a query array of float32; allowed: whole numbers"):
        attention(q, q, q, mask=Segments(jnp.ones((1, 200)), jnp.ones((1, 200))))
    large = jax.ShapeDtypeStruct((32, 16384, 2, 16), jnp.float32)
    many = jax.ShapeDtypeStruct((32, 16384), jnp.int32)
    with pytest.raises(ValueError, match="mask: 524,288 blocks to visit on backend 'tpu'.*backend='xla'"):
        jax.eval_shape(lambda q, s: attention(q, q, q, mask=Segments(s, s), backend="tpu", blocks=SMALL), large, many)
    wide = jax.ShapeDtypeStruct((1, 200, 2, 512), jnp.float32)
    assert "no heads of 512" in pallas_kernels.choose(wide, wide, wide, mask=Causal(), platform="tpu").reason
    far = T5Relative(jnp.zeros((32, 2)), True, 2_000_000)
    assert pallas_kernels.choose(q, q, q, mask=Causal(), bias=far, platform="tpu").backend == "xla"
    half = q.astype(jnp.float16)
    with pytest.raises(ValueError, match="backend 'tpu' has no float16; allowed: float32, bfloat16, or backend='xla'"):
        attention(half, half, half, mask=Causal(), backend="tpu")
    assert pallas_kernels.choose(half, half, half, mask=Causal(), platform="tpu").backend == "xla"
    assert pallas_kernels.choose(q, q, q, mask=Causal(), platform="tpu").backend == "tpu"
    assert set(TPU) == {"v4", "v5e", "v5p", "v6e", "tpu7x"}
