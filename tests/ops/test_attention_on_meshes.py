"""Each device computes its own rows and heads: on every mesh, with every backend, attention is what it is on one
device, gradients and dropped probabilities included, and nothing is gathered for it."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from tiny_models import compiled, relative_error

from pallas_kernels import Alibi, Causal, Segments, T5Relative
from t5x_like.ops.attention import attention
from t5x_like.sharding.config import MeshConfig
from t5x_like.sharding.mesh import make_placement, use

B, L, H, K, N = 4, 128, 4, 2, 8
pytestmark = pytest.mark.skipif(len(jax.devices()) < 8, reason="needs 8 devices")
MESHES = {"2 x 2 x 2": dict(data=2, fsdp=2, tensor=2), "data 8, which does not divide": dict(data=8)}


def arrays(bias: str):
    numbers = np.random.default_rng(2)
    q, k, v, dout = (jnp.asarray(numbers.normal(size=(B, L, heads, N)), jnp.float32) for heads in (H, K, K, H))
    segments = jnp.asarray(np.sort(numbers.integers(0, 4, (B, L)), axis=1), jnp.int32)
    table = jnp.asarray(numbers.normal(size=(32, H) if bias == "t5" else (H,)), jnp.float32)
    return q, k, v, table, segments, dout


def both_ways(bias: str, backend: str, rate: float):
    def call(q, k, v, table, segments, dout):
        def forward(q, k, v, table):
            return attention(
                q, k, v, mask=Causal() & Segments(segments, segments),
                bias=T5Relative(table, False) if bias == "t5" else Alibi(table), scale=0.3, dropout_rate=rate,
                dropout_key=jax.random.key(0), backend=backend, interpret=True,
            )  # fmt: skip

        out, pull = jax.vjp(forward, q, k, v, table)
        return out, pull(dout)

    return call


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize(
    "bias, backend, rate",
    [
        ("t5", "xla", 0.3),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("t5", "tpu", 0.3), ("alibi", "tpu", 0.0), ("alibi", "xla", 0.0), ("t5", "gpu", 0.3))
        ),
    ],
)
def test_a_mesh_computes_what_one_device_does(mesh, bias, backend, rate):
    wanted = compiled(both_ways(bias, backend, rate))(*arrays(bias))
    placement = make_placement(MeshConfig(**MESHES[mesh]))
    with use(placement):
        got = compiled(both_ways(bias, backend, rate))(*arrays(bias))
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert relative_error(one, other) < 1e-5


def test_nothing_is_gathered():
    placement = make_placement(MeshConfig(data=2, fsdp=2, tensor=2))
    rows = PartitionSpec(("data", "fsdp"))
    split = PartitionSpec(("data", "fsdp"), None, "tensor")
    specs = (split, split, split, PartitionSpec(None, "tensor"), rows, split)
    placed = [
        jax.device_put(x, NamedSharding(placement.mesh, spec)) for x, spec in zip(arrays("t5"), specs, strict=True)
    ]
    with use(placement):
        text = jax.jit(both_ways("t5", "xla", 0.0)).lower(*placed).compile().as_text()
    assert not re.search(r"all-gather|all-to-all|collective-permute", text)
    assert "all-reduce" in text  # of the table's gradient, over rows
