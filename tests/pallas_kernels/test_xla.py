"""Attention in plain JAX is what its definition in float64 says, forward and backward, with all features and for any
chunk; the definition itself is what JAX's derivatives say in float64."""

from __future__ import annotations

import functools

import definition
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from definition import Problem, draw, error
from dense_masks import densely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from tiny_models import compiled

import pallas_kernels
from pallas_kernels import (
    Alibi,
    BigBird,
    Blocks,
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
    xla,
)
from pallas_kernels.biases import relative_buckets
from pallas_kernels.dropout import kept, stream
from pallas_kernels.rules import Slots, dense

B, L, S, H, K, N, V = 2, 22, 29, 4, 2, 6, 5
NUMBERS = np.random.default_rng(11)
# every query segment is there, and query segment 3 meets no key: rows without any
SEGMENTS = [np.sort(NUMBERS.integers(0, high, (B, n)), axis=1).astype(np.int32) for n, high in ((L, 4), (S, 3))]
ORDERS = [NUMBERS.integers(-9, 9, (B, n)).astype(np.int32) for n in (L, S)]
BLOCKS = Blocks(tuple(map(tuple, (NUMBERS.random((10, 10)) < 0.4).tolist())), 5)
NAMES = ("q", "k", "v", "bias", "sinks")


@pytest.fixture(autouse=True)
def _no_implicit_ranks():
    with jax.numpy_rank_promotion("raise"):
        yield


def packed():
    return Segments(*map(jnp.asarray, SEGMENTS))


MASKS = {
    "full": lambda: Full(),
    "causal": lambda: Causal(),
    "window": lambda: SlidingWindow(4, 2),
    "causal & packed": lambda: Causal() & packed(),
    "packed": packed,
    "chunked & causal": lambda: Chunked(7) & Causal(),
    "causal | prefix": lambda: Causal() | Prefix(jnp.asarray([3, 17])),
    "ordered": lambda: Ordered(*map(jnp.asarray, ORDERS)),
    "blocks": lambda: BLOCKS,
    "bigbird": lambda: BigBird(window=1, globals=1, random=1, size=3),
}
BIASES = {
    "none": lambda: None,
    "t5": lambda: T5Relative(jnp.asarray(draw((8, H), 5)), True, 12),
    "t5, one way": lambda: T5Relative(jnp.asarray(draw((6, H), 6)), False, 12),
    "alibi": lambda: Alibi(jnp.asarray(draw((H,), 7))),
    "dense": lambda: Dense(jnp.asarray(draw((B, H, L, S), 8))),
    "dense, one row": lambda: Dense(jnp.asarray(draw((1, H, L, S), 9))),
    "dense, one": lambda: Dense(jnp.asarray(draw((1, 1, L, S), 10))),
}


def dense_bias(bias, offset: int):
    """[1 or B, 1 or H, L, S] numpy, pair by pair."""
    distance_LS = np.arange(S)[None, :] - np.arange(L)[:, None] - offset
    if isinstance(bias, T5Relative):
        buckets = relative_buckets(jnp.asarray(distance_LS), bias.bidirectional, bias.table_KH.shape[0], 12)
        return np.asarray(bias.table_KH)[np.asarray(buckets)].transpose(2, 0, 1)[None]
    if isinstance(bias, Alibi):
        return -np.asarray(bias.slopes_H)[None, :, None, None] * np.abs(distance_LS)[None, None]
    return None if bias is None else np.asarray(bias.array)


def bias_gradient(bias, of_scores, offset: int):
    distance_LS = np.arange(S)[None, :] - np.arange(L)[:, None] - offset
    if isinstance(bias, T5Relative):
        count = bias.table_KH.shape[0]
        buckets = relative_buckets(jnp.asarray(distance_LS), bias.bidirectional, count, 12)
        return T5Relative(definition.of_table(of_scores, buckets, count), bias.bidirectional, 12)
    if isinstance(bias, Alibi):
        return Alibi(definition.of_slopes(of_scores, distance_LS))
    return None if bias is None else Dense(definition.of_dense(of_scores, bias.array.shape))


def kept_bits(dropout: Dropout, offset: int):
    """[B, H, L, S], one head at a time."""
    query, key = jnp.arange(L)[:, None] + offset, jnp.arange(S)[None, :]
    of_head = compiled(lambda b, h: kept(dropout.rate, jnp.full((1, 1), stream(dropout.seed, b, h)), query, key))
    return np.asarray([[of_head(b, h) for h in range(H)] for b in range(B)])


