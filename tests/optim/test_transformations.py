"""Any transformation of optax: its state is born sharded where its parameters are, and it updates on a mesh."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from t5x_like.arrays.spec import Initializer, ParamSpec
from t5x_like.arrays.trees import flatten, map_named
from t5x_like.core.errors import UserError
from t5x_like.layers.param import initialize
from t5x_like.optim import Adafactor, AdamW, Lion, Muon, Optax, OptimizerConfig, ScheduleFree
from t5x_like.optim.optimizer import kept_axes, make_optimizer
from t5x_like.sharding.config import MeshConfig
from t5x_like.sharding.mesh import make_placement

NORMAL = Initializer("normal", 0.3)
SPECS = {
    "token": {"table": ParamSpec((64, 32), ("vocab", "embed"), NORMAL)},
    "decoder": {
        "query": {"kernel": ParamSpec((2, 32, 32), ("layers", "embed", "heads"), NORMAL, fan=1)},
        "norm": {"scale": ParamSpec((2, 32), ("layers", "norm"), Initializer("constant", 1.0))},
    },
    "up": {"kernel": ParamSpec((32, 48), ("embed", "mlp"), NORMAL, fan=1)},
}


@dataclasses.dataclass(frozen=True)
class Accumulated(OptimizerConfig):
    """A user's own, in which optax wraps an optimizer."""

    every: int = 2

    def transformation(self, context):
        inner = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(context.learning_rate), optax.ema(0.9))
        return context.finish(optax.MultiSteps(inner, self.every).gradient_transformation())


NAMES = ("adabelief", "adam", "adamax", "adan", "amsgrad", "lamb", "lars", "lion", "nadamw", "novograd", "radam",
         "rmsprop", "scale_by_sm3", "yogi", "scale_by_adam", "contrib.ademamix", "contrib.adopt", "contrib.prodigy",
         "contrib.dadapt_adamw", "contrib.muon", "contrib.madgrad", "contrib.simplified_ademamix")  # fmt: skip
CONFIGS = {name: Optax(name=name, learning_rate=1e-3, weight_decay=0.1, rates=(("decoder", 0.5),)) for name in NAMES}
CONFIGS |= {
    "optax.adafactor": Optax(name="adafactor", arguments=("min_dim_size_to_factor=16",)),
    "MultiSteps": Accumulated(),
    "AdamW": AdamW(ema=0.99, frozen=("token",)),
    "Adafactor": Adafactor(min_dim_factored=16),
    "Lion": Lion(),
    "Muon": Muon(),
    "ScheduleFree": ScheduleFree(),
}


@pytest.mark.skipif(len(jax.devices()) < 8, reason="needs 8 devices")
@pytest.mark.parametrize("name", CONFIGS)
def test_it_starts_sharded_and_updates_on_a_mesh(name):
    placement = make_placement(MeshConfig(data=2, fsdp=2, tensor=2))
    shardings, optimizer = placement.of(SPECS), make_optimizer(CONFIGS[name], SPECS, 10)
    params = initialize(SPECS, jax.random.key(0), shardings)
    axes, shapes = optimizer.state_axes(), jax.eval_shape(optimizer.init, params)
    placed = map_named(lambda path, a, names: placement.sharding(names, a.shape, path), shapes, axes)
    state = jax.jit(optimizer.init, out_shardings=placed)(params)
    grads = initialize(SPECS, jax.random.key(1), shardings)
    update = jax.jit(optimizer.update, out_shardings=(shardings, placed, None))
    new = params
    for step in range(2):
        new, state, info = update(grads, state, new, jnp.int32(step))
    assert bool(info["finite"]) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(new))
    moved = sum(bool((a != b).any()) for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(params), strict=True))
    assert moved >= len(optimizer.trained) - 1
    kernels = {path: spec.shape for path, spec in flatten(SPECS).items() if path.endswith("kernel")}
    like_kernels = 0
    for path, array in flatten(state).items():
        if any(f"/{own}/" in f"/{path}/" and array.shape == shape for own, shape in kernels.items()):
            like_kernels += 1
            assert array.sharding.shard_shape(array.shape) != array.shape, path
            assert np.prod(array.sharding.shard_shape(array.shape)) * 4 == array.size, path
    assert like_kernels or name in ("Adafactor", "optax.adafactor", "scale_by_sm3")


