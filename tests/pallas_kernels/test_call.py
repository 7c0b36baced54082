"""The call itself: a scale for each query, what ``auto`` takes and why, and mistakes that are named."""

from __future__ import annotations

import importlib

import definition
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from definition import error
from tiny_models import compiled

from pallas_kernels import Alibi, Causal, Dense, Dropout, Full, Segments, SlidingWindow, attention, choose

B, L, H, N = 2, 20, 2, 8


def arrays(*lengths: int):
    q, k, v, dout, _ = definition.inputs(B, lengths[0], lengths[-1], H, H, N, N)
    return [jnp.asarray(x) for x in (q, k, v, dout)]


@pytest.mark.parametrize("backend", ["xla", "tpu"])
@pytest.mark.parametrize("shape", [(), (L,), (B, L)])
def test_a_scale_of_each_query(backend, shape):
    """As attention that is scaled by the logarithm of its length: log(n + 1) for the n-th query."""
    q, k, v, dout = arrays(L)
    numbers = np.log(np.arange(1, L + 1) + 1.0) if shape else np.log(7.0)
    scale = jnp.asarray(np.broadcast_to(numbers, shape), jnp.float32)

    def total(scale):
        out = attention(q, k, v, mask=Causal(), scale=scale, backend=backend, interpret=True)
        return jnp.sum(out * dout), out

    gradient, out = compiled(jax.grad(total, has_aux=True))(scale)
    each = np.broadcast_to(np.asarray(scale, np.float64), (B, L))[:, :, None, None]
    problem = definition.Problem(np.asarray(q) * each, k, v, np.tril(np.ones((1, L, L), bool)))
    assert error(out, definition.attention(problem)[0]) < 1e-5
    of_each = (definition.gradients(problem, dout).q * np.asarray(q)).sum((2, 3))
    wanted = of_each if len(shape) == 2 else of_each.sum(0) if shape else of_each.sum()
    assert error(gradient, wanted) < 1e-5


def test_auto_says_what_it_takes_and_why():
    q, k, v, _ = arrays(L)
    assert choose(q, k, v, mask=Full()) == ("xla", "there are no kernels for cpu")
    assert choose(q, k, v, mask=Full(), platform="tpu").backend == "tpu"
    assert choose(q, k, v, mask=Full(), platform="cuda").backend == "gpu"
    one = choose(q[:, :1], k, v, mask=Full(), platform="tpu")
    assert one.backend == "xla" and one.reason.startswith("1 queries, as in decoding")
    large = jax.ShapeDtypeStruct((B, L, H, 512), jnp.float32)
    assert "512" in choose(large, large, large, mask=Full(), platform="gpu").reason


def test_where_the_gpu_kernels_do_not_lower_cudnn_does_what_it_can(monkeypatch):
    call = importlib.import_module("pallas_kernels.attention")
    monkeypatch.setattr(call, "_does_not_lower", lambda: "no Triton here")
    q = jax.ShapeDtypeStruct((B, 64, H, 64), jnp.bfloat16)
    for mask in (Full(), Causal(), Causal() & SlidingWindow(8, 8), SlidingWindow(8, 0)):
        assert choose(q, q, q, mask=mask, platform="gpu") == ("cudnn", "no Triton here")
    segments = jnp.ones((B, 64), jnp.int32)
    for options in (
        {"mask": Causal() & Segments(segments, segments)},
        {"mask": SlidingWindow(8, 8)},
        {"mask": Full(), "bias": Alibi(jnp.ones((H,)))},
        {"mask": Full(), "soft_cap": 30.0},
        {"mask": Full(), "sinks": jnp.ones((H,))},
        {"mask": Full(), "dropout": Dropout.from_key(0.1, jax.random.key(0))},
        {"mask": Causal(), "q_offset": jnp.int32(0)},
        {"mask": Causal(), "return_lse": True},
    ):
        assert choose(q, q, q, **options, platform="gpu") == ("xla", "no Triton here"), options
    for other in (q.update(dtype=jnp.float32), q.update(shape=(B, 64, H, 192)), q.update(shape=(B, 64, H, 68))):
        assert choose(other, other, other, mask=Full(), platform="gpu") == ("xla", "no Triton here")
    assert choose(q, q, q, mask=Full(), platform="tpu").backend == "tpu"