def both_ways(arguments, **options):
    """(out, lse) and the gradients of the arrays, for given gradients of both."""
    *arrays, dout, dlse = arguments

    def call(q, k, v, bias, sinks):
        return xla.attention(q, k, v, bias=bias, sinks=sinks, **options)

    results, pull = jax.vjp(call, *arrays)
    return results, pull((dout.astype(results[0].dtype), jnp.where(results[1] == -jnp.inf, 0.0, dlse)))


def check(
    mask, bias, *, heads=K, chunk=0, offset=0, traced=False, soft_cap=0.0, with_sinks=False, rate=0.0, limit=1e-5
):  # fmt: skip
    """Values and gradients of one call against the definition."""
    q, k, v, dout, dlse = definition.inputs(B, L, S, H, heads, N, V, seed=heads)
    sinks = draw((H,), 3) if with_sinks else None
    dropout = Dropout(rate, 17) if rate else None
    options = dict(mask=mask, scale=0.4, soft_cap=soft_cap, dropout=dropout, chunk=chunk)
    arguments = q, k, v, bias, sinks, dout, dlse
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(xla, "KEY_STEP", 4)  # these lengths are less than one step of the true size
        if traced:
            got = compiled(lambda a, o: both_ways(a, **options, q_offset=o))(arguments, jnp.int32(offset))
        else:
            got = compiled(lambda a: both_ways(a, **options, q_offset=offset))(arguments)
    slots = Slots(L, S, offset)
    allowed = np.asarray(dense(mask.rule(slots), slots, jnp.arange(L) + offset, jnp.arange(S)))
    bits = None if dropout is None else kept_bits(dropout, offset)
    problem = Problem(q, k, v, allowed, 0.4, soft_cap, dense_bias(bias, offset), sinks, bits, rate)
    (out, lse), (wanted_out, wanted_lse) = got[0], definition.attention(problem)
    empty = wanted_lse == -np.inf
    wanted = definition.gradients(problem, dout, np.where(empty, 0.0, dlse))
    assert error(out, wanted_out) < limit
    np.testing.assert_array_equal(np.asarray(lse) == -np.inf, empty)
    np.testing.assert_array_equal(np.asarray(out).transpose(0, 2, 1, 3)[empty], 0.0)
    assert error(np.where(empty, 0.0, lse), np.where(empty, 0.0, wanted_lse)) < limit
    np.testing.assert_array_equal(np.asarray(got[1][0]).transpose(0, 2, 1, 3)[empty], 0.0)
    wanted_arrays = (*wanted[:3], bias_gradient(bias, wanted.scores, offset), wanted.sinks if with_sinks else None)
    for name, one, other in zip(NAMES, got[1], wanted_arrays, strict=True):
        for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            assert error(x, y) < limit, name


# The masks with what they need most, and every other feature at least twice; chunks of 8 leave a ragged one of 6.
CASES = {
    "full": dict(mask="full"),
    "full, chunks, one key head": dict(mask="full", bias="alibi", chunk=8, heads=1),
    "causal, capped": dict(mask="causal", bias="t5", soft_cap=1.5, with_sinks=True),
    "causal, chunks, as many key heads": dict(mask="causal", bias="t5, one way", chunk=8, heads=4),
    "window, chunks": dict(mask="window", bias="dense, one row", chunk=4, rate=0.3),
    "window, chunks, moved": dict(mask="window", bias="t5", chunk=4, offset=12, soft_cap=2.0),
    "packed": dict(mask="packed", bias="t5", rate=0.3, with_sinks=True),
    "packed, chunks": dict(mask="causal & packed", bias="dense, one", chunk=8, soft_cap=2.0),
    "chunked": dict(mask="chunked & causal", bias="dense", chunk=8, with_sinks=True),
    "prefix": dict(mask="causal | prefix", bias="alibi", chunk=16),
    "ordered": dict(mask="ordered", bias="none", chunk=8, soft_cap=2.0),
    "blocks, moved": dict(mask="blocks", bias="t5", chunk=8, offset=20),
    "bigbird": dict(mask="bigbird", bias="none", chunk=8, rate=0.2),
    "causal, moved while running": dict(mask="causal", bias="t5", chunk=8, offset=4, traced=True, rate=0.2),
    "blocks, moved while running": dict(mask="blocks", bias="alibi", offset=7, traced=True),
}


