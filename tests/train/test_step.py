"""The train step: the same loss and update on every mesh and in micro-batches, and no update that is not finite."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import random_batch, tiny
from tiny_runs import assert_close, assert_same_bits

from t5x_like.arrays.trees import flatten
from t5x_like.losses import TokenLoss
from t5x_like.models.families import Dropout
from t5x_like.models.transformer import make_model
from t5x_like.optim import AdamW, Optax
from t5x_like.optim.optimizer import make_optimizer
from t5x_like.sharding.config import MeshConfig
from t5x_like.sharding.mesh import Placement, make_placement
from t5x_like.train.feed import to_devices
from t5x_like.train.opened import OpenedRun
from t5x_like.train.setup import Setup
from t5x_like.train.skips import Skips
from t5x_like.train.step import compile_step

SEED = 8  # of initial values: one with which most parameters move
MESHES = {
    "data 8": MeshConfig(data=8),
    "fsdp 8": MeshConfig(data=1, fsdp=8),
    "tensor 4 x data 2": MeshConfig(data=2, tensor=4),
    "2 x 2 x 2": MeshConfig(data=2, fsdp=2, tensor=2),
}
SHAPES = {
    "encoder-decoder": ("t5_1_1", dict(encoder_layers=1, decoder_layers=1)),
    "decoder-only": ("gpt2", dict(decoder_layers=1)),
    "encoder-only": ("bert", dict(encoder_layers=1)),
}
# A bias of keys has the gradient 0 but for rounding (softmax does not see it), and Adam without eps makes a full step
# out of its sign: eps is above the rounding and below the gradients.
OPTIMIZER = AdamW(learning_rate=3e-3, eps=1e-3, clip_norm=0.5)


def make(family: str, micro_batches: int = 1, optimizer=OPTIMIZER, **overrides) -> Setup:
    structure, specs = make_model(tiny(family, **overrides))
    loss = TokenLoss(z_loss=1e-3)
    optimizer = make_optimizer(optimizer, specs, 10)
    return Setup(structure, specs, optimizer, loss, micro_batches, seed=5, skips=Skips(in_a_row=1))


def batch_of(family: str, **overrides) -> dict[str, np.ndarray]:
    """Eight rows with very unequal numbers of targets."""
    batch = {name: np.array(array) for name, array in random_batch(tiny(family, **overrides), rows=8).items()}
    batch["weights"] *= np.arange(batch["weights"].shape[1]) < np.array([[9], [1], [2], [7], [1], [0], [3], [9]])
    return batch


def alone() -> Placement:
    return make_placement(MeshConfig(), jax.devices()[:1])


def on(placement: Placement, batch):
    return to_devices(placement, batch, (0, 1))


def first_state(setup: Setup):
    """The initial state as numpy, which no step can donate."""
    return jax.tree.map(np.array, setup.initial_state(alone(), seed=SEED))


def run_steps(setup: Setup, placement: Placement, batches) -> tuple[list[dict[str, float]], dict[str, np.ndarray]]:
    """(metrics of each step, the state after the last as numpy)."""
    step = compile_step(setup, placement)
    shardings = jax.tree.map(lambda a: a.sharding, setup.abstract_state(placement))
    state, metrics = jax.device_put(first_state(setup), shardings), []
    for batch in batches:
        state, found = step(state, on(placement, batch))
        metrics.append({name: float(value / weight) for name, (value, weight) in found.items()})
        metrics[-1]["targets"] = float(found["loss"][1])
    return metrics, {path: np.asarray(array) for path, array in flatten(state).items()}


@functools.lru_cache(maxsize=4)
def on_one_device(shape: str):
    family, layers = SHAPES[shape]
    dropout = Dropout(residual=0.1) if shape == "encoder-decoder" else Dropout()
    setup, batch = make(family, dropout=dropout, **layers), batch_of(family)
    return setup, batch, *run_steps(setup, alone(), [batch, batch])


@pytest.mark.slow  # tests/sharding has a quick one, of loss and gradients
@pytest.mark.skipif(len(jax.devices()) < 8, reason="needs 8 devices")
@pytest.mark.parametrize(
    "shape, mesh",
    [(shape, mesh) for shape in SHAPES for mesh in MESHES],
)
def test_every_mesh_makes_the_update_of_one_device(shape, mesh):
    """Dropout included: its random numbers are those of the whole batch, however it is split."""
    setup, batch, wanted, wanted_state = on_one_device(shape)
    placement = make_placement(MESHES[mesh])
    metrics, state = run_steps(setup, placement, [batch, batch])
    for got, expected in zip(metrics, wanted, strict=True):
        assert got["loss"] == pytest.approx(expected["loss"], abs=1e-5)
        assert got["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=1e-4)
    assert_close(state, wanted_state)
    start = {p: a for p, a in flatten(first_state(setup)).items() if p.startswith("params")}
    moved = [path for path in start if np.max(np.abs(start[path] - wanted_state[path])) > 1e-3]
    assert len(moved) > 0.7 * len(start)  # or the comparison above says little


def test_another_seed_is_another_update():
    setup, batch, wanted, _ = on_one_device("decoder-only")
    step = compile_step(setup, alone())
    state = setup.initial_state(alone(), seed=4)
    value, weight = step(state, on(alone(), batch))[1]["loss"]
    assert abs(float(value / weight) - wanted[0]["loss"]) > 1e-3


@pytest.mark.parametrize(
    "optimizer",
    [OPTIMIZER, pytest.param(AdamW(learning_rate=3e-3, eps=1e-3), marks=pytest.mark.slow)],
    ids=["clipped", "unclipped"],
)
def test_micro_batches_make_the_update_of_the_whole_batch(optimizer):
    """Although their numbers of targets are unequal, so that the mean of their means is something else."""
    family, layers = "gpt2", dict(decoder_layers=1)
    batch = batch_of(family)
    whole, state = run_steps(make(family, 1, optimizer, **layers), alone(), [batch, batch])
    parted, parted_state = run_steps(make(family, 4, optimizer, **layers), alone(), [batch, batch])
    for got, wanted in zip(parted, whole, strict=True):
        assert got["loss"] == pytest.approx(wanted["loss"], abs=1e-5)
        assert got["targets"] == pytest.approx(batch["weights"].sum())
        assert got["gradient_norm"] == pytest.approx(wanted["gradient_norm"], rel=1e-5)
        assert (wanted["gradient_norm"] > 0.5) or not optimizer.clip_norm  # clipping has something to do
    assert_close(parted_state, state)

    setup = make(family, **layers)
    opened = OpenedRun(None, setup, alone(), setup.initial_state(alone(), seed=SEED)["params"])
    means = []
    for part in range(4):
        value, weight = opened.sums({name: jnp.asarray(array[part::4]) for name, array in batch.items()})["loss"]
        means.append(float(value / weight))
    assert abs(np.mean(means) - whole[0]["nll"]) > 1e-3


@functools.lru_cache(maxsize=1)
def small():
    """(setup, step, a good batch) of a decoder on one device."""
    setup = make("gpt2", decoder_layers=1)
    return setup, compile_step(setup, alone()), batch_of("gpt2")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_update_that_is_not_finite_is_not_made_nor_the_next(bad):
    setup, step, batch = small()
    state, metrics = step(setup.initial_state(alone(), seed=SEED), on(alone(), batch))
    assert float(metrics["finite"][0]) == 1
    before = {path: np.array(array) for path, array in flatten(state).items()}
    poisoned = batch | {"weights": np.where(np.arange(9) == 0, bad, batch["weights"]).astype(np.float32)}
    state, metrics = step(state, on(alone(), poisoned))
    assert float(metrics["finite"][0]) == 0 and bool(state["halted"])
    assert_same_bits({p: np.array(a) for p, a in flatten(state).items()} | {"halted": before["halted"]}, before)
    state, metrics = step(state, on(alone(), batch))  # dispatched before the loop has read of it
    assert_same_bits({p: np.array(a) for p, a in flatten(state).items()} | {"halted": before["halted"]}, before)
    state, metrics = step(state | {"halted": jnp.zeros((), bool)}, on(alone(), batch))
    assert int(state["step"]) == int(before["step"]) + 1 == 2


def test_an_update_that_is_not_finite_is_not_made_although_its_gradient_is():
    setup = make("gpt2", optimizer=Optax(name="adam", arguments=("eps=0.0",)), decoder_layers=1)
    step, batch = compile_step(setup, alone()), batch_of("gpt2")
    state = setup.initial_state(alone(), seed=SEED)
    before = {path: np.array(array) for path, array in flatten(state).items()}
    state, metrics = step(state, on(alone(), batch | {"weights": np.zeros_like(batch["weights"])}))  # 0 / 0 in Adam
    assert metrics["finite"][0] == metrics["loss"][0] == metrics["gradient_norm"][0] == 0
    assert_same_bits({p: np.array(a) for p, a in flatten(state).items()} | {"halted": before["halted"]}, before)


def test_a_batch_without_targets_is_no_error():
    setup, step, batch = small()
    state = setup.initial_state(alone(), seed=SEED)
    before = {path: np.array(array) for path, array in flatten(state["params"]).items()}
    state, metrics = step(state, on(alone(), batch | {"weights": np.zeros_like(batch["weights"])}))
    assert float(metrics["finite"][0]) == 1 and metrics["loss"].tolist() == [0.0, 0.0] and int(state["step"]) == 1
    decay = 1 - OPTIMIZER.learning_rate * OPTIMIZER.weight_decay
    for path, array in flatten(state["params"]).items():
        wanted = before[path] * (decay if path.endswith("kernel") or path == "token_embedding/table" else 1.0)
        np.testing.assert_allclose(np.asarray(array), wanted, rtol=1e-6, err_msg=path)


def test_a_decoder_learns_a_batch_by_heart():
    """From near log(40) = 3.7 nats a target to nearly nothing."""
    structure, specs = make_model(tiny("llama", decoder_layers=1))
    optimizer = make_optimizer(AdamW(learning_rate=2e-2, weight_decay=0.0), specs, 120)
    setup = Setup(structure, specs, optimizer, TokenLoss())
    step = compile_step(setup, alone())
    numbers = np.random.default_rng(0)
    batches = []
    for _ in range(2):
        text = numbers.integers(1, 40, (4, 12), np.int32)
        shifted = np.concatenate([np.zeros((4, 1), np.int32), text[:, :-1]], axis=1)
        weights = np.ones((4, 12), np.float32)
        weights[:, 0] = 0  # which of the rows it is, nothing tells
        batches.append(on(alone(), {"decoder_tokens": shifted, "targets": text, "weights": weights}))
    state, losses = setup.initial_state(alone(), 0), []
    for number in range(120):
        state, metrics = step(state, batches[number % 2])
        losses.append(metrics["nll"][0] / metrics["nll"][1])
    assert float(losses[0]) > 3.3
    assert float(losses[-1]) < 0.05 and float(losses[-2]) < 0.05
