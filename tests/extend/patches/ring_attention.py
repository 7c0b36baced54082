"""Attention with rows split over 4 devices is what it is on one: outputs and gradients, causal or not, with segments;
and so is a whole model."""

import jax
import jax.numpy as jnp
import numpy as np
from tiny_models import random_batch, tiny

from pallas_kernels import Causal, Full, Segments, SlidingWindow
from t5x_like.arrays.trees import flatten
from t5x_like.config import AdamW, MeshConfig, Rule, TokenLoss
from t5x_like.models.transformer import make_model
from t5x_like.ops.attention import attention
from t5x_like.optim.optimizer import make_optimizer
from t5x_like.sharding.mesh import make_placement, use
from t5x_like.train.setup import Setup
from t5x_like.train.step import sums_and_gradient

placement = make_placement(MeshConfig(data=2, context=4, rules=(Rule("length", ("context",)),)))
draw = np.random.default_rng(0)
q, k, v = (jnp.asarray(draw.normal(size=(2, 32, heads, 8)), jnp.float32) for heads in (4, 2, 2))
segments = jnp.asarray([[1] * 20 + [2] * 12, [1] * 25 + [0] * 7], jnp.int32)


def loss(q, k, v, mask):
    out = attention(q, k, v, mask=mask, scale=0.35, soft_cap=5.0)
    return jnp.sum(jnp.sin(out)), out


def on_ring(*arrays):
    with use(placement):
        return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(*arrays)


for mask in (Causal(), Full(), Causal() & Segments(segments, segments), SlidingWindow(9, 3)):
    wanted = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(q, k, v, mask)
    lowered = jax.jit(on_ring).lower(q, k, v, mask)
    assert "collective_permute" in lowered.as_text()
    found = lowered.compile()(q, k, v, mask)
    for one, other in zip(jax.tree.leaves(wanted), jax.tree.leaves(found), strict=True):
        assert np.isfinite(other).all()
        np.testing.assert_allclose(other, one, atol=1e-5, rtol=1e-5)
print("attention: equal")

structure, specs = make_model(tiny("llama"))
setup = Setup(structure, specs, make_optimizer(AdamW(), specs, 10), TokenLoss())
batch, key = random_batch(tiny("llama"), rows=8, decoder=32), jax.random.key(0)
params = setup.initial_state(make_placement(MeshConfig(), jax.devices()[:1]), 0)["params"]
wanted = jax.jit(lambda params: sums_and_gradient(setup, params, batch, key))(params)


def model_on_ring(params):
    with use(placement):
        return sums_and_gradient(setup, params, batch, key)


lowered = jax.jit(model_on_ring).lower(setup.initial_state(placement, 0)["params"])
assert "collective_permute" in lowered.as_text()
found = lowered.compile()(setup.initial_state(placement, 0)["params"])
np.testing.assert_allclose(found[0]["loss"], wanted[0]["loss"], rtol=1e-5)
for path, array in flatten(found[1]).items():
    np.testing.assert_allclose(array, flatten(wanted[1])[path], atol=1e-5, rtol=1e-5, err_msg=path)
print("model: equal")