@pytest.mark.parametrize("name", CASES)
def test_against_the_definition(name):
    case = {"bias": "none"} | CASES[name]
    check(MASKS[case.pop("mask")](), BIASES[case.pop("bias")](), **case)


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_combination_against_the_definition(data):
    names = st.sampled_from(sorted(MASKS))
    mask, other, join = data.draw(names), data.draw(names), data.draw(st.sampled_from("-&|"))
    one, two = MASKS[mask](), MASKS[other]()
    check(
        {"-": one, "&": one & two, "|": one | two}[join],
        BIASES[data.draw(st.sampled_from(sorted(BIASES)))](),
        heads=data.draw(st.sampled_from((1, 2, 4))),
        chunk=data.draw(st.sampled_from((0, 1, 5, 8, 11, 64))),
        offset=data.draw(st.sampled_from((0, 3, 19))),
        soft_cap=data.draw(st.sampled_from((0.0, 2.0))),
        with_sinks=data.draw(st.booleans()),
        rate=data.draw(st.sampled_from((0.0, 0.4))),
        limit=2e-5,
    )


@pytest.mark.parametrize(
    "mask, lengths, share", [("causal", (200, 200), 0.82), ("window", (210, 300), 0.43), ("causal", (130, 77), 1.0)]
)
def test_pieces_read_every_allowed_key_once_and_skip_the_others(mask, lengths, share):
    """Several scans, a ragged last chunk and keys that begin elsewhere, against the same in one piece."""
    masks = {"causal": Causal(), "window": SlidingWindow(20, 0)}
    q, k, v, dout, dlse = definition.inputs(1, *lengths, 2, 1, 4, 4)

    @functools.partial(compiled, static_argnums=1)
    def run(arguments, chunk):
        return both_ways(arguments, mask=masks[mask], scale=0.5, soft_cap=0.0, dropout=None, q_offset=0, chunk=chunk)

    arguments = q, k, v, None, None, dout, dlse
    for got, wanted in zip(jax.tree.leaves(run(arguments, 32)), jax.tree.leaves(run(arguments, 1000)), strict=True):
        assert error(got, wanted) < 1e-5
    _, pieces = xla._plan(xla.Fixed(1.0, 0.0, 0, 32), *lengths, None, masks[mask], None, None)
    rows = [p.first + p.chunk * i + j for p in pieces for i in range(len(p.starts)) for j in range(p.chunk)]
    assert rows == list(range(lengths[0]))
    read = sum(p.chunk * p.width * len(p.starts) for p in pieces)
    assert read <= share * lengths[0] * lengths[1]


def test_a_window_reads_its_own_keys_alone_and_a_full_mask_asks_no_pair():
    def pieces(mask, length):
        return xla._plan(xla.Fixed(1.0, 0.0, 0, 0), length, length, None, mask, None, None)[1]

    (window,) = pieces(SlidingWindow(128, 0), 4096)
    assert window.width <= 320 and len(window.starts) == 32 and window.masked
    causal = pieces(Causal(), 4096)
    assert sum(p.chunk * p.width * len(p.starts) for p in causal) <= 0.63 * 4096**2
    assert [p.masked for p in pieces(Full(), 4096)] == [False]
    assert pieces(Full(), 200) == [xla.Piece(0, 200, (0,), 200, False)]


def naive(q, k, v, bias, sinks, allowed, kept_BHLS, rate, soft_cap):
    """JAX derives this in float64; written apart from the definition, with JAX's own softmax and logsumexp."""
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    s = 0.4 * jnp.einsum("blhn,bshn->bhls", q, k)
    s = soft_cap * jnp.tanh(s / soft_cap) + bias
    s = jnp.where(allowed[:, None], s, -1e300)
    sink = jnp.broadcast_to(sinks[None, :, None, None], (*s.shape[:3], 1))
    s = jnp.concatenate([s, sink], axis=-1)
    p = jax.nn.softmax(s, axis=-1)[..., :-1] * kept_BHLS / (1 - rate)
    return jnp.einsum("bhls,bshv->blhv", p, v), jax.nn.logsumexp(s, axis=-1)


