"""Muon, schedule-free, the moving average, rates by pattern, a user's own optimizer, updates that are not finite."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t5x_like.arrays.spec import Initializer, ParamSpec
from t5x_like.arrays.trees import flatten, join, map_named, split, unflatten
from t5x_like.core.config import from_json, override, to_json
from t5x_like.core.errors import UserError
from t5x_like.optim import Adafactor, AdamW, Joined, Lion, Muon, Optax, OptimizerConfig, Schedule, ScheduleFree
from t5x_like.optim.optimizer import make_optimizer

NORMAL = Initializer("normal", 1.0)
SPECS = {
    "token": {"table": ParamSpec((16, 8), ("vocab", "embed"), NORMAL)},
    "layers": {
        "up": {"kernel": ParamSpec((2, 8, 12), ("layers", "embed", "mlp"), NORMAL, fan=1)},
        "norm": {"scale": ParamSpec((2, 8), ("layers", "norm"), NORMAL)},
    },
    "head": {"kernel": ParamSpec((16, 8), ("vocab", "embed"), NORMAL, fan=1)},
}
SHIPPED = (AdamW(), Adafactor(), Lion(), Muon(), ScheduleFree(), Optax(name="adam"))


def tree(seed: int, scale: float = 1.0) -> dict:
    numbers = np.random.default_rng(seed)
    return map_named(lambda _, s: jnp.asarray(scale * numbers.normal(size=s.shape), jnp.float32), SPECS)


def run(config, steps: int = 5, total: int = 5, params=None):
    optimizer = make_optimizer(config, SPECS, total)
    params = tree(0) if params is None else params
    state, seen = optimizer.init(params), []
    update = jax.jit(optimizer.update)
    for step in range(steps):
        params, state, info = update(tree(step + 1), state, params, jnp.int32(step))
        seen.append((params, state, info))
    return optimizer, seen


def test_muon_makes_each_layers_update_orthogonal_and_leaves_the_rest_to_adam():
    _, seen = run(Muon(0.1, scale="spectral", b1=0.0, adam_factor=3.0), 1)
    change = map_named(lambda _, new, old: np.asarray(old - new), seen[0][0], tree(0))
    for layer in change["layers"]["up"]["kernel"]:  # 8 x 12: singular values near (12 / 8) ** 0.5
        singular = np.linalg.svd(layer / 0.1 / 1.5**0.5, compute_uv=False)
        assert singular.min() > 0.5 and singular.max() < 1.3
    for path in ("token/table", "layers/norm/scale", "head/kernel"):  # Adam's first step is a sign
        np.testing.assert_allclose(np.abs(flatten(change)[path]), 0.3, rtol=1e-4, err_msg=path)


def test_muon_moves_in_proportion_to_the_parameter():
    small = map_named(lambda path, p: p * (0.01 if path.startswith("layers") else 1.0), tree(0))
    _, seen = run(Muon(0.1, adam_factor=1.0), 1, params=small)
    for path, new in flatten(seen[0][0]).items():
        old = flatten(small)[path]
        for one, other in zip(new, old, strict=True) if path.startswith("layers") else [(new, old)]:
            share = float(jnp.sqrt(jnp.mean((one - other) ** 2) / jnp.mean(other**2)))
            assert 0.05 < share < 0.15, path


def test_schedule_free_is_evaluated_at_the_average_of_its_fast_parameters():
    config = ScheduleFree(0.05, schedule=Schedule())
    optimizer, seen = run(config, 4)
    fast = [state["z"] for _, state, _ in seen]  # equal weights at a constant rate
    average = jax.tree.map(lambda *z: sum(z) / len(z), *fast)
    params, state, _ = seen[-1]
    found = optimizer.eval_params(params, state)
    for path, array in flatten(found).items():
        np.testing.assert_allclose(array, flatten(average)[path], rtol=1e-5, atol=1e-5, err_msg=path)
        mixed = 0.9 * array + 0.1 * flatten(fast[-1])[path]
        np.testing.assert_allclose(flatten(params)[path], mixed, rtol=1e-5, atol=1e-5, err_msg=path)


def test_the_moving_average_is_evaluated_and_its_frozen_parameters_are_themselves():
    optimizer, seen = run(AdamW(0.1, ema=0.5, frozen=("token",)), 5)
    average = np.asarray(tree(0)["head"]["kernel"])
    for step, (params, _, _) in enumerate(seen):
        decay = min(0.5, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * np.asarray(params["head"]["kernel"])
    params, state, _ = seen[-1]
    found = optimizer.eval_params(params, state)
    np.testing.assert_allclose(found["head"]["kernel"], average, rtol=1e-6)
    assert found["token"]["table"] is params["token"]["table"] and "token" not in state["params_ema"]
    plain, seen = run(AdamW(0.1), 1)
    assert plain.eval_params(*seen[0][:2])["head"]["kernel"] is seen[0][0]["head"]["kernel"]
    half = map_named(lambda _, p: p.astype(jnp.bfloat16), tree(0))
    state = make_optimizer(AdamW(ema=0.9), SPECS, 1).init(half)
    assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(state["params_ema"]))


@pytest.mark.parametrize("config", SHIPPED, ids=lambda config: type(config).__name__)
def test_rates_by_pattern(config):
    rates = (("^head", 0.5), ("kernel", 0.2))
    schedule = dict(schedule=Schedule()) if isinstance(config, ScheduleFree) else {}
    optimizer, slow = run(dataclasses.replace(config, rates=rates, **schedule), 1)
    _, plain = run(dataclasses.replace(config, **schedule), 1)
    assert {row.path: row.factor for row in optimizer.table()} == {
        "token/table": 1.0, "layers/up/kernel": 0.2, "layers/norm/scale": 1.0, "head/kernel": 0.1,
    }  # fmt: skip
    for row in optimizer.table():
        was, full, less = (flatten(t)[row.path] for t in (tree(0), plain[0][0], slow[0][0]))
        np.testing.assert_allclose(less - was, row.factor * (full - was), atol=1e-6, err_msg=row.path)
    with pytest.raises(UserError, match=r"optimizer.rates: 'haed' matches no parameter"):
        make_optimizer(dataclasses.replace(config, rates=(("haed", 0.5),)), SPECS, 1)


@pytest.mark.parametrize("config", SHIPPED, ids=lambda config: type(config).__name__)
def test_the_frozen_are_unknown_to_the_optimizer(config):
    optimizer, seen = run(dataclasses.replace(config, frozen=("^layers",)), 1)
    params, state, _ = seen[0]
    assert not [path for path in flatten(state) if "layers" in path]
    assert optimizer.trained == {"token/table", "head/kernel"}
    trained, frozen = split(params, optimizer.trained)
    assert set(trained) == {"token", "head"} and set(frozen) == {"layers"}
    merged = flatten(join(trained, frozen))
    assert merged.keys() == flatten(SPECS).keys()
    assert all(merged[path] is leaf for path, leaf in flatten(params).items())


@dataclasses.dataclass(frozen=True)
class SignedMomentum(OptimizerConfig):
    b1: float = 0.9

    def transformation(self, context):
        return context.descend(optax.chain(optax.trace(self.b1), optax.scale_by_sign()))


@dataclasses.dataclass(frozen=True)
class Plain(OptimizerConfig):
    def transformation(self, context):
        return optax.sgd(context.learning_rate)


def test_a_users_own_optimizer():
    _, seen = run(SignedMomentum(0.1, weight_decay=0.5, rates=(("head", 0.1),)), 1)
    start, gradient = tree(0)["head"]["kernel"], tree(1)["head"]["kernel"]
    expected = start - 0.01 * (jnp.sign(gradient) + 0.5 * start)
    np.testing.assert_allclose(seen[0][0]["head"]["kernel"], expected, rtol=1e-6)
    _, seen = run(Plain(0.1), 1)
    np.testing.assert_allclose(seen[0][0]["head"]["kernel"], start - 0.1 * gradient, rtol=1e-6)
    for ignored in (dict(weight_decay=0.1), dict(rates=(("head", 0.1),))):
        with pytest.raises(UserError, match=r"Plain.transformation makes no use of it"):
            make_optimizer(Plain(**ignored), SPECS, 1)


@dataclasses.dataclass(frozen=True)
class Holder:
    optimizer: OptimizerConfig = AdamW()


JOINED = Muon(schedule=Joined((Schedule(), Schedule()), (0.5,)))


@pytest.mark.parametrize("config", [*SHIPPED, SignedMomentum(), JOINED], ids=lambda config: type(config).__name__)
def test_configs_go_to_json_and_back(config):
    held = Holder(dataclasses.replace(config, rates=(("head", 0.5),), ema=0.9))
    assert from_json(Holder, to_json(held)) == held
    assert override(Holder(), [f"optimizer={type(config).__name__}"]).optimizer == type(config)()
    assert override(Holder(), ["optimizer.schedule.warmup=0.1"]).optimizer.schedule.warmup == 0.1
    assert override(Holder(), ["optimizer.schedule.warmup=10"]).optimizer.schedule.warmup == 10


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize("config", SHIPPED, ids=lambda config: type(config).__name__)
def test_numbers_have_bounds(config, value):
    fields = [f.name for f in dataclasses.fields(config) if isinstance(getattr(config, f.name), float)]
    assert {"learning_rate", "weight_decay", "clip_norm", "ema"} <= set(fields)
    for name in fields:
        with pytest.raises(UserError, match=rf"optimizer\.{name}: got"):
            dataclasses.replace(config, **{name: value})
    with pytest.raises(UserError, match=r"optimizer\.rates: got"):
        dataclasses.replace(config, rates=(("head", value),))


@pytest.mark.parametrize("wrong", [
    "AdamW b1=1", "AdamW b1=-0.5", "AdamW b2=1", "AdamW b2=1.5", "AdamW eps=0", "AdamW eps=-1", "AdamW ema=1",
    "AdamW weight_decay=inf", "AdamW clip_norm=inf", "AdamW clip_norm=-1", "AdamW learning_rate=1e39",
    "AdamW schedule.peak=0", "AdamW schedule.warmup=1.5", "AdamW schedule.decay=0", "Lion b1=1.5", "Lion b2=-1",
    "Adafactor eps1=0", "Adafactor eps1=1e30", "Adafactor decay_exponent=-0.8", "Adafactor min_dim_factored=-5",
    "Adafactor eps2=-1", "Muon iterations=0", "Muon beta=1", "ScheduleFree interpolation=0",
    "ScheduleFree weight_power=100",
])  # fmt: skip
def test_numbers_that_cannot_work_are_refused_on_the_command_line(wrong):
    name, assignment = wrong.split()
    field, value = assignment.split("=")
    with pytest.raises(UserError, match=rf"optimizer\.{field}: got .*{float(value):g}"):
        override(Holder(), [f"optimizer={name}", f"optimizer.{assignment}"])


@dataclasses.dataclass(frozen=True)
class Silent(SignedMomentum):
    """Its update is always finite; its state is not where a gradient is 0."""

    def transformation(self, context):
        def update(updates, state, params=None):
            return jax.tree.map(jnp.sign, updates), jax.tree.map(lambda g: 1 / g, updates)

        return context.descend(optax.GradientTransformation(lambda params: params, update))


@dataclasses.dataclass(frozen=True)
class KeepsInfinity(SignedMomentum):
    """As a best loss so far begins."""

    def transformation(self, context):
        init = lambda params: {"least": jnp.float32(jnp.inf)}  # noqa: E731
        return context.descend(optax.GradientTransformation(init, lambda updates, state, params=None: (updates, state)))


DIVIDES_BY_ZERO = {
    "optax": Optax(name="adam", arguments=("eps=0.0",)),
    "only the state": Silent(),
}


def test_infinity_in_a_state_from_its_start_is_no_reason_to_stop():
    optimizer = make_optimizer(KeepsInfinity(), SPECS, 5)
    _, _, info = optimizer.update(tree(1), optimizer.init(tree(0)), tree(0), jnp.int32(0))
    assert bool(info["finite"])


def test_a_clip_or_a_parameter_at_the_ends_of_float32():
    optimizer = make_optimizer(AdamW(clip_norm=1e-45), SPECS, 5)
    _, _, info = optimizer.update(tree(1, 0.0), optimizer.init(tree(0)), tree(0), jnp.int32(0))
    assert bool(info["finite"])
    optimizer = make_optimizer(AdamW(learning_rate=3e38, weight_decay=3e38), SPECS, 5)
    _, _, info = optimizer.update(tree(1), optimizer.init(tree(0)), tree(0), jnp.int32(0))
    assert not bool(info["finite"]) and np.isfinite(float(info["gradient_norm"]))


@pytest.mark.parametrize("config", DIVIDES_BY_ZERO.values(), ids=DIVIDES_BY_ZERO)
@pytest.mark.parametrize("path", list(flatten(SPECS)))
def test_an_update_that_is_not_finite_is_reported_although_its_gradient_is(config, path):
    optimizer = make_optimizer(dataclasses.replace(config, weight_decay=0.0), SPECS, 5)
    grads = flatten(tree(1))
    _, _, info = optimizer.update(unflatten(grads), optimizer.init(tree(0)), tree(0), jnp.int32(0))
    assert bool(info["finite"])
    grads[path] = grads[path].at[(-1,) * grads[path].ndim].set(0.0)  # 0 / 0 in one place, the last
    params, state, info = optimizer.update(unflatten(grads), optimizer.init(tree(0)), tree(0), jnp.int32(0))
    assert not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((params, state)))
    assert not bool(info["finite"]) and np.isfinite(float(info["gradient_norm"]))


@pytest.mark.parametrize("config", SHIPPED, ids=lambda config: type(config).__name__)
def test_gradients_of_zero_or_of_extreme_size_are_no_reason_to_stop(config):
    optimizer = make_optimizer(config, SPECS, 5)
    for scale in (0.0, 1e-30, 1e-12, 1e12):
        params, _, info = optimizer.update(tree(1, scale), optimizer.init(tree(0)), tree(0), jnp.int32(0))
        assert bool(info["finite"]) == all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params)) is True, scale
    _, _, info = optimizer.update(tree(1, float("nan")), optimizer.init(tree(0)), tree(0), jnp.int32(0))
    assert not bool(info["finite"])
