"""Who gets what: decay, freezing, clipping, state and its axes, dtypes, and patterns that match nothing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_like.arrays.spec import Initializer, ParamSpec
from t5x_like.arrays.trees import flatten, map_named
from t5x_like.core.errors import UserError
from t5x_like.optim import Adafactor, AdamW, Lion
from t5x_like.optim.config import NO_DECAY
from t5x_like.optim.optimizer import make_optimizer

INIT = Initializer("normal", 1.0)
SPECS = {
    "embedding": {"table": ParamSpec((256, 128), ("vocab", "embed"), INIT)},
    "encoder": {
        "layers": {
            "norm": {"scale": ParamSpec((2, 128), ("layers", "norm"), INIT)},
            "mlp": {"kernel": ParamSpec((2, 128, 130), ("layers", "embed", "mlp"), INIT),
                    "bias": ParamSpec((2, 130), ("layers", "mlp"), INIT)},
        },
        "relative_bias": {"table": ParamSpec((32, 4), ("buckets", "heads"), INIT)},
    },
}
ONES = map_named(lambda _, s: jnp.ones(s.shape), SPECS)


def step(config, grads=ONES, params=ONES):
    optimizer = make_optimizer(config, SPECS, 10)
    return jax.jit(optimizer.update)(grads, optimizer.init(params), params, jnp.int32(0))


def arrays(state):
    """Those of parameters: all but the count of updates."""
    return [array for path, array in flatten(state).items() if path != "count"]


def test_defaults_decay_matrices_only():
    rows = {row.path: row for row in make_optimizer(AdamW(), SPECS, 10).table()}
    assert [path for path, row in rows.items() if row.decay] == ["embedding/table", "encoder/layers/mlp/kernel"]
    without, _, _ = step(AdamW(weight_decay=0.0))
    with_decay, _, _ = step(AdamW(weight_decay=0.5))
    for path, array in flatten(with_decay).items():
        changed = not np.array_equal(array, flatten(without)[path])
        assert changed == rows[path].decay, path


def test_frozen_have_no_state_and_do_not_move():
    config = AdamW(frozen=("^embedding/", "mlp/kernel"))
    huge = {**ONES, "embedding": {"table": jnp.full((256, 128), jnp.nan)}}
    params, state, info = step(config, huge)
    assert "embedding" not in state["mu"] and "kernel" not in state["nu"]["encoder"]["layers"]["mlp"]
    np.testing.assert_array_equal(params["embedding"]["table"], 1.0)
    np.testing.assert_array_equal(params["encoder"]["layers"]["mlp"]["kernel"], 1.0)
    assert (np.asarray(params["encoder"]["layers"]["mlp"]["bias"]) < 1).all()
    trained = 2 * 128 + 2 * 130 + 32 * 4
    assert float(info["gradient_norm"]) == pytest.approx(np.sqrt(trained), rel=1e-6)
    frozen = [row for row in make_optimizer(config, SPECS, 10).table() if row.frozen]
    assert [row.path for row in frozen] == ["embedding/table", "encoder/layers/mlp/kernel"]
    assert all(row.state_bytes == 0 and not row.decay for row in frozen)


def test_gradients_of_frozen_parameters_may_be_missing():
    grads = {"encoder": ONES["encoder"]}
    params, _, _ = step(Lion(frozen=("embedding",)), grads)
    assert flatten(params).keys() == flatten(SPECS).keys()


@pytest.mark.parametrize("field", ["no_decay", "frozen"])
def test_a_pattern_that_matches_nothing_names_the_nearest(field):
    with pytest.raises(UserError) as error:
        make_optimizer(AdamW(**{field: ("encodr/.*/mlp/kernels",)}), SPECS, 10)
    text = str(error.value)
    assert f"optimizer.{field}" in text and "encodr/.*/mlp/kernels" in text
    assert text.index("encoder/layers/mlp/kernel") < text.index("encoder/layers/mlp/bias")
    with pytest.raises(UserError, match="not a regular expression"):
        make_optimizer(AdamW(**{field: ("(",)}), SPECS, 10)


def test_default_patterns_may_match_nothing():
    only = {"kernel": SPECS["embedding"]["table"]}
    assert make_optimizer(AdamW(no_decay=NO_DECAY), only, 10).table()[0].decay


def test_everything_frozen_is_refused():
    with pytest.raises(UserError, match="freezes every parameter"):
        make_optimizer(AdamW(frozen=(".",)), SPECS, 10)
    with pytest.raises(UserError, match="clip_norm"):
        AdamW(clip_norm=-1.0)


@pytest.mark.parametrize("config", [AdamW(), Adafactor(), Lion()], ids=lambda config: type(config).__name__)
def test_state_axes_have_the_structure_and_rank_of_the_state(config):
    optimizer = make_optimizer(config, SPECS, 10)
    state, axes = flatten(optimizer.init(ONES)), flatten(optimizer.state_axes())
    assert list(state) == list(axes)
    sizes = {"vocab": 256, "embed": 128, "layers": 2, "norm": 128, "mlp": 130, "buckets": 32, "heads": 4}
    for path, array in state.items():
        assert array.shape == tuple(1 if axis is None else sizes[axis] for axis in axes[path]), path
        assert array.dtype == (jnp.int32 if path == "count" else jnp.float32)
    _, after, _ = step(config)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, optimizer.init(ONES))
    of_parameters = sum(array.nbytes for path, array in state.items() if path not in ("count", "size"))
    assert sum(row.state_bytes for row in optimizer.table()) == of_parameters
    # Abstractly too, for parameters that are born sharded.
    assert jax.tree.structure(jax.eval_shape(optimizer.init, ONES)) == jax.tree.structure(after)


def test_adafactor_factors_each_layer():
    rows = {row.path: row for row in make_optimizer(Adafactor(), SPECS, 10).table()}
    factored = [path for path, row in rows.items() if row.state_bytes < 4 * np.prod(row.shape)]
    assert factored == ["embedding/table", "encoder/layers/mlp/kernel"]
    assert rows["encoder/layers/mlp/kernel"].state_bytes == 4 * 2 * (128 + 130)


def test_clipping_bounds_the_norm_and_leaves_small_gradients_alone():
    config = AdamW(clip_norm=1.0, b1=0.0, b2=0.0)
    _, state, info = step(config)
    norm = np.sqrt(sum(float(jnp.sum(mu**2)) for mu in flatten(state["mu"]).values()))
    assert float(info["gradient_norm"]) > 100 and norm == pytest.approx(1.0, rel=1e-5)
    tiny = map_named(lambda _, x: x * 1e-5, ONES)
    _, state, _ = step(config, tiny)
    np.testing.assert_array_equal(state["mu"]["embedding"]["table"], tiny["embedding"]["table"])


@pytest.mark.parametrize("config", [AdamW(), Adafactor(), Lion()], ids=lambda config: type(config).__name__)
def test_half_precision_gradients_and_parameters(config):
    half = map_named(lambda _, x: x.astype(jnp.bfloat16), ONES)
    params, state, _ = step(config, grads=half)
    assert all(array.dtype == jnp.float32 for array in [*flatten(params).values(), *arrays(state)])
    params, state, _ = step(config, grads=half, params=half)
    assert all(array.dtype == jnp.bfloat16 for array in flatten(params).values())
    assert all(array.dtype == jnp.float32 for array in arrays(state))


def test_names_that_differ_from_the_declarations_are_a_bug():
    with pytest.raises(ValueError, match="encoder/layers/mlp/bias"):
        make_optimizer(AdamW(), SPECS, 10).init({"embedding": ONES["embedding"]})


def test_the_update_has_no_more_work_than_one_written_by_hand():
    optimizer = make_optimizer(AdamW(no_decay=(), weight_decay=0.1, clip_norm=1.0), SPECS, 10)
    state = optimizer.init(ONES)

    def by_hand(grads, state, params, step):
        count = (step + 1).astype(jnp.float32)
        norm = jnp.sqrt(sum(jnp.sum(g * g) for g in jax.tree.leaves(grads)))
        scale = 1.0 / jnp.maximum(norm, 1.0)
        grads = jax.tree.map(lambda g: g * scale, grads)
        mu = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, state["mu"], grads)
        nu = jax.tree.map(lambda n, g: 0.95 * n + 0.05 * g * g, state["nu"], grads)
        rate = jnp.float32(1e-3)
        new = jax.tree.map(
            lambda p, m, n: p - rate * (m / (1 - 0.9**count) / (jnp.sqrt(n / (1 - 0.95**count)) + 1e-8) + 0.1 * p),
            params, mu, nu,
        )
        info = {"learning_rate": rate, "gradient_norm": norm, "finite": jnp.isfinite(norm)}
        return new, {"count": state["count"] + 1, "mu": mu, "nu": nu}, info

    def cost(function):
        compiled = jax.jit(function, donate_argnums=(1, 2)).lower(ONES, state, ONES, jnp.int32(0)).compile()
        analysis = compiled.cost_analysis()
        return analysis["flops"], analysis["bytes accessed"], compiled.memory_analysis().temp_size_in_bytes

    for ours, theirs in zip(cost(optimizer.update), cost(by_hand), strict=True):
        assert ours <= theirs * 1.01 + 256