def test_the_definition_is_what_jax_derives_in_float64():
    q, k, v, dout, dlse = (x.astype(np.float64) for x in definition.inputs(B, L, S, H, K, N, V))
    bias, sinks = draw((1, H, L, S), 1).astype(np.float64), draw((H,), 2).astype(np.float64)
    allowed = np.asarray(densely(packed(), jnp.arange(L), jnp.arange(S)))
    bits = np.random.default_rng(0).random((B, H, L, S)) < 0.7
    assert not allowed.any(-1).all() and not bits.all()
    problem = Problem(q, k, v, allowed, 0.4, 1.7, bias, sinks, bits, 0.3)
    with jax.enable_x64(True):

        @compiled
        def derive(*arrays):
            results, pull = jax.vjp(lambda *a: naive(*a, allowed, bits.astype(np.float64), 0.3, 1.7), *arrays)
            return results, pull((dout, dlse))

        wanted, derived = derive(q, k, v, bias, sinks)
    for got, want in zip(definition.attention(problem), wanted, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-12)
    gradients = definition.gradients(problem, dout, dlse)
    gradients = gradients._replace(scores=definition.of_dense(gradients.scores, bias.shape))
    for got, want in zip(gradients, derived, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-11)


def test_the_definition_of_the_parts_of_a_bias_by_differences():
    of_scores = draw((B, H, L, S), 4).astype(np.float64)
    table, buckets = draw((8, H), 5).astype(np.float64), NUMBERS.integers(0, 8, (L, S))
    moved = [np.sum(of_scores * (table + sign * 0.5 * np.eye(8, H))[buckets].transpose(2, 0, 1)) for sign in (1, -1)]
    assert np.trace(definition.of_table(of_scores, buckets, 8)) == pytest.approx(moved[0] - moved[1])
    distance = np.arange(S)[None] - np.arange(L)[:, None]
    moved = [np.sum(of_scores * -(slope * np.abs(distance))) for slope in (1.5, 0.5)]
    assert definition.of_slopes(of_scores, distance).sum() == pytest.approx(moved[0] - moved[1])


def test_rows_without_keys_through_the_public_call():
    q, k, v, dout, _ = definition.inputs(B, L, S, H, K, N, V)

    def total(q, k, v):
        out, lse = pallas_kernels.attention(q, k, v, mask=packed(), backend="xla", return_lse=True)
        return jnp.sum(out * dout) + jnp.sum(jnp.where(lse > -jnp.inf, lse, 0.0)), (out, lse)

    gradients, (out, lse) = compiled(jax.grad(total, (0, 1, 2), has_aux=True))(q, k, v)
    empty = ~np.asarray(densely(packed(), jnp.arange(L), jnp.arange(S))).any(-1)
    assert 0 < empty.sum() < empty.size
    np.testing.assert_array_equal(np.asarray(out)[empty], 0.0)
    assert np.all(np.asarray(lse).transpose(0, 2, 1)[empty] == -np.inf)
    np.testing.assert_array_equal(np.asarray(gradients[0])[empty], 0.0)
    assert all(np.all(np.isfinite(g)) and np.any(g != 0) for g in gradients)


@pytest.mark.parametrize("mask, chunk", [("full", 0), ("causal", 8)])
def test_bfloat16_is_as_exact_as_jaxs_own(mask, chunk):
    q, k, v, dout, _ = (jnp.asarray(x, jnp.bfloat16) for x in definition.inputs(B, S, S, H, K, N, N))
    allowed = np.asarray(densely(MASKS[mask](), jnp.arange(S), jnp.arange(S)))
    problem = Problem(q, k, v, allowed, 0.4)
    wanted = definition.attention(problem)[0], *definition.gradients(problem, dout)[:3]

    def errors(call):
        @compiled
        def results(q, k, v):
            out, pull = jax.vjp(call, q, k, v)
            return out, *pull(dout)

        got = results(q, k, v)
        assert got[0].dtype == jnp.bfloat16
        return [error(x, y) for x, y in zip(got, wanted, strict=True)]

    with jax.numpy_dtype_promotion("standard"):  # JAX's own does not work otherwise
        theirs = errors(lambda *a: jax.nn.dot_product_attention(*a, is_causal=mask == "causal", scale=0.4))
    options = dict(bias=None, sinks=None, scale=0.4, soft_cap=0.0, dropout=None, q_offset=0, chunk=chunk)
    ours = errors(lambda *a: xla.attention(*a, mask=MASKS[mask](), **options)[0])
    assert max(theirs) > 1e-3
    for name, one, other in zip(("out", *NAMES), ours, theirs, strict=False):
        assert one < 2 * other, name