def named(name, *arguments):
    return lambda: Optax(name=name, arguments=arguments)


@pytest.mark.parametrize("word", ["false", "False", "no"])
def test_a_word_for_false_is_no_text_that_is_true(word):
    """optax asks ``if nesterov``."""
    assert Optax(name="sgd", arguments=("momentum=.5", f"nesterov={word}"))._arguments() == {
        "momentum": 0.5, "nesterov": False
    }  # fmt: skip


@pytest.mark.parametrize(
    "config, words",
    [
        (named("adamm"), ["optimizer.name", "'adamm'", "did you mean 'adam"]),
        (named("prodigy"), ["optimizer.name", "did you mean 'contrib.prodigy'"]),
        (named("os.system"), ["optimizer.name"]),
        (named("contrib._muon"), ["optimizer.name"]),
        (named("contrib.schedule_free_adamw"), ["optimizer=ScheduleFree"]),
        (named("adam", "b3=0.5"), ["optimizer.arguments", "'b3'", "b1, b2", "did you mean"]),
        (named("adam", "b1"), ["optimizer.arguments", "name=value"]),
        (named("adam", "eps=NaN"), ["optimizer.arguments", "eps=nan", "a finite number"]),
        (named("adam", "eps=1e999"), ["optimizer.arguments", "eps=inf", "a finite number"]),
        (named("adamw", "weight_decay=0.1"), ["optimizer.arguments", "optimizer.weight_decay"]),
        (named("lbfgs"), ["optimizer.name", "'lbfgs' cannot be used"]),
        (named("cosine_decay_schedule", "init_value=1", "decay_steps=3"), ["no GradientTransformation"]),
        (named("adam", "b1=fast"), ["optimizer.name", "'adam' with b1=fast cannot be used"]),
        (named("adam", "b1=0.5", "b1=0.6"), ["optimizer.arguments", "b1=0.6", "one value of b1"]),
        (named("adam", "b1=" + "[" * 100_000), ["optimizer.name", "cannot be used"]),
    ],
)
def test_what_optax_has_not_is_refused(config, words):
    with pytest.raises(UserError) as error:
        make_optimizer(config(), SPECS, 1)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_by_name_it_is_optax_own():
    specs = {"a": {"kernel": ParamSpec((256, 32), ("vocab", "embed"), NORMAL)}}
    params, grads = ({"a": {"kernel": jnp.full((256, 32), value)}} for value in (0.5, 0.1))
    optimizer = make_optimizer(Optax(name="lamb", arguments=("b1=0.5",), learning_rate=0.1), specs, 3)
    theirs = optax.lamb(0.1, b1=0.5)
    state, inner, ours = optimizer.init(params), theirs.init(params), params
    for step in range(3):
        ours, state, _ = optimizer.update(grads, state, ours, jnp.int32(step))
        with jax.numpy_dtype_promotion("standard"):
            change, inner = theirs.update(grads, inner, params)
            params = optax.apply_updates(params, change)
    np.testing.assert_allclose(ours["a"]["kernel"], params["a"]["kernel"], rtol=1e-6)


def test_axes_are_found_by_shape():
    spec = ParamSpec((4, 8, 8), ("layers", "embed", "mlp"), NORMAL)
    assert kept_axes(spec, (4, 8, 8)) == ("layers", "embed", "mlp")
    assert kept_axes(spec, (4, 8, 1)) == ("layers", "embed", None)
    assert kept_axes(spec, (4, 8)) == ("layers", None)  # which 8 it is, sizes do not tell
    assert kept_axes(spec, (8, 8)) == ("embed", "mlp")
    assert kept_axes(spec, (3,)) == (None,) and kept_axes(spec, ()) == () and kept_axes(None, (8,)) == (None,)
