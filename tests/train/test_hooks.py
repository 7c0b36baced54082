"""What is done between steps: samples and a profile, as a run's config says; and one process on two meshes."""

from __future__ import annotations

import dataclasses
import importlib
import os
import signal

import jax
import numpy as np
import pytest
from tiny_models import random_params
from tiny_runs import assert_same_bits, checkpoint, tiny_run

from t5x_like.arrays.trees import flatten, map_named
from t5x_like.core.errors import UserError
from t5x_like.decode.sample import Sampling
from t5x_like.evaluate.heldout import HeldOut
from t5x_like.report.config import ReportConfig
from t5x_like.report.ledger import read_ledger
from t5x_like.sharding.config import MeshConfig
from t5x_like.sharding.mesh import make_placement
from t5x_like.train.data import Data
from t5x_like.train.opened import OpenedRun
from t5x_like.train.run import train
from t5x_like.train.setup import make_setup

generating = importlib.import_module("t5x_like.decode.generate")  # not the function of that name


def test_samples_when_the_config_says(tmp_path, capsys):
    run = tiny_run("llama", "train.steps=6", "data.corpus.heldout=0.3", "report.sample.steps=4")
    outcome = train(run, tmp_path / "run")
    out = capsys.readouterr().out
    assert out.count("  given ") == 1 and set(outcome.sample) == {"given", "model", "truth"}  # at 4; at the end kept
    assert out.index("  given ") < out.index("6/6")


def test_a_signal_ends_a_sample_which_is_written_when_the_run_is_resumed(tmp_path, monkeypatch):
    run = tiny_run("llama", "train.steps=6", "data.corpus.heldout=0.3", "report.sample.steps=4")
    train(run, tmp_path / "straight")
    folder, go_on, calls = tmp_path / "run", generating._go_on, []

    def told(*arguments):
        calls.append(1)
        os.kill(os.getpid(), signal.SIGTERM)
        return go_on(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(generating, "PIECE", 2)  # of 8 tokens
        patch.setattr(generating, "_go_on", told)
        outcome = train(run, folder)
    assert (outcome.step, outcome.exit_code, len(calls)) == (4, 75, 1)
    assert read_ledger(folder, "sample") == []
    assert train(run, folder).exit_code == 0
    samples = [[(line["step"], line["text"]) for line in read_ledger(each, "sample")]
               for each in (folder, tmp_path / "straight")]  # fmt: skip
    assert samples[0] == samples[1] and [step for step, _ in samples[0]] == [4, 6]
    assert_same_bits(checkpoint(folder), checkpoint(tmp_path / "straight"))


def test_mistakes():
    with pytest.raises(UserError, match="report.profile_steps"):
        ReportConfig(profile_steps=0)


@pytest.mark.skipif(len(jax.devices()) < 8, reason="needs 8 devices")
@pytest.mark.parametrize("kind", ["llama", pytest.param("t5", marks=pytest.mark.slow)])
def test_one_process_writes_and_measures_on_one_mesh_after_another(kind):
    """With one setup: the mesh is part of what is compiled, not what happened to be in force when it first was."""
    run = tiny_run(kind, "data.corpus.heldout=0.4")
    setup, data = make_setup(run), Data.open(run)
    params = random_params(setup.specs)
    written, measured = [], []
    for mesh, devices in ((MeshConfig(data=2, fsdp=2, tensor=2), 8), (MeshConfig(), 1), (MeshConfig(tensor=4), 4)):
        placement = make_placement(mesh, jax.devices()[:devices])
        placed = map_named(lambda _, array, at: jax.device_put(array, at), params, placement.of(setup.specs))
        opened = OpenedRun(run, setup, placement, placed, 0, data)
        for _ in range(2):  # the second time from what is compiled
            written.append(opened.generate(["a quick", "wizards on"], Sampling(max_new_tokens=5)))
            measured.append(HeldOut().run(opened))
    assert all(texts == written[0] for texts in written) and len(set(written[0])) == 2
    for found in measured:
        assert found["targets"] == measured[0]["targets"]
        np.testing.assert_allclose(found["loss"], measured[0]["loss"], atol=1e-5)


def test_another_state_is_measured_with_what_is_compiled_already():
    run = tiny_run("llama", "data.corpus.heldout=0.4")
    setup, placement = make_setup(run), make_placement(MeshConfig(), jax.devices()[:1])
    opened = OpenedRun(run, setup, placement, None, 0, Data.open(run))
    traced = []

    def size(model, batch):
        traced.append(1)
        return sum(array.size for array in flatten(batch).values())

    for seed in (0, 1):
        state = setup.initial_state(placement, seed)
        then = opened.at(seed, state)
        assert then.step == seed and then.params is state["params"]
        assert all(int(then.compute(size, batch)) > 0 for batch in then.held_out(2))
    assert len(traced) == 1
    losses = [HeldOut().run(opened.at(0, setup.initial_state(placement, seed)))["loss"] for seed in (0, 1)]
    assert losses[0] != losses[1]
    other = make_placement(MeshConfig(), jax.devices()[1:2])
    moved = dataclasses.replace(then, placement=other, params=setup.initial_state(other, 1)["params"])
    assert all(int(moved.compute(size, batch)) > 0 for batch in moved.held_out(1)) and len(traced) == 2
    stopped = dataclasses.replace(opened.at(0, setup.initial_state(placement, 0)), stop=lambda: True)
    assert HeldOut().run(stopped) is None
