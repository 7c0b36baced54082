"""Evaluation is exact: every held-out row counts once, whatever the batch size, and the means are those of rows taken
one by one in numpy."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest
from flax import nnx
from tiny_models import random_params
from tiny_runs import rows, tiny_run

from t5x_like.core.config import override
from t5x_like.evaluate.heldout import means
from t5x_like.sharding.config import MeshConfig
from t5x_like.sharding.mesh import make_placement
from t5x_like.train.data import Data
from t5x_like.train.feed import local_share, to_devices
from t5x_like.train.opened import OpenedRun, open_run
from t5x_like.train.run import train
from t5x_like.train.setup import make_setup

BATCH = 8


def data_run():
    return tiny_run(
        "llama", "data.corpus.heldout=0.4", "train.z_loss=0.1", "train.label_smoothing=0.2",
        "model.*.dropout=0.5",
    )  # fmt: skip


@pytest.fixture(scope="module")
def opened(quick_compiling):
    """(data, setup, params): z-loss, smoothing and dropout are of training and must not be in the measurement."""
    run = data_run()
    setup = make_setup(run)
    return Data.open(run), setup, random_params(setup.specs)


def one_by_one(opened) -> dict[str, float]:
    """nll, correct and targets of all rows, each alone, with numpy's log-softmax in 64 bits."""
    data, setup, params = opened
    logits_of = jax.jit(lambda params, batch: nnx.merge(setup.structure, params).logits(batch))
    total = dict(nll=0.0, correct=0, targets=0.0)
    for batch in data.held_out.heldout_batches():
        for row in range(BATCH):
            one = {name: array[row : row + 1] for name, array in batch.items()}
            if not one["decoder_segments"].any():
                continue
            logits = np.asarray(logits_of(params, one), np.float64)[0]
            log_p = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
            for place in np.flatnonzero(one["weights"][0]):
                target = one["targets"][0, place]
                total["nll"] -= log_p[place, target]
                total["correct"] += int(np.argmax(log_p[place]) == target)
                total["targets"] += 1
    return total


def measured(opened, placement, batches=None, **more):
    data, setup, params = opened
    share = local_share(placement, BATCH)
    batches = batches or data.held_out.heldout_batches(None, *share)
    params = jax.device_put(params, placement.of(setup.specs))
    sums = OpenedRun(data_run(), setup, placement, params).sums
    return means(sums, (to_devices(placement, b, share) for b in batches), **more)


@pytest.mark.parametrize("devices", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_all_rows_count_once_however_they_are_batched(opened, devices):
    data, *_ = opened
    rows = data.held_out.examples_per_epoch
    assert rows > BATCH and rows % BATCH  # the last batch is not full
    split = data.held_out_split
    wanted = one_by_one(opened)
    assert wanted["targets"] == len(split.tokens) + len(split)  # every token and an EOS per document
    if len(jax.devices()) < devices:
        pytest.skip("needs 8 devices")
    found = measured(opened, make_placement(MeshConfig(), jax.devices()[:devices]))
    assert found["targets"] == wanted["targets"]
    assert found["loss"] == pytest.approx(wanted["nll"] / wanted["targets"], abs=1e-5)
    assert found["accuracy"] == pytest.approx(wanted["correct"] / wanted["targets"], abs=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]), rel=1e-9)


def test_the_mean_of_batch_means_would_be_something_else(opened):
    """What the test above would not notice otherwise: here the batches' own means differ."""
    one = make_placement(MeshConfig(), jax.devices()[:1])
    batches = list(opened[0].held_out.heldout_batches())
    means = [measured(opened, one, [batch])["loss"] for batch in batches]
    assert abs(np.mean(means) - measured(opened, one)["loss"]) > 1e-3


def test_told_to_stop_it_says_nothing(opened):
    asked = []

    def stop():
        asked.append(1)
        return len(asked) == 2

    one = make_placement(MeshConfig(), jax.devices()[:1])
    assert measured(opened, one, stop=stop) is None
    assert len(asked) == 2


def test_nothing_is_read_back_before_the_last_batch(monkeypatch):
    """Sums stay where they are, so that the device never waits for the host."""
    reads, original = [], jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda tree: reads.append(len(seen)) or original(tree))
    seen = []

    def sums(batch):
        seen.append(batch)
        return {"loss": np.array([batch, 2.0]), "own": np.array([1.0, 4.0])}

    found = means(sums, iter([3.0, 4.0, 5.0]))
    assert reads == [3]
    assert found["loss"] == 2.0 and found["targets"] == 6.0 and found["own"] == 0.25  # by a weight of its own


@pytest.mark.parametrize("batches, targets", [(20_000, 1003), (60_000, 65_411)])
def test_sums_over_many_batches_are_exact(batches, targets):
    """In float32 they would drift beyond 2**24 targets, and the mean with them."""
    pair = np.array([3.0 * targets, targets], np.float32)
    found = means(lambda batch: {"loss": pair, "accuracy": np.float32([targets // 2, targets])}, range(batches))
    assert found["targets"] == batches * targets
    assert found["loss"] == 3.0 and found["accuracy"] == pytest.approx(targets // 2 / targets, rel=1e-12)


def test_a_long_evaluation_reads_blocks_long_after_they_were_dispatched(monkeypatch):
    reads, seen, original = [], [], jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda tree: reads.append((len(tree), len(seen))) or original(tree))
    means(lambda batch: seen.append(batch) or {"loss": np.ones(2)}, range(1300))
    assert reads == [(500, 1000), (800, 1300)]


def test_a_split_without_targets_and_a_hopeless_model_are_no_errors():
    assert means(lambda batch: {"loss": np.zeros(2)}, [1.0]) == {}, "nothing measured is no perfect score"
    bad = means(lambda batch: {"loss": np.array([1e4, 1.0])}, [1.0])
    assert bad["loss"] == 1e4 and math.isfinite(bad["perplexity"])


def test_a_part_of_the_split_is_told_from_the_whole_by_name(opened, tmp_path):
    """In training, in its metrics, and in ``eval``, which takes the whole."""
    data, *_ = opened
    whole = len(list(data.held_out.heldout_batches()))
    assert whole > 2
    for limit, name in ((0, "held_out"), (1, "held_out_first_1"), (whole, "held_out")):
        run = override(data_run(), [f"train.evaluate_batches={limit}", "train.steps=1"])
        found = train(run, tmp_path / str(limit)).evaluations["held_out"]
        logged = rows(tmp_path / str(limit), name)[1]
        assert logged[f"{name}/loss"] == found["loss"]
        (measured,) = open_run(tmp_path / str(limit)).evaluate().items()
        assert measured[0] == "held_out"
        assert (measured[1]["targets"] == found["targets"]) == (name == "held_out")
        if name == "held_out":
            assert measured[1]["loss"] == pytest.approx(found["loss"], abs=1e-6)
