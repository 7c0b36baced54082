"""Updates that are left out: which, how they are counted, and that nothing else of the run differs."""

from __future__ import annotations

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import assert_same_bits, checkpoint, run_file, saved_steps, tiny_run

from t5x_like.arrays.trees import unflatten
from t5x_like.checkpoint.checkpoints import Checkpoints
from t5x_like.cli.main import main
from t5x_like.input_pipeline.batches.pipeline import Batches
from t5x_like.report.ledger import read_ledger
from t5x_like.report.metrics import read_metrics
from t5x_like.train.skips import Skips

SPIKES = ["train.spike_sigma=6", "train.spike_window=4"]


def judged(skips: Skips, pairs) -> tuple[list[bool], dict]:
    """(whether each update was made, the state at the end) for (loss, gradient norm) of each step."""
    state, found, judge = skips.initial(), [], jax.jit(skips.judge)
    for loss, norm in pairs:
        finite = jnp.isfinite(jnp.float32(loss + norm))
        made, state = judge(state, jnp.float32(loss), jnp.float32(norm), finite)
        found.append(bool(made))
    return found, state


@pytest.mark.parametrize("number", [0, 1])
def test_a_spike_is_what_lies_six_deviations_above_the_mean_of_the_window(number):
    draw = np.random.default_rng(3)
    usual = np.float32([[2.0, 0.5]]) + draw.normal(0, 0.1, (160, 2)).astype(np.float32)
    last = usual[-128:, number].astype(np.float64)
    bound = last.mean() + 6 * last.std()
    for value, made in ((bound - 1e-3, True), (bound + 1e-3, False), (bound - 10, True)):
        step = usual[-1].copy()
        step[number] = value
        found, state = judged(Skips(sigma=6.0), [*usual, step])
        assert all(found[:-1]) and found[-1] == made
        assert state["skipped"].tolist() == [1 - made, 1 - made]
        entered = np.asarray(state["spikes"]["values"])[number, 160 % 128]
        assert entered == pytest.approx(min(value, bound), abs=1e-5)


def test_nothing_is_a_spike_before_half_a_window_and_what_is_not_finite_does_not_enter_it():
    early = [(1.0 + 0.01 * (n % 3), 1.0) for n in range(3)]
    assert judged(Skips(sigma=6.0, window=8), [*early, (1e6, 1.0)])[0] == [True] * 4
    usual = [*early, *early]
    found, state = judged(Skips(sigma=6.0, window=8), [*usual, (np.nan, 1.0), (1.0, np.inf), *early, (2.0, 1.0)])
    assert found == [True] * 6 + [False] * 2 + [True] * 3 + [False] and state["skipped"].tolist() == [3, 1]
    assert np.isfinite(np.asarray(state["spikes"]["values"])).all() and int(state["spikes"]["count"]) == 10


def test_a_level_that_has_risen_for_good_is_learned():
    draw = np.random.default_rng(0)
    losses = [*(2 + draw.normal(0, 0.05, 128)), *(4 + draw.normal(0, 0.05, 128))]
    found, _ = judged(Skips(sigma=6.0), [(loss, 1.0) for loss in losses])
    assert 2 < found[128:].count(False) < 30 and all(found[-90:])


def test_without_sigma_nothing_is_kept_of_the_window():
    assert set(Skips().initial()) == {"skipped"}


def planted(monkeypatch, steps, kind: str):
    """Batches of these steps (from 0) with targets from nowhere of ten times the weight, or with a NaN."""
    original = Batches.batch

    def batch(self, step, rows=None):
        found = original(self, step, rows)
        if step in steps and kind == "spike":
            found["targets"] = 255 - found["targets"] % 200
        elif step in steps:
            found["weights"][0, 0] = float("nan")
        return found

    monkeypatch.setattr(Batches, "batch", batch)


@pytest.fixture(scope="module")
def config() -> str:
    return run_file(tiny_run("llama", "train.steps=10", "optimizer.learning_rate=1e-2"))


def trained(folder: Path, config: str, steps, kind: str, *more: str) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        planted(patch, steps, kind)
        assert main(["train", config, "--directory", str(folder), *more]) == 0
    return folder


