"""Multi-token prediction: heads for tokens further ahead add to what is minimized, and to nothing else."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import built, compiled, first, random_batch, tiny
from tiny_runs import assert_close

from t5x_like.arrays.trees import flatten
from t5x_like.core.errors import UserError
from t5x_like.losses import FutureTokens, TokenLoss
from t5x_like.losses.future_tokens import further_ahead
from t5x_like.models.counts import parameter_count
from t5x_like.models.transformer import make_model
from t5x_like.objectives import Autoregressive
from t5x_like.optim import AdamW
from t5x_like.optim.optimizer import make_optimizer
from t5x_like.sharding.config import MeshConfig
from t5x_like.sharding.mesh import make_placement
from t5x_like.train.feed import to_devices
from t5x_like.train.setup import Setup
from t5x_like.train.step import compile_step

HEADS, WEIGHT = 2, 0.6
CONFIG = tiny("llama", decoder_layers=1, future_heads=HEADS)
PLAIN = tiny("llama", decoder_layers=1)


def setup_of(config=CONFIG, micro_batches: int = 1) -> Setup:
    structure, specs = make_model(config)
    optimizer = make_optimizer(AdamW(learning_rate=1e-2, eps=1e-3), specs, 10)
    loss = Autoregressive(config.future_heads, WEIGHT).loss(TokenLoss())
    return Setup(structure, specs, optimizer, loss, micro_batches)


def sums_of(setup: Setup):
    """(params, batch) -> name to (sum, weight)."""
    return lambda params, batch: setup.loss(setup.bind(params), batch, None)


def packed(rows: int = 2) -> dict[str, jax.Array]:
    """Rows of two segments and padding, with weights of their own."""
    batch = random_batch(CONFIG, rows=rows, decoder=9)
    segments = jnp.asarray(np.tile([1, 1, 1, 1, 1, 2, 2, 2, 0], (rows, 1)), jnp.int32)
    return batch | {"decoder_segments": segments, "weights": jnp.where(segments > 0, batch["weights"], 0.0)}


def test_targets_further_ahead_by_hand():
    batch = {
        "targets": jnp.asarray([[10, 11, 12, 20, 21, 0]], jnp.int32),
        "weights": jnp.asarray([[1.0, 2.0, 3.0, 4.0, 5.0, 0.0]], jnp.float32),
        "decoder_segments": jnp.asarray([[1, 1, 1, 2, 2, 0]], jnp.int32),
    }
    targets, weights = further_ahead(batch, 1)
    assert targets.tolist() == [[11, 12, 20, 21, 0, 0]]
    assert weights.tolist() == [[2.0, 3.0, 0.0, 5.0, 0.0, 0.0]]
    assert further_ahead(batch, 2)[1].tolist() == [[3.0, 0.0, 0.0, 0.0, 0.0, 0.0]]
    assert not further_ahead(batch, 7)[1].any() and further_ahead(batch, 7)[0].shape == (1, 6)
    bare = {name: array for name, array in batch.items() if name != "decoder_segments"}
    assert further_ahead(bare, 1)[1].tolist() == [[2.0, 3.0, 4.0, 5.0, 0.0, 0.0]]


def by_hand(params, batch) -> tuple[float, list[float]]:
    """(sum of the next token's loss, that of each head), token by token in float64."""
    import flax.nnx as nnx

    x = np.asarray(nnx.merge(built(CONFIG)[0], params)(batch), np.float64)
    weights_of = {path: np.asarray(array, np.float64) for path, array in flatten(params).items()}
    targets, weights = np.asarray(batch["targets"]), np.asarray(batch["weights"])
    segments = np.asarray(batch["decoder_segments"])

    def loss(y, row, place, ahead):
        later = place + ahead
        if later >= segments.shape[1] or segments[row, later] != segments[row, place]:
            return 0.0
        logits = weights_of["output_head/kernel"] @ y
        return (np.log(np.exp(logits).sum()) - logits[targets[row, later]]) * weights[row, later]

    def head(i, y):
        z = y @ weights_of["future_transforms/linear/kernel"][i]
        z = z / (1 + np.exp(-z))
        z = z / np.sqrt(np.mean(z**2) + first(CONFIG).norm.eps)
        return z * weights_of["future_transforms/norm/scale"][i]

    places = [(row, place) for row in range(x.shape[0]) for place in range(x.shape[1])]
    next_token = sum(loss(x[row, place], row, place, 0) for row, place in places)
    further = [sum(loss(head(i, x[row, place]), row, place, i + 1) for row, place in places) for i in range(HEADS)]
    return next_token, further


def test_the_loss_is_that_of_the_next_token_and_the_mean_of_the_heads():
    params, batch = built(CONFIG)[2], packed()
    found = compiled(sums_of(setup_of()))(params, batch)
    next_token, further = by_hand(params, batch)
    assert all(each > 1.0 for each in further) and abs(further[0] - further[1]) > 0.1
    assert float(found["nll"][0]) == pytest.approx(next_token, rel=1e-5)
    assert float(found["loss"][0]) == pytest.approx(next_token + WEIGHT * np.mean(further), rel=1e-5)
    assert float(found["future_loss"][0]) == pytest.approx(np.mean(further), rel=1e-5)
    further_weights = [np.asarray(further_ahead(batch, n)[1]).sum() for n in (1, 2)]
    assert float(found["future_loss"][1]) == pytest.approx(np.mean(further_weights), rel=1e-6)
    assert np.mean(further_weights) < float(found["loss"][1])  # a weight of its own


def test_nothing_else_changes():
    """Parameters of the same names have the same values, and what is reported is the same."""
    params, batch = built(CONFIG)[2], packed()
    setup = setup_of()
    with_heads = compiled(sums_of(setup))(params, batch)
    plain = compiled(sums_of(setup_of(PLAIN)))(built(PLAIN)[2], batch)
    assert set(with_heads) - set(plain) == {"future_loss"}
    for name in ("nll", "accuracy", "z_loss"):
        np.testing.assert_array_equal(with_heads[name], plain[name])
    evaluated = compiled(lambda p, b: setup.measure(setup.bind(p), b))(params, batch)
    np.testing.assert_array_equal(evaluated["loss"], plain["nll"])
    assert float(with_heads["loss"][0]) > float(plain["loss"][0]) + 1


def test_without_heads_the_computation_is_the_same():
    structure, specs = make_model(PLAIN)
    assert not any("future" in path for path in flatten(specs))
    assert Autoregressive(0, WEIGHT).loss(TokenLoss(0.1)) == TokenLoss(0.1)
    assert Autoregressive(2, WEIGHT).loss(TokenLoss(0.1)) == FutureTokens(TokenLoss(0.1), WEIGHT)


def test_every_head_has_parameters_of_its_own_and_a_gradient():
    specs = make_model(CONFIG)[1]
    heads = {path: spec for path, spec in flatten(specs).items() if path.startswith("future_transforms/")}
    assert {path: spec.shape for path, spec in heads.items()} == {
        "future_transforms/linear/kernel": (2, 16, 16), "future_transforms/norm/scale": (2, 16),
    }  # fmt: skip
    assert all(spec.stacked for spec in heads.values())
    assert parameter_count(specs) - parameter_count(make_model(PLAIN)[1]) == HEADS * (16 * 16 + 16)
    gradient = compiled(jax.grad(lambda p, b: sums_of(setup_of())(p, b)["loss"][0]))(built(CONFIG)[2], packed())
    kernel = np.asarray(gradient["future_transforms"]["linear"]["kernel"])
    assert np.all(np.abs(kernel).max(axis=(1, 2)) > 1e-3) and np.abs(kernel[0] - kernel[1]).max() > 1e-3


@pytest.mark.slow
@pytest.mark.skipif(len(jax.devices()) < 8, reason="needs 8 devices")
def test_micro_batches_and_meshes_make_the_same_update():
    batch = {name: np.asarray(array) for name, array in packed(rows=8).items()}
    batch["weights"] = batch["weights"] * (np.arange(9) < np.array([[9], [1], [2], [7], [1], [0], [3], [9]]))
    states, losses = [], []
    for mesh, micro_batches in ((MeshConfig(), 1), (MeshConfig(), 4), (MeshConfig(data=2, fsdp=2, tensor=2), 1)):
        devices = jax.devices()[: 8 if mesh != MeshConfig() else 1]
        placement = make_placement(mesh, devices)
        setup = setup_of(micro_batches=micro_batches)
        state = setup.initial_state(placement, seed=3)
        state, metrics = compile_step(setup, placement)(state, to_devices(placement, batch, (0, 1)))
        states.append({path: np.asarray(array) for path, array in flatten(state).items()})
        losses.append(float(metrics["loss"][0] / metrics["loss"][1]))
    assert losses[1] == pytest.approx(losses[0], abs=1e-5) and losses[2] == pytest.approx(losses[0], abs=1e-5)
    for other in states[1:]:
        assert_close(other, states[0])


def test_mistakes():
    for fields, where in (
        (dict(future_heads=-1), "model.future_heads: got -1"),
        (dict(future_heads=1, encoder=PLAIN.decoder, decoder=None), "model.future_heads: got 1"),
    ):
        with pytest.raises(UserError, match=where):
            dataclasses.replace(PLAIN, **fields)
    for make, where in (
        (lambda: Autoregressive(-1), "objective.future_tokens"),
        (lambda: Autoregressive(1, 0.0), "objective.future_weight"),
        (lambda: Autoregressive(1, float("inf")), "objective.future_weight"),
    ):
        with pytest.raises(UserError, match=where):
            make()
