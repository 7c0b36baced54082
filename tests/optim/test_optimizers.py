"""Each optimizer against optax over 20 updates, and Adafactor against its paper in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t5x_like.arrays.spec import Initializer, ParamSpec
from t5x_like.arrays.trees import flatten, map_named
from t5x_like.optim import Adafactor, AdamW, Lion, OptimizerConfig, Schedule
from t5x_like.optim.optimizer import make_optimizer

NORMAL = Initializer("normal", 1.0)
SPECS = {
    "encoder": {
        "query": {"kernel": ParamSpec((136, 192), ("embed", "heads"), NORMAL)},
        "norm": {"scale": ParamSpec((136,), ("norm",), NORMAL)},
    },
    "small": {"kernel": ParamSpec((24, 160), ("embed", "mlp"), NORMAL), "bias": ParamSpec((160,), ("mlp",), NORMAL)},
}
UPDATES = 20
Trees = list[dict]


def random_tree(seed: int, specs: dict = SPECS, scale: float = 1.0) -> dict:
    numbers = np.random.default_rng(seed)
    return map_named(lambda _, s: jnp.asarray(scale * numbers.normal(size=s.shape), jnp.float32), specs)


def gradients(specs: dict = SPECS) -> Trees:
    # Of changing size, so that bias corrections, decays and clips all matter.
    return [random_tree(100 + step, specs, scale=0.1 * 3 ** (step % 4 - 2)) for step in range(UPDATES)]


def run(config: OptimizerConfig, grads: Trees, specs: dict = SPECS, params: dict | None = None) -> Trees:
    optimizer = make_optimizer(config, specs, UPDATES)
    params = random_tree(0, specs) if params is None else params
    state, seen = optimizer.init(params), []
    update = jax.jit(optimizer.update)
    for step, gradient in enumerate(grads):
        params, state, _ = update(gradient, state, params, jnp.int32(step))
        seen.append(params)
    return seen


def run_optax(transformation: optax.GradientTransformation, grads: Trees) -> Trees:
    params, seen = random_tree(0), []
    state = transformation.init(params)

    @jax.jit
    def update(gradient, state, params):
        change, state = transformation.update(gradient, state, params)
        return optax.apply_updates(params, change), state

    with jax.numpy_dtype_promotion("standard"):  # which optax needs
        for gradient in grads:
            params, state = update(gradient, state, params)
            seen.append(params)
    return seen


def assert_close(left: Trees, right: Trees, tolerance: float) -> None:
    for one, other in zip(left, right, strict=True):
        for path, array in flatten(one).items():
            np.testing.assert_allclose(array, flatten(other)[path], rtol=tolerance, atol=tolerance, err_msg=path)


def decays(path: str, _) -> bool:
    return path.endswith("kernel")


def rate(step):
    return 0.02 * jnp.minimum(1.0, (step + 1) / 5)


WARM = Schedule("constant", warmup=5)


@pytest.mark.parametrize("clip", [0.0, 0.7])
def test_adamw_against_optax(clip):
    config = AdamW(0.02, b1=0.8, b2=0.95, eps=1e-6, weight_decay=0.3, clip_norm=clip, schedule=WARM)
    chain = [optax.clip_by_global_norm(clip)] if clip else []
    mask = map_named(decays, SPECS)
    theirs = optax.chain(*chain, optax.adamw(rate, b1=0.8, b2=0.95, eps=1e-6, weight_decay=0.3, mask=mask))
    assert_close(run(config, gradients()), run_optax(theirs, gradients()), 1e-6)


@pytest.mark.parametrize("clip", [0.0, 0.7])
def test_lion_against_optax(clip):
    config = Lion(0.02, b1=0.85, b2=0.97, weight_decay=0.5, clip_norm=clip, schedule=WARM)
    chain = [optax.clip_by_global_norm(clip)] if clip else []
    theirs = optax.chain(*chain, optax.lion(rate, b1=0.85, b2=0.97, weight_decay=0.5, mask=map_named(decays, SPECS)))
    assert_close(run(config, gradients()), run_optax(theirs, gradients()), 1e-6)


@pytest.mark.parametrize("by_size", [True, False])
def test_adafactor_against_optax(by_size):
    config = Adafactor(0.02, multiply_by_parameter_scale=by_size, schedule=WARM)
    theirs = optax.adafactor(rate, multiply_by_parameter_scale=by_size, decay_rate=0.8, eps=1e-30,
                             min_dim_size_to_factor=128, clipping_threshold=1.0)
    assert_close(run(config, gradients()), run_optax(theirs, gradients()), 1e-6)


def by_definition(config: AdamW | Lion, path: str, grads: Trees, params: np.ndarray) -> list[np.ndarray]:
    """AdamW (its paper's Algorithm 2, with the decay times the learning rate) and Lion (Program 1) in float64."""
    x, m, v, seen = params.astype(np.float64), 0.0, 0.0, []
    decay = config.weight_decay if path.endswith("kernel") else 0.0
    for t, tree in enumerate(grads, start=1):
        norm = np.sqrt(sum(np.sum(np.asarray(g, np.float64) ** 2) for g in flatten(tree).values()))
        clipped = min(1.0, config.clip_norm / norm) if config.clip_norm else 1.0
        g = np.asarray(flatten(tree)[path], np.float64) * clipped
        if isinstance(config, AdamW):
            m, v = config.b1 * m + (1 - config.b1) * g, config.b2 * v + (1 - config.b2) * g**2
            u = m / (1 - config.b1**t) / (np.sqrt(v / (1 - config.b2**t)) + config.eps)
        else:
            u = np.sign(config.b1 * m + (1 - config.b1) * g)
            m = config.b2 * m + (1 - config.b2) * g
        x = x - config.learning_rate * min(1.0, t / 5) * (u + decay * x)
        seen.append(x)
    return seen


@pytest.mark.parametrize("clip", [0.0, 0.7])
@pytest.mark.parametrize("kind", [AdamW, Lion])
def test_against_their_definitions(kind, clip):
    config = kind(0.02, b1=0.8, b2=0.95, weight_decay=0.3, clip_norm=clip, schedule=WARM)
    ours = run(config, gradients())
    for path, start in flatten(random_tree(0)).items():
        wanted = by_definition(config, path, gradients(), np.asarray(start))
        for found, expected in zip(ours, wanted, strict=True):
            np.testing.assert_allclose(flatten(found)[path], expected, rtol=1e-6, atol=1e-6, err_msg=path)


def paper_adafactor(parameter: np.ndarray, grads: list[np.ndarray], rho: float) -> list[np.ndarray]:
    """Algorithms 4 (matrices of 128 and more) and 5 (vectors, here also small matrices) with the paper's sums, and the
    proposed hyperparameters of its Algorithm 6, in float64."""
    x, seen = parameter.astype(np.float64), []
    factored = x.ndim == 2 and min(x.shape) >= 128
    row, column, full = 0.0, 0.0, 0.0
    for t, g in enumerate(np.asarray(grads, np.float64), start=1):
        alpha = max(1e-3, np.sqrt(np.mean(x**2))) * rho
        beta = 1 - t**-0.8
        square = g**2 + 1e-30
        if factored:
            row = beta * row + (1 - beta) * square.sum(1)
            column = beta * column + (1 - beta) * square.sum(0)
            second = np.outer(row, column) / row.sum()
        else:
            second = full = beta * full + (1 - beta) * square
        u = g / np.sqrt(second)
        x = x - alpha * u / max(1.0, np.sqrt(np.mean(u**2)))
        seen.append(x)
    return seen


def test_adafactor_against_the_paper():
    grads = gradients()
    ours = run(Adafactor(0.02, schedule=Schedule()), grads)
    for path, start in flatten(random_tree(0)).items():
        expected = paper_adafactor(np.asarray(start), [np.asarray(flatten(g)[path]) for g in grads], 0.02)
        for found, wanted in zip(ours, expected, strict=True):
            np.testing.assert_allclose(flatten(found)[path], wanted, rtol=2e-5, atol=2e-6, err_msg=path)


def test_adafactor_survives_zero_and_tiny_gradients():
    zeros = [map_named(lambda _, s: jnp.zeros(s.shape), SPECS)] * 2 + [random_tree(1, scale=1e-12)]
    for params in run(Adafactor(), zeros):
        assert all(np.isfinite(array).all() for array in flatten(params).values())


def test_adafactor_keeps_a_row_and_a_column_of_a_matrix():
    axes = make_optimizer(Adafactor(), {"k": ParamSpec((136, 192), ("embed", "heads"), NORMAL)}, 1).state_axes()
    kept = {name: tree["k"] for name, tree in axes.items() if name in ("row", "column", "full")}
    assert kept == {"row": ("embed", None), "column": (None, "heads")}


EACH = (AdamW(clip_norm=0.5), Adafactor(weight_decay=0.1), Lion())


@pytest.mark.parametrize("config", EACH, ids=lambda config: type(config).__name__)
def test_stacked_layers_are_updated_as_if_alone(config):
    layers = 3
    stacked = {"layers": map_named(lambda _, s: s.stack(layers), SPECS)}
    unrolled = {f"layer_{i}": SPECS for i in range(layers)}

    def slices(tree: dict) -> dict:
        return {f"layer_{i}": map_named(lambda _, x, i=i: x[i], tree["layers"]) for i in range(layers)}

    # Layers of unlike size: a statistic taken over all of them would show.
    sizes = jnp.asarray([1.0, 30.0, 0.01])
    unlike = lambda tree: map_named(lambda _, x: x * sizes.reshape(-1, *[1] * (x.ndim - 1)), tree)  # noqa: E731
    start = unlike(random_tree(0, stacked))
    grads = [unlike(g) for g in gradients(stacked)[:6]]
    together = run(config, grads, stacked, start)
    apart = run(config, [slices(g) for g in grads], unrolled, slices(start))
    assert_close([slices(p) for p in together], apart, 1e-6)
