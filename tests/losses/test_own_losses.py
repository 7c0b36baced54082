"""A loss and an evaluation of a user's own, defined outside the package: what they name is trained on, measured, logged
and kept apart by weights of its own; parameters that are frozen cost nothing."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import built, random_batch, tiny
from tiny_runs import losses, quick_compiling, rows, tiny_run  # noqa: F401

from t5x_like.arrays.trees import flatten, join, split
from t5x_like.config import Autoregressive, Evaluation, Every, HeldOut, Loss, TokenLoss, UserError
from t5x_like.core.config import from_json, to_json
from t5x_like.models.transformer import make_model
from t5x_like.optim import AdamW
from t5x_like.optim.optimizer import make_optimizer
from t5x_like.sharding.config import MeshConfig
from t5x_like.sharding.mesh import make_placement
from t5x_like.train.config import Run
from t5x_like.train.run import train
from t5x_like.train.setup import Setup
from t5x_like.train.step import compile_step, sums_and_gradient


@dataclasses.dataclass(frozen=True)
class FocalLoss(Loss):
    """Focal loss (Lin et al. 2017), and the loss of the first position alone."""

    token: TokenLoss
    gamma: float

    def __call__(self, model, batch, key):
        log_p_BLV = jax.nn.log_softmax(model.head().logits(model(batch, key)))
        log_p_BL = jnp.take_along_axis(log_p_BLV, batch["targets"][..., None], axis=-1)[..., 0]
        loss_BL = -((1 - jnp.exp(log_p_BL)) ** self.gamma) * log_p_BL * batch["weights"]
        first_B = batch["weights"][:, 0]
        return {
            "loss": (jnp.sum(loss_BL), jnp.sum(batch["weights"])),
            "first": (jnp.sum(-log_p_BL[:, 0] * first_B), jnp.sum(first_B)),
        }


@dataclasses.dataclass(frozen=True)
class Focal(Autoregressive):
    gamma: float = 2.0

    def loss(self, token):
        return FocalLoss(token, self.gamma)


def highest(model, batch):
    return jnp.max(model.logits(batch))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loudest(Evaluation):
    """The highest logit of a few held-out batches, and how long a text is that the model writes."""

    name: str = "loudest"
    batches: int = 1

    def run(self, opened):
        from t5x_like.config import Sampling

        found = [float(opened.compute(highest, batch)) for batch in opened.held_out(self.batches)]
        (text,) = opened.generate(["a quick"], Sampling(max_new_tokens=3))
        return {"logit": max(found), "letters": float(len(text)), "steps": float(opened.step)}


pytestmark = pytest.mark.usefixtures("quick_compiling")


def test_own_loss_and_own_evaluation_are_trained_measured_and_logged(tmp_path, capsys):
    run = tiny_run("llama", "data.corpus.heldout=0.3", "train.steps=4", "train.evaluate_every.steps=3")
    own = (HeldOut(), Loudest(when=Every(steps=2, end=False)))
    run = dataclasses.replace(run, objective=Focal(), evaluations=own)
    assert from_json(Run, to_json(dataclasses.replace(run, objective=Autoregressive()))).evaluations == own
    outcome = train(run, tmp_path / "run")
    trained = rows(tmp_path / "run")
    assert all({"train/loss", "train/first", "train/targets"} <= row.keys() for row in trained.values())
    assert not any("train/nll" in row for row in trained.values())
    assert all(row["train/first"] > row["train/loss"] > 0 for row in trained.values())  # focal: at most the nll
    held_out = rows(tmp_path / "run", "held_out")
    assert sorted(held_out) == [3, 4] and all("held_out/first" in row for row in held_out.values())
    loudest = rows(tmp_path / "run", "loudest")
    assert sorted(loudest) == [2, 4] and [loudest[n]["loudest/steps"] for n in (2, 4)] == [2, 4]
    assert outcome.evaluations["loudest"]["logit"] == loudest[4]["loudest/logit"]
    assert outcome.evaluations["held_out"]["loss"] == held_out[4]["held_out/loss"]
    out = capsys.readouterr().out
    assert "loudest logit" in out and "held-out first" in out and "first " in out.split("4/4")[0]
    assert sorted(losses(tmp_path / "run")) == [1, 2, 3, 4]


def test_evaluations_have_names_of_their_own():
    run = tiny_run("llama")
    for names in (("a", "a"), ("",), ("train",), ("a/b",)):
        with pytest.raises(UserError, match=r"evaluations\.\d\.name"):
            dataclasses.replace(run, evaluations=tuple(HeldOut(name=name) for name in names))
    with pytest.raises(UserError, match="evaluations.batches: got -1"):
        HeldOut(batches=-1)


def setup_of(frozen: tuple[str, ...] = (), micro_batches: int = 1, loss: Loss | None = None) -> Setup:
    structure, specs = make_model(tiny("t5_1_1", encoder_layers=1, decoder_layers=1))
    optimizer = make_optimizer(AdamW(eps=1e-3, frozen=frozen), specs, 10)
    return Setup(structure, specs, optimizer, loss or TokenLoss(), micro_batches)


def arguments(setup: Setup):
    config = tiny("t5_1_1", encoder_layers=1, decoder_layers=1)
    return built(config)[2], random_batch(config, rows=8), jax.random.key(0)


@dataclasses.dataclass(frozen=True)
class Counted(Loss):
    """Sums whose weights differ, and one that is a plain number."""

    def __call__(self, model, batch, key):
        found = TokenLoss(statistics=())(model, batch, key)
        rows = jnp.float32(batch["targets"].shape[0])
        return found | {"row_weight": (jnp.sum(batch["weights"]), rows), "parts": (jnp.float32(1.0), 0.5)}


def test_every_sum_is_added_over_micro_batches_with_its_own_weight():
    whole, parted = (setup_of(micro_batches=count, loss=Counted()) for count in (1, 4))
    params, batch, key = arguments(whole)
    one, _ = jax.jit(lambda *a: sums_and_gradient(whole, *a))(params, batch, key)
    four, _ = jax.jit(lambda *a: sums_and_gradient(parted, *a))(params, batch, key)
    for name in ("loss", "row_weight"):
        np.testing.assert_allclose(four[name], one[name], rtol=1e-5)
    assert [float(v) for v in one["row_weight"]] == pytest.approx([float(jnp.sum(batch["weights"])), 8.0])
    assert [float(v) for v in four["parts"]] == [4.0, 2.0] and [float(v) for v in one["parts"]] == [1.0, 0.5]


def test_only_trained_parameters_are_differentiated():
    """The backward pass of a frozen encoder is not computed at all; where nothing is frozen nothing changes."""

    def flops_and_gradient(setup):
        params, batch, key = arguments(setup)
        compiled = jax.jit(lambda *a: sums_and_gradient(setup, *a)).lower(params, batch, key).compile()
        return compiled.cost_analysis()["flops"], compiled(params, batch, key)

    whole, (sums, gradient) = flops_and_gradient(setup_of())
    assert flatten(gradient).keys() == flatten(setup_of().specs).keys()
    frozen = ("^encoder/", "^token_embedding/")
    part, (part_sums, part_gradient) = flops_and_gradient(setup_of(frozen))
    left = {path for path in flatten(gradient) if not path.startswith(("encoder/", "token_embedding/"))}
    assert flatten(part_gradient).keys() == left == setup_of(frozen).optimizer.trained
    for path, array in flatten(part_gradient).items():
        np.testing.assert_allclose(array, flatten(gradient)[path], atol=1e-5, err_msg=path)
    np.testing.assert_allclose(part_sums["loss"], sums["loss"], rtol=1e-6)
    assert part < 0.85 * whole

    setup, placement = setup_of(frozen), make_placement(MeshConfig(), jax.devices()[:1])
    state = setup.initial_state(placement, 0)
    before = {path: np.array(array) for path, array in flatten(state["params"]).items()}
    state, _ = compile_step(setup, placement)(state, arguments(setup)[1])
    moved = {path for path, array in flatten(state["params"]).items() if np.any(np.asarray(array) != before[path])}
    assert moved == left


def test_split_and_join_of_trees():
    tree = {"a": {"b": 1, "c": 2}, "d": 3}
    one, other = split(tree, {"a/c", "d"})
    assert one == {"a": {"c": 2}, "d": 3} and other == {"a": {"b": 1}} and join(one, other) == tree
    assert split(tree, flatten(tree)) == (tree, {}) and join(tree, {}) == tree


def test_conversions_come_between_stored_and_used_parameters():
    setup = setup_of()
    params, batch, _ = arguments(setup)

    def halved(params):
        return jax.tree.map(lambda a: a / 2, params)

    converted = dataclasses.replace(setup, conversions=(halved, halved))
    wanted = setup.measure(setup.bind(jax.tree.map(lambda a: a / 4, params)), batch)
    np.testing.assert_array_equal(converted.measure(converted.bind(params), batch)["loss"], wanted["loss"])


def test_evaluation_reads_the_optimizer_only_where_that_has_a_say():
    setup, placement = setup_of(), make_placement(MeshConfig(), jax.devices()[:1])
    state = setup.initial_state(placement, 0)
    assert setup.eval_params(state) is state["params"] and set(setup.eval_state(placement)) == {"params"}

    class Plain:
        init, state_axes = setup.optimizer.init, setup.optimizer.state_axes

        def eval_params(self, params, state):
            return params

    class Averaged(Plain):
        def eval_params(self, params, state):
            return jax.tree.map(lambda p, m: p + m, params, state["mu"])

    plain, averaged = (dataclasses.replace(setup, optimizer=kind()) for kind in (Plain, Averaged))
    assert set(plain.eval_state(placement)) == {"params"}
    assert set(averaged.eval_state(placement)) == {"params", "optimizer"}
    found = averaged.eval_params(state | {"optimizer": state["optimizer"] | {"mu": state["params"]}})
    np.testing.assert_array_equal(found["decoder"]["final_norm"]["scale"], 2 * np.ones(16))