def test_a_planted_spike_is_left_out_and_counted_and_nothing_else_differs(tmp_path, config, quick_compiling):
    """Against the run whose same update is left out because it is not finite: the same bits of all parameters."""
    spike = trained(tmp_path / "spike", config, {6}, "spike", *SPIKES)
    skipped = [line for line in read_ledger(spike) if line["event"] == "skipped"]
    assert [line["step"] for line in skipped] == [7] and "a spike" in skipped[0]["why"]
    found = [row for row in read_metrics(spike) if "train/loss" in row]
    assert [row.get("train/skipped") for row in read_metrics(spike)][-4:] == [1.0] * 4
    assert [row["step"] for row in found] == [1, 2, 3, 4, 5, 6, 8, 9, 10]
    state = checkpoint(spike)
    assert state["skipped"].tolist() == [1, 0] and state["step"] == 10 and state["spikes/count"] == 10

    wanted = checkpoint(trained(tmp_path / "nan", config, {6}, "nan"))
    same = [path for path in wanted if path.startswith(("params", "optimizer", "step"))]
    assert_same_bits({p: state[p] for p in same}, {p: wanted[p] for p in same})
    made = checkpoint(trained(tmp_path / "made", config, {6}, "spike"))
    assert any(made[p].tobytes() != wanted[p].tobytes() for p in same)  # the spike does something where it is made

    # with nothing to skip, looking for spikes changes no bit
    plain, looked = (trained(tmp_path / n, config, (), "", *m) for n, m in (("plain", ()), ("looked", SPIKES)))
    without = {path: array for path, array in checkpoint(looked).items() if not path.startswith("spikes")}
    assert_same_bits(without, checkpoint(plain))


def test_a_run_stops_at_the_last_skip_in_a_row_and_goes_on_once_the_cause_is_gone(
    tmp_path, config, capsys, quick_compiling
):
    folder, limit = tmp_path / "run", "train.skipped_in_a_row=3"
    with pytest.MonkeyPatch.context() as patch:
        planted(patch, {2, 4, 5, 6, 7}, "nan")
        for _ in range(2):  # started again without a change it stops again, at once
            assert main(["train", config, "--directory", str(folder), limit]) == 2
            error = capsys.readouterr().err
            assert "step 7: the loss or gradient is not finite" in error and "so were the 2 before it" in error
            assert saved_steps(folder) == [6]
            assert checkpoint(folder)["skipped"].tolist() == [3, 2] and not checkpoint(folder)["halted"]
    assert main(["train", config, "--directory", str(folder), limit]) == 0
    straight = trained(tmp_path / "straight", config, {2, 4, 5}, "nan", limit)
    assert_same_bits(checkpoint(folder), checkpoint(straight))
    assert checkpoint(folder)["skipped"].tolist() == [3, 0]


@pytest.mark.slow
def test_a_checkpoint_from_before_the_counts_goes_on(tmp_path, config, quick_compiling):
    """Also with spikes looked for from now on, then in another window, and then no longer."""
    straight = trained(tmp_path / "straight", config, (), "")
    folder = trained(tmp_path / "run", config, (), "", "train.steps=5")
    state = {path: array for path, array in checkpoint(folder).items() if path != "skipped"}
    with Checkpoints(folder / "checkpoints", read_only=True) as old:
        metadata = old.metadata()
    shutil.rmtree(folder / "checkpoints")
    with Checkpoints(folder / "checkpoints") as old:
        old.save(5, unflatten({path: jnp.asarray(array) for path, array in state.items()}), metadata)
    steps = iter((6, 7, 8))
    for more in (SPIKES, ["train.spike_sigma=6", "train.spike_window=8"], []):
        trained(folder, config, (), "", f"train.steps={next(steps)}", *more)
        kept = [array.shape for path, array in checkpoint(folder).items() if path == "spikes/values"]
        assert kept == ([(2, int(more[1][-1]))] if more else [])
    trained(folder, config, (), "")
    assert_same_bits(checkpoint(folder), checkpoint(straight))