def test_what_the_gpu_kernels_do_not_have_cudnn_may_have():
    half = jax.ShapeDtypeStruct((B, 64, H, 64), jnp.float16)
    choice = choose(half, half, half, mask=Full(), platform="cuda")
    assert choice.backend == "cudnn" and "float16" in choice.reason


@pytest.mark.parametrize("kind", ["full", "causal", "window", "grouped", "rectangular"])
def test_what_cudnn_is_asked_is_attention(kind):
    """Without a GPU: the call of jax.nn with XLA in cuDNN's place, against float64."""
    S, K = 30 if kind == "rectangular" else L, 1 if kind == "grouped" else H
    q, k, v, dout = (jnp.asarray(x, jnp.bfloat16) for x in definition.inputs(B, L, S, H, K, N, N)[:4])
    distance = np.arange(S)[None] - np.arange(L)[:, None]
    mask, allowed = {
        "full": (Full(), distance < 100),
        "causal": (Causal(), distance <= 0),
        "window": (SlidingWindow(5, 2) & Causal(), (distance <= 0) & (distance >= -5)),
        "grouped": (Causal(), distance <= 0),
        "rectangular": (Causal(), distance <= 0),
    }[kind]

    def both(q, k, v, dout):
        out, pull = jax.vjp(lambda *x: attention(*x, mask=mask, scale=0.3, backend="cudnn", interpret=True), q, k, v)
        return out, *pull(dout)

    with jax.numpy_dtype_promotion("standard"):  # jax.nn's own code for CPUs breaks the strict one
        out, *gradients = jax.jit(both)(q, k, v, dout)
    problem = definition.Problem(q, k, v, allowed[None], 0.3)
    assert error(out, definition.attention(problem)[0]) < 1e-2
    for got, wanted in zip(gradients, definition.gradients(problem, dout)[:3], strict=True):
        assert error(got, wanted) < 2e-2


def test_what_cudnn_does_not_have_is_named():
    q = jnp.ones((B, L, H, N), jnp.bfloat16)
    for pattern, array, options in (
        ("q: backend 'cudnn' has no float32", q.astype(jnp.float32), {}),
        ("heads of 12 and values of 12", jnp.ones((B, L, H, 12), jnp.bfloat16), {}),
        ("mask: backend 'cudnn' has no Segments", q, {"mask": Segments(*2 * [jnp.ones((B, L), jnp.int32)])}),
        ("bias: backend 'cudnn' has none", q, {"bias": Alibi(jnp.ones((H,)))}),
        ("q_offset: backend 'cudnn' has none", q, {"q_offset": 3}),
        ("return_lse: backend 'cudnn' has none", q, {"return_lse": True}),
    ):
        with pytest.raises(ValueError, match=pattern):
            attention(array, array, array, **{"mask": Full()} | options, backend="cudnn")


def test_mistakes_are_named():
    q, k, v, _ = arrays(L, 30)
    for pattern, arguments, options in (
        ("k, v: got shapes", (q, k[:1], v), {}),
        ("4 key heads do not divide 2 query heads", (q, *(jnp.repeat(x, 2, axis=2) for x in (k, v))), {}),
        ("q, k, v: got dtypes bfloat16, float32", (q.astype(jnp.bfloat16), k, v), {}),
        ("four dimensions", (q[0], k, v), {}),
        ("bias: got 3 heads; allowed: 2", (q, k, v), dict(bias=Alibi(jnp.ones(3)))),
        (r"bias: got shape \(1, 1, 20, 20\); allowed: \[1 or 2, 1 or 2, 20, 30\]", (q, k, v),
         dict(bias=Dense(jnp.ones((1, 1, L, L))))),
        (r"scale: got shape \(3,\)", (q, k, v), dict(scale=jnp.ones(3))),
        ("scale: got nan", (q, k, v), dict(scale=float("nan"))),
        ("soft_cap: got -1", (q, k, v), dict(soft_cap=-1)),
        ("soft_cap: got inf", (q, k, v), dict(soft_cap=float("inf"))),
        (r"sinks: got shape \(3,\); allowed: \[2\]", (q, k, v), dict(sinks=jnp.ones(3))),
        ("backend: got 'cuda'; allowed: auto, tpu, gpu, cudnn, xla", (q, k, v), dict(backend="cuda")),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=pattern):
            attention(*arguments, mask=Full(), **options)
