"""The fused cross-entropy has the values and gradients of the plain one; chunks change memory and nothing else."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import compiled

from t5x_like.ops.losses import Head, LossConfig, cross_entropy

B, L, D, V = 2, 7, 5, 11


def arrays(dtype=jnp.float32, bias: bool = True):
    numbers = np.random.default_rng(0)
    x = jnp.asarray(numbers.normal(size=(B, L, D)), dtype)
    kernel = jnp.asarray(numbers.normal(size=(V, D)), jnp.float32)
    targets = jnp.asarray(numbers.integers(0, V, (B, L)), jnp.int32)
    weights = jnp.asarray(numbers.uniform(0.2, 2.0, (B, L)) * (numbers.uniform(size=(B, L)) > 0.3), jnp.float32)
    return x, kernel, jnp.asarray(numbers.normal(size=V), jnp.float32) if bias else None, targets, weights


def plain(x, kernel, bias, targets, weights, head: Head, config: LossConfig):
    """The textbook form, left to autodiff."""
    logits = jnp.einsum("bld,vd->blv", x.astype(jnp.float32), kernel) * head.scale
    logits = logits if bias is None else logits + bias
    logits = head.soft_cap * jnp.tanh(logits / head.soft_cap) if head.soft_cap else logits
    log_p = jax.nn.log_softmax(logits)
    smooth = config.label_smoothing
    wanted = jax.nn.one_hot(targets, V) * (1 - smooth) + smooth / V
    z = config.z_loss * jnp.square(jax.nn.logsumexp(logits, axis=-1))
    return jnp.sum((z - jnp.sum(wanted * log_p, axis=-1)) * weights)


SETTINGS = {
    "plain": (LossConfig(), {}),
    "z-loss": (LossConfig(z_loss=0.1), {}),
    "smoothing": (LossConfig(label_smoothing=0.2), {}),
    "soft cap": (LossConfig(), dict(soft_cap=1.5)),
    "scale": (LossConfig(z_loss=0.01), dict(scale=0.25)),
    "all": (LossConfig(z_loss=0.05, label_smoothing=0.1), dict(scale=0.5, soft_cap=2.0)),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", SETTINGS)
def test_value_and_gradients(name, bias):
    config, fields = SETTINGS[name]
    x, kernel, b, targets, weights = arrays(bias=bias)
    which = (0, 1, 2) if bias else (0, 1)
    chunks = (0, 3, 7) if bias else (0, 3)  # 3 does not divide 7

    def ours(x, kernel, b, chunk):
        return cross_entropy(x, Head(kernel, b, **fields), targets, weights, config._replace(chunk=chunk)).loss

    def theirs(x, kernel, b):
        return plain(x, kernel, b, targets, weights, Head(kernel, b, **fields), config)

    @compiled
    def everything(*a):
        alone = [ours(*a, chunk) for chunk in chunks]  # without a gradient asked for
        return alone, [jax.value_and_grad(ours, which)(*a, c) for c in chunks], jax.value_and_grad(theirs, which)(*a)

    alone, fused, (wanted, wanted_gradients) = everything(x, kernel, b)
    for value, (got, gradients) in zip(alone, fused, strict=True):
        assert float(value) == pytest.approx(float(wanted), rel=1e-5)
        assert float(got) == pytest.approx(float(wanted), rel=1e-5)
        for one, other in zip(gradients, wanted_gradients, strict=True):
            np.testing.assert_allclose(one, other, atol=2e-5)


def test_gradient_follows_what_is_done_with_the_sum():
    x, kernel, bias, targets, weights = arrays()

    def mean(x):
        sums = cross_entropy(x, Head(kernel, bias), targets, weights)
        return 3.0 * sums.loss / sums.weight

    whole = compiled(jax.grad(lambda x: cross_entropy(x, Head(kernel, bias), targets, weights).loss))(x)
    np.testing.assert_allclose(compiled(jax.grad(mean))(x), 3.0 * whole / jnp.sum(weights), rtol=1e-5, atol=1e-7)


def test_the_other_sums():
    x, kernel, bias, targets, weights = arrays()
    head, config = Head(kernel, bias), LossConfig(z_loss=0.1, label_smoothing=0.3)
    logits = np.asarray(head.logits(x), np.float64)
    best = jnp.asarray(logits.argmax(-1), jnp.int32)
    targets = targets.at[:, ::2].set(best[:, ::2])
    log_z = np.log(np.exp(logits).sum(-1))
    nll = log_z - np.take_along_axis(logits, np.asarray(targets)[..., None], -1)[..., 0]
    right = np.asarray(targets) == logits.argmax(-1)
    w = np.asarray(weights, np.float64)
    for chunk in (0, 2):
        sums = cross_entropy(x, head, targets, weights, config._replace(chunk=chunk))
        assert float(sums.nll) == pytest.approx((nll * w).sum(), rel=1e-5)
        assert float(sums.z_loss) == pytest.approx((0.1 * log_z**2 * w).sum(), rel=1e-5)
        assert float(sums.correct) == pytest.approx((right * w).sum(), rel=1e-5)
        assert float(sums.weight) == pytest.approx(w.sum(), rel=1e-6)
    assert 0 < (right * w).sum() < w.sum()


@pytest.mark.parametrize("chunk", [0, 3])
def test_bfloat16_activations(chunk):
    x, kernel, bias, targets, weights = arrays(jnp.bfloat16)
    config = LossConfig(z_loss=0.01, chunk=chunk)

    def ours(x, kernel, bias):
        return cross_entropy(x, Head(kernel, bias), targets, weights, config).loss

    got, gradients = compiled(jax.value_and_grad(ours, (0, 1, 2)))(x, kernel, bias)
    rounded = kernel.astype(jnp.bfloat16).astype(jnp.float32)
    wanted, wanted_gradients = compiled(
        jax.value_and_grad(lambda *a: plain(*a, targets, weights, Head(kernel), config), (0, 1, 2))
    )(x.astype(jnp.float32), rounded, bias)
    assert float(got) == pytest.approx(float(wanted), rel=1e-4)  # the sum is float32
    assert [g.dtype for g in gradients] == [jnp.bfloat16, jnp.float32, jnp.float32]
    for one, other in zip(gradients, wanted_gradients, strict=True):
        np.testing.assert_allclose(np.asarray(one, np.float32), other, atol=0.03, rtol=0.03)


@pytest.mark.parametrize("chunk", [0, 3])
def test_targets_of_weight_zero_do_not_matter(chunk):
    x, kernel, bias, targets, weights = arrays()
    padding = weights == 0
    assert 0 < int(padding.sum()) < B * L

    def ours(x, kernel, bias, targets):
        return cross_entropy(x, Head(kernel, bias), targets, weights, LossConfig(z_loss=0.1, chunk=chunk)).loss

    function = compiled(jax.value_and_grad(ours, (0, 1, 2)))
    wanted, wanted_gradients = function(x, kernel, bias, targets)
    for strange in (0, -1, -100, V, 2**31 - 1):
        got, gradients = function(x, kernel, bias, jnp.where(padding, strange, targets))
        assert float(got) == float(wanted) and np.isfinite(float(got))
        for one, other in zip(gradients, wanted_gradients, strict=True):
            np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(np.asarray(gradients[0])[np.asarray(padding)], 0.0)


def test_a_target_outside_the_vocabulary_that_counts_is_not_hidden():
    x, kernel, bias, targets, _ = arrays()
    sums = cross_entropy(x, Head(kernel, bias), targets.at[0, 0].set(V), jnp.ones((B, L)))
    assert np.isnan(float(sums.loss))


def test_large_logits_stay_finite():
    x, kernel, bias, targets, weights = arrays()
    loss = cross_entropy(x * 1e4, Head(kernel, bias), targets, weights).loss
    wanted = plain(x * 1e4, kernel, bias, targets, weights, Head(kernel), LossConfig())
    assert float(loss) == pytest.approx(float(wanted), rel=1e-5)


def temporary_bytes(chunk: int, rows: int, length: int, width: int, vocabulary: int) -> int:
    """Memory that the compiled value and gradients need besides arguments and results."""

    def loss(x, kernel, targets, weights):
        return cross_entropy(x, Head(kernel), targets, weights, LossConfig(1e-4, chunk=chunk)).loss

    def of(*shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype)

    lowered = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(
        of(rows, length, width), of(vocabulary, width), of(rows, length, dtype=jnp.int32), of(rows, length)
    )
    return lowered.compile().memory_analysis().temp_size_in_bytes


def test_memory_holds_no_one_hot_and_with_chunks_no_whole_logits():
    sizes = dict(rows=2, length=64, width=8, vocabulary=20_000)
    logits = 2 * 64 * 20_000 * 4
    whole, chunked = temporary_bytes(0, **sizes), temporary_bytes(4, **sizes)
    assert logits <= whole < 2.5 * logits  # the logits and their gradient; targets as one-hot would be a third
    assert chunked < logits / 3
