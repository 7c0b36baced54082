"""Every config that is shipped can be built, goes to JSON and back, and trains: the same family, objective, optimizer
and schedule at a tiny size, through the real loop."""

from __future__ import annotations

import ast
import dataclasses
import math

import pytest
from tiny_runs import ROOT, losses, saved_steps, shrink

from t5x_like.core.config import flatten, from_json, override, to_json
from t5x_like.core.every import Every
from t5x_like.core.loading import load_run
from t5x_like.models.counts import parameter_count, train_flops
from t5x_like.train.config import Run
from t5x_like.train.run import train
from t5x_like.train.setup import make_setup

CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if not path.stem.startswith("_"))
KINDS = {"encoder-decoder": "t5", "decoder-only": "llama", "encoder-only": "bert"}


def test_there_are_configs():
    assert "t5_sotu" in CONFIGS


@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_built_and_goes_to_json_and_back(name):
    run = load_run(name, Run)  # by its bare name, as a user says it
    assert run.name == name
    again = from_json(Run, to_json(run))
    assert again == run and flatten(again) == flatten(run)
    setup = make_setup(run)  # model, optimizer and masks, without a device
    assert parameter_count(setup.specs) > 0
    assert train_flops(run.model, setup.specs, *run.lengths()) > 6 * parameter_count(setup.specs) * 0.1


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("steps", [1, 2, 20])
def test_it_can_be_tried_with_a_few_steps(name, steps):
    """``train NAME train.steps=20``: schedules and times shrink with it; nothing is refused."""
    run = override(load_run(name, Run), [f"train.steps={steps}"])
    rates = [float(make_setup(run).optimizer.learning_rate(step)) for step in range(steps)]
    assert all(0 < rate <= run.optimizer.learning_rate * 1.0001 for rate in rates)
    assert run.train.evaluate_every.due(steps, steps)


@pytest.mark.parametrize("name", CONFIGS)
def test_its_docstring_says_what_it_is(name):
    text = ast.get_docstring(ast.parse((ROOT / "configs" / f"{name}.py").read_text()))
    assert text and len(text) > 20


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_it_trains_at_a_tiny_size(name, tmp_path):
    run = load_run(name, Run)
    run = shrink(run, KINDS[run.model.shape])
    schedule = dataclasses.replace(run.optimizer.schedule, warmup=min(1, run.optimizer.schedule.warmup))
    run = dataclasses.replace(
        run,
        objective=load_run(name, Run).objective,
        optimizer=dataclasses.replace(run.optimizer, schedule=schedule),
        train=dataclasses.replace(run.train, steps=3, batch_size=16, evaluate_every=Every(steps=2), logits_chunk=min(
            run.train.logits_chunk, 8)),
        mesh=type(run.mesh)(),
        checkpoint=dataclasses.replace(run.checkpoint, every=Every(steps=2)),
        report=dataclasses.replace(run.report, every=1, tensorboard=False, plots=False, wandb=""),
    )  # fmt: skip
    outcome = train(run, tmp_path / "run")
    assert outcome.complete and outcome.exit_code == 0
    assert sorted(losses(tmp_path / "run")) == [1, 2, 3]
    assert all(math.isfinite(loss) for loss in losses(tmp_path / "run").values())
    assert saved_steps(tmp_path / "run") == [2, 3]
