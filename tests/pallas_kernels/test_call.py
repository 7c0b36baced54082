"""The call itself: a scale for each query, what ``auto`` takes and why, and mistakes that are named."""

from __future__ import annotations

import definition
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from definition import error
from tiny_models import compiled

from pallas_kernels import Alibi, Causal, Dense, Full, attention, choose

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
        ("soft_cap: got -1", (q, k, v), dict(soft_cap=-1)),
        (r"sinks: got shape \(3,\); allowed: \[2\]", (q, k, v), dict(sinks=jnp.ones(3))),
        ("backend: got 'cuda'; allowed: auto, tpu, gpu, xla", (q, k, v), dict(backend="cuda")),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=pattern):
            attention(*arguments, mask=Full(), **options)
