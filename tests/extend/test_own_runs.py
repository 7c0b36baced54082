"""Whole runs with a part of one's own, from a folder outside the package through the real command lines: trained,
stopped and resumed to the same bits as in one go, evaluated, written from, looked at, compared. The package's tree is
not touched: `files` says which files the user has written beside the run file."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_runs import (
    CLI,
    ROOT,
    assert_close,
    assert_same_bits,
    checkpoint,
    environment,
    losses,
    quick_compiling,  # noqa: F401
    rows,
    text_folder,
)

from t5x_like.arrays.trees import flatten, unflatten
from t5x_like.cli.main import main
from t5x_like.core.errors import UserError
from t5x_like.core.loading import load_run
from t5x_like.decode.generate import generate
from t5x_like.decode.sample import Sampling
from t5x_like.train.config import Run
from t5x_like.train.setup import make_setup
from t5x_like.train.step import sums_and_gradient

OWN = Path(__file__).parent / "own"

pytestmark = pytest.mark.usefixtures("quick_compiling")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A user's folder with texts, in which the commands are given; what they trust is a file of the folder too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    shutil.copytree(text_folder(), tmp_path / "texts")
    shutil.copy(OWN / "base.py", tmp_path)
    return tmp_path


def bring(folder: Path, *names: str) -> None:
    for name in names:
        shutil.copy(OWN / f"{name}.py", folder)


def good(*command: str) -> None:
    assert main(list(command)) == 0, command


KINDS = {  # run file: what is written beside it
    "optax": (),
    "optimizer": (),
    "objective": ("objectives",),
    "loss": ("objectives",),
    "positions": ("positions",),
    "mixer": ("mixer",),
    "experts": ("experts",),
    "lora": ("lora",),
    "exact_match": ("exact_match",),
}
AFTER = {"optax": 0, "optimizer": 0, "objective": 1, "loss": 2, "positions": 1, "mixer": 1, "experts": 3, "lora": 1,
         "exact_match": 1}  # fmt: skip


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind == "objective" else pytest.mark.slow) for kind in KINDS]
)
def test_trained_resumed_evaluated_and_written_from(kind, folder, capsys):
    assert len(KINDS[kind]) <= AFTER[kind]
    bring(folder, f"run_{kind}", *KINDS[kind])
    good("train", f"run_{kind}.py", "--directory", "straight")
    good("train", f"run_{kind}.py", "--directory", "two", "train.steps=2")
    for name in (f"run_{kind}", "base", *KINDS[kind]):
        (folder / f"{name}.py").unlink()  # from here on there is the copy in the run's folder only
    good("train", "two", "train.steps=4")
    straight, two = checkpoint(folder / "straight"), checkpoint(folder / "two")
    assert_same_bits(straight, two)
    assert losses(folder / "straight") == losses(folder / "two")
    assert sorted(losses(folder / "two")) == [1, 2, 3, 4]
    assert all(np.isfinite(array).all() for array in straight.values())
    capsys.readouterr()
    good("eval", "two")
    measured = capsys.readouterr().out
    assert "at step 4" in measured and "held-out loss" in measured
    good("generate", "two", "a quick brown", "--max-new-tokens", "3")
    good("inspect", "checkpoint", "two")
    good("inspect", "parameters", "two")
    capsys.readouterr()
    good("diff", "straight", "two")
    assert "the configs are the same" in capsys.readouterr().out
    CHECKS.get(kind, lambda *_: None)(folder, straight, measured)


def check_optax(folder, state, measured):
    of = "decoder/final_norm/scale"
    assert sum(path.startswith("optimizer/") and path.endswith(f"/{of}") for path in state) == 2  # optax's mu and nu


def check_loss(folder, state, measured):
    assert all({"train/loss", "train/sureness"} <= row.keys() for row in rows(folder / "straight").values())
    assert "held-out accuracy" in measured and "sureness" not in measured


def check_positions(folder, state, measured):
    assert state["params/decoder/position_bias"].shape == (4,)


def check_mixer(folder, state, measured):
    assert state["params/decoder/layers/running_mean/inner/decay"].shape == (2, 16)
    assert not any("attention" in path for path in state)


def check_experts(folder, state, measured):
    bias = state["params/decoder/layers/feed_forward/inner/bias"]
    assert bias.shape == (2, 4) and np.abs(bias).max() > 0
    # Each step has moved it by 0.1 (by 0 where the load was the mean): a multiple of 0.1, at most 4 times.
    np.testing.assert_allclose(bias / np.float32(0.1), np.round(bias / np.float32(0.1)), atol=1e-5)
    assert np.abs(bias).max() < 0.401
    assert not any(path.startswith("optimizer/") and path.endswith("inner/bias") for path in state)
    for row in rows(folder / "straight").values():
        assert row["train/balance"] > 0 and 1 <= row["train/largest_load"] <= 4


def check_lora(folder, state, measured):
    assert {path for path in state if "/lora/" in path} == {
        f"{where}/lora/decoder/layers/attention/inner/{name}/kernel/{part}"
        for where in ("params", "optimizer/mu", "optimizer/nu")
        for name in ("query", "value") for part in ("down", "up")
    }  # fmt: skip
    assert all("/lora/" in path for path in state if path.startswith("optimizer/m"))


def check_exact_match(folder, state, measured):
    found = rows(folder / "straight", "exact_match")[4]
    assert 0 <= found["exact_match/exact"] <= found["exact_match/letters"] <= 1 and found["exact_match/texts"] == 3
    for name in ("exact", "letters", "texts"):
        assert f"exact-match {name:<11} {found[f'exact_match/{name}']:.4f}" in measured


CHECKS = {name.removeprefix("check_"): value for name, value in list(globals().items()) if name.startswith("check_")}


def test_only_the_narrow_matrices_of_lora_move_and_it_starts_as_the_base(folder):
    bring(folder, "run_lora", "lora")
    (folder / "run_base.py").write_text('from t5x_like.config import code\n\nrun = code("base.py").tiny\n')
    good("train", "run_base.py", "--directory", "base", "train.steps=1")
    good("train", "run_lora.py", "--directory", "one", "train.steps=1")
    good("train", "run_lora.py", "--directory", "five", "train.steps=5")
    assert losses(folder / "one")[1] == pytest.approx(losses(folder / "base")[1], abs=1e-6)
    one, five = checkpoint(folder / "one"), checkpoint(folder / "five")
    moved = {path for path in one if path.startswith("params/") and one[path].tobytes() != five[path].tobytes()}
    assert moved == {path for path in one if path.startswith("params/lora/")} and len(moved) == 4
    assert losses(folder / "five")[5] < losses(folder / "five")[1]


def test_what_lora_writes_is_what_the_merged_weights_write(folder):
    """Generation and evaluation go through `bind`: they equal those of a model that has the products in its kernels."""
    bring(folder, "run_lora", "lora")
    run = load_run("run_lora.py", Run)
    adapted, plain = make_setup(run), make_setup(dataclasses.replace(run, adapters=()))
    draw = np.random.default_rng(0)
    params = jax.tree.map(lambda spec: np.asarray(0.3 * draw.normal(size=spec.shape), np.float32), adapted.specs)
    leaves, merged = flatten(params), flatten(params)
    for path in flatten(plain.specs):
        if f"lora/{path}/up" in leaves:
            merged[path] = leaves[path] + 4 * np.einsum("lir,lro->lio", leaves[f"lora/{path}/down"],
                                                        leaves[f"lora/{path}/up"])  # fmt: skip
    merged = unflatten({path: merged[path] for path in flatten(plain.specs)})
    batch = {"decoder_tokens": draw.integers(3, 264, (2, 9)).astype(np.int32)}
    np.testing.assert_allclose(adapted.bind(params).logits(batch), plain.bind(merged).logits(batch), rtol=1e-4,
                               atol=1e-4)  # fmt: skip
    unused = plain.bind(unflatten({path: leaves[path] for path in flatten(plain.specs)})).logits(batch)
    assert np.abs(np.asarray(adapted.bind(params).logits(batch)) - unused).max() > 0.01
    written = [
        generate(setup.bind, run.model, p, [[5, 9], [40]], Sampling(6), eos_id=1)
        for setup, p in ((adapted, params), (plain, merged))
    ]
    assert written[0] == written[1]


def test_an_adapter_keeps_off_the_parameters_that_there_are(folder):
    bring(folder, "run_lora", "lora")
    run = load_run("run_lora.py", Run)
    with pytest.raises(UserError, match=r"adapters\.1: parameter lora/.* is there already"):
        make_setup(dataclasses.replace(run, adapters=run.adapters * 2))


@pytest.mark.slow
def test_micro_batches_move_a_router_as_one_batch_does(folder):
    bring(folder, "run_experts", "experts")
    for count in (1, 4):
        good("train", "run_experts.py", "--directory", str(count), "train.steps=1", "train.batch_size=32",
             f"train.micro_batches={count}")  # fmt: skip
    name = "params/decoder/layers/feed_forward/inner/bias"
    one, four = checkpoint(folder / "1")[name], checkpoint(folder / "4")[name]
    assert one.tobytes() == four.tobytes() and np.abs(one).max() > 0


def test_micro_batches_give_the_same_statistics_of_a_router(folder):
    """The load is a sum over all tokens of the batch, whatever it is computed in."""
    bring(folder, "run_experts", "experts")
    run = load_run("run_experts.py", Run)
    setup = make_setup(run)
    draw = np.random.default_rng(0)
    params = jax.tree.map(lambda spec: np.asarray(0.3 * draw.normal(size=spec.shape), np.float32), setup.specs)
    tokens = draw.integers(3, 264, (8, 9)).astype(np.int32)
    batch = {"decoder_tokens": tokens, "targets": tokens, "weights": np.ones(tokens.shape, np.float32)}
    found = []
    for count in (1, 4):
        parted = dataclasses.replace(setup, micro_batches=count)
        sums, gradient = jax.jit(lambda *a, s=parted: sums_and_gradient(s, *a))(params, batch, jax.random.key(0))
        found.append(np.asarray(sums["state/decoder/layers/feed_forward/inner/bias"][0]))
        assert "decoder/layers/feed_forward/inner/bias" not in flatten(gradient)
    np.testing.assert_array_equal(*found)
    assert found[0].sum(axis=-1).tolist() == [72, 72]


@pytest.mark.slow
def test_a_launcher_of_two_processes(folder):
    """Two processes of 4 devices train what one of 8 does."""
    bring(folder, "launcher")
    (folder / "run.py").write_text('from t5x_like.config import code\n\nrun = code("base.py").tiny\n')
    command = [*CLI, "train", "run.py", "train.steps=2", "data.corpus.heldout=0", "--directory", "two"]
    done = subprocess.run(
        [sys.executable, "launcher.py", *command], capture_output=True, text=True, timeout=240, cwd=folder,
        env=environment(4, PYTHONPATH=str(ROOT), JAX_DISABLE_MOST_OPTIMIZATIONS="1"),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 x cpu in 2 processes" in done.stdout
    good("train", "run.py", "train.steps=2", "data.corpus.heldout=0", "--directory", "one")
    assert_close(checkpoint(folder / "two"), checkpoint(folder / "one"))