def test_float32_agrees_with_jaxs_own():
    q, k, v, dout, _ = definition.inputs(B, S, S, H, K, N, N)

    @compiled
    def both(q, k, v):
        calls = (
            functools.partial(pallas_kernels.attention, mask=Causal(), scale=0.4, backend="xla"),
            functools.partial(jax.nn.dot_product_attention, is_causal=True, scale=0.4),
        )
        results = []
        for call in calls:
            out, pull = jax.vjp(call, q, k, v)
            results.append((out, *pull(jnp.asarray(dout))))
        return results

    for one, other in zip(*both(q, k, v), strict=True):
        assert error(one, other) < 1e-5


def test_dropout_and_values_do_not_hang_on_the_chunk():
    q, k, _, _, _ = definition.inputs(B, L, S, H, K, N, V)
    # the values tell the probabilities: the output's columns are the dropped softmax itself
    v = np.broadcast_to(np.eye(S, dtype=np.float32)[None, :, None], (B, S, K, S))

    def run(chunk):
        call = functools.partial(xla.attention, bias=None, scale=0.4, soft_cap=0.0, sinks=None, q_offset=2)
        run = compiled(lambda *a: call(*a, mask=Full(), dropout=Dropout(0.4, 5), chunk=chunk)[0])
        return np.asarray(run(q, k, v))

    one, other = run(8), run(0)
    np.testing.assert_array_equal(one == 0, other == 0)
    np.testing.assert_array_equal(one.transpose(0, 2, 1, 3) != 0, kept_bits(Dropout(0.4, 5), 2))


def test_under_vmap_and_a_second_jit():
    q, k, v, _, _ = definition.inputs(B, L, S, H, K, N, V)

    def call(q, k, v):
        return jnp.sum(pallas_kernels.attention(q, k, v, mask=Causal(), backend="xla") ** 2)

    mapped = compiled(jax.vmap(jax.grad(lambda *a: call(*(x[None] for x in a)), (0, 1, 2))))(q, k, v)
    whole = compiled(jax.grad(call, (0, 1, 2)))(q, k, v)
    for one, other in zip(mapped, whole, strict=True):
        assert error(one, other) < 1e-5


def test_sharded_over_batch_and_heads_needs_no_other_device():
    mesh = jax.make_mesh((2, 2), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    sharding = NamedSharding(mesh, P("data", None, "tensor", None))
    q, k, v, _, _ = definition.inputs(B, L, S, H, K, N, V)

    def call(q, k, v):
        options = dict(bias=None, scale=0.4, soft_cap=0.0, sinks=None, dropout=Dropout(0.2, 3), q_offset=0, chunk=8)
        return jnp.sum(xla.attention(q, k, v, mask=Causal(), **options)[0] ** 2)

    gradient = jax.grad(call, (0, 1, 2))
    split = compiled(gradient, in_shardings=sharding, out_shardings=sharding).lower(q, k, v).compile()
    for word in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert word not in split.as_text(), word
    got = split(*(jax.device_put(x, sharding) for x in (q, k, v)))
    for one, other in zip(got, compiled(gradient)(q, k, v), strict=True):
        assert error(one, other) < 1e-5


def temporary_bytes(length: int, bias=None) -> int:
    shapes = [jax.ShapeDtypeStruct((1, length, 2, 8), jnp.float32)] * 3

    def total(q, k, v):
        return jnp.sum(pallas_kernels.attention(q, k, v, mask=Causal(), bias=bias, backend="xla") ** 2)

    analysis = compiled(jax.grad(total, (0, 1, 2))).lower(*shapes).compile().memory_analysis()
    return analysis.temp_size_in_bytes


def test_memory_is_linear_in_the_length():
    at, twice = temporary_bytes(2048), temporary_bytes(4096)
    assert twice < 2.2 * at
    assert twice < 4096 * 4096 * 2 * 4 / 3  # a third of the scores of both heads


def test_a_learned_bias_is_never_dense():
    bias = Alibi(jnp.asarray([0.5, 0.25]))
    assert temporary_bytes(4096, bias) < 4096 * 4096 * 2 * 4 / 3
