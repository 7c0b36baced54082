"""Stopped and gone on is the same as never stopped, bit for bit: losses, parameters, optimizer, batches. On another
mesh the batches still are, and the loss to 1e-5. What cannot go on is refused, and nothing is touched."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import tiny_runs
from tiny_runs import (
    assert_same_bits,
    checkpoint,
    digests,
    losses,
    program,
    record_batches,
    rows,
    run_file,
    saved_steps,
    tiny_run,
)

from t5x_like.cli.main import main
from t5x_like.input_pipeline.batches.pipeline import Batches
from t5x_like.train.data import Data

STEPS = 10
EPOCH = 5.875  # steps: no batch ends where an epoch does


@pytest.fixture(scope="module")
def config() -> str:
    return run_file(tiny_run("llama", f"train.steps={STEPS}"))


@pytest.fixture(scope="module")
def straight(tmp_path_factory, config, quick_compiling):
    """(folder, batches) of the run that nobody stops."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    with pytest.MonkeyPatch.context() as patch:
        fed = record_batches(patch)
        assert main(["train", config, "--directory", str(folder)]) == 0
    return folder, fed


@pytest.fixture
def copy(straight, tmp_path) -> Path:
    """A copy of the straight run's folder, to be mistreated."""
    return Path(shutil.copytree(straight[0], tmp_path / "copy"))


def signal_at_batch(monkeypatch, number: int, which: signal.Signals) -> None:
    """The signal comes while batch ``number`` is on its way to the devices."""
    import t5x_like.train.feed as feeding

    original, count = feeding.to_devices, iter(range(10**9))

    def interrupted(*arguments):
        if next(count) == number:
            signal.raise_signal(which)
        return original(*arguments)

    monkeypatch.setattr(feeding, "to_devices", interrupted)


def test_the_run_spans_epochs_that_do_not_end_with_a_batch(straight):
    data = Data.open(tiny_run("llama"))
    assert data.train.examples_per_epoch / 8 == EPOCH
    assert len(straight[1]) == STEPS and sorted(losses(straight[0])) == list(range(1, STEPS + 1))
    first_epoch = sum(straight[1], [])[: data.train.examples_per_epoch]
    assert len(set(first_epoch)) == len(first_epoch)


def test_stopped_twice_and_resumed_is_the_straight_run(straight, config, tmp_path, capsys):
    """Stopped by SIGTERM in the middle of the first epoch, by SIGINT of the second."""
    folder, wanted_batches = tmp_path / "run", straight[1]
    command = ["train", config, "--directory", str(folder)]
    fed_in_all: dict[int, list[str]] = {}
    done = 0
    for number, which, code in ((2, signal.SIGTERM, 75), (6, signal.SIGINT, 130), (None, None, 0)):
        with pytest.MonkeyPatch.context() as patch:
            fed = record_batches(patch)
            if number is not None:
                signal_at_batch(patch, number, which)
            assert main(command) == code
        for index, batch in enumerate(fed):  # one or two more than were trained on, read ahead
            fed_in_all[done + index] = batch
            assert wanted_batches[done + index] == batch
        out = capsys.readouterr().out
        if code:
            done = saved_steps(folder)[-1]
            assert f"saved at step {done}; to resume: {program()} train {config} --directory {folder}\n" in out
            assert sorted(losses(folder)) == list(range(1, done + 1))
            assert checkpoint(folder)["step"] == done
            epoch, place = divmod(done, EPOCH)
            assert epoch == (which == signal.SIGINT) and 0.5 < place < EPOCH - 0.5
        else:
            assert f"resuming from step {done}" in out
    assert [fed_in_all[n] for n in range(STEPS)] == wanted_batches
    assert len(saved_steps(folder)) == 3
    assert rows(folder) == rows(straight[0])
    assert_same_bits(checkpoint(folder), checkpoint(straight[0]))


@pytest.mark.slow
def test_gone_on_with_another_mesh_and_more_steps(straight, config, tmp_path, monkeypatch):
    """Of a run of 6 steps one of 10 is made, and from data 8 to tensor 2 x fsdp 2 x data 2."""
    folder = tmp_path / "run"
    fed = record_batches(monkeypatch)
    assert main(["train", config, "--directory", str(folder), "train.steps=6"]) == 0
    mesh = ["mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2"]
    assert main(["train", config, "--directory", str(folder), *mesh]) == 0
    assert fed == straight[1]
    wanted = losses(straight[0])
    assert losses(folder) == pytest.approx(wanted, abs=1e-5)
    assert {step: loss for step, loss in losses(folder).items() if step <= 6} == {n: wanted[n] for n in range(1, 7)}


@pytest.mark.slow
def test_micro_batches_may_change_on_the_way(straight, copy, config):
    """The last steps again from step 4 in two micro-batches of a mesh half as wide."""
    folder = copy.parent / "parted"
    assert main(["train", config, "--directory", str(folder), "train.steps=4"]) == 0
    change = ["train.micro_batches=2", "mesh.data=4", "mesh.tensor=2"]
    assert main(["train", config, "--directory", str(folder), *change]) == 0
    assert losses(folder) == pytest.approx(losses(straight[0]), abs=1e-5)


def test_a_complete_run_says_so_and_is_left_as_it_is(copy, config, capsys):
    before = digests(copy)
    shorter = f"tiny_llama has made {STEPS} steps, more than train.steps=5: nothing is trained."
    for more, said in (([], "tiny_llama is complete: all"), (["train.steps=5"], shorter),
                       (["report.every=3"], "tiny_llama is complete: all")):  # fmt: skip
        assert main(["train", config, "--directory", str(copy), *more]) == 0
        assert said in capsys.readouterr().out
        assert digests(copy) == before


@pytest.mark.parametrize(
    "change, named",
    [
        ("train.seed=1", "train.seed: 0 -> 1"),
        ("train.batch_size=16", "train.batch_size: 8 -> 16"),
        ("data.input_length=16", "data.input_length: 32 -> 16"),
        ("data.packing=best_fit", "data.packing: concatenate -> best_fit"),
        ("data.corpus.heldout=0.5", "data.corpus.heldout: 0.0 -> 0.5"),
        ("model.*.width=64", "model.decoder.groups.0.pattern.0.feed_forward.width: 32 -> 64"),
        ("model.decoder.positions=Alibi", "model.decoder.positions: Rope -> Alibi"),
        ("objective=PrefixLM", "objective: Autoregressive -> PrefixLM"),
    ],
)
def test_what_would_change_batches_or_parameters_is_refused(copy, config, capsys, change, named):
    before = digests(copy)
    assert main(["train", config, "--directory", str(copy), "train.steps=12", change]) == 2
    assert digests(copy) == before
    error = capsys.readouterr().err
    assert named in error and "cannot continue" in error and "--directory" in error and "Traceback" not in error


def test_another_optimizer_finds_no_state_of_its_own_and_is_refused(copy, config, capsys):
    before = digests(copy)
    assert main(["train", config, "--directory", str(copy), "train.steps=12", "optimizer=Lion"]) == 2
    error = capsys.readouterr().err
    assert "another model or optimizer" in error and "optimizer/nu" in error and "Traceback" not in error
    assert digests(copy) == before


def test_a_changed_text_is_refused(tmp_path, copy, capsys, monkeypatch):
    """The same config over other text: told by the fingerprint in the checkpoint."""
    texts = Path(shutil.copytree(tiny_runs.text_folder(), tmp_path / "texts"))
    (texts / "0.txt").write_text("Something else altogether.\n")
    config = (copy / "config.json").read_text()
    (copy / "config.json").write_text(config.replace(str(tiny_runs.text_folder()), str(texts)))
    changed = run_file(tiny_run("llama", "train.steps=12", f"data.corpus.source.paths={texts}"))
    before = digests(copy)
    assert main(["train", changed, "--directory", str(copy)]) == 2
    assert "data.corpus: 'tiny' is not what the run was trained on" in capsys.readouterr().err
    assert digests(copy) == before


def test_a_start_that_failed_binds_nobody(tmp_path, config, capsys):
    """A mistake in the first command is mended in the second, in the same folder."""
    command = ["train", config, "--directory", str(tmp_path / "run")]
    assert main([*command, "data.corpus.source.paths=/no/such/text"]) == 2
    assert "nothing at '/no/such/text'" in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.json").exists()
    assert main([*command, "train.steps=1"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("position", [3, 6])
def test_a_step_that_is_not_finite_is_named_and_can_be_gone_on_from(straight, config, tmp_path, capsys, position):
    """A NaN among the weights of one batch, gone when the run is started again: as if it had never been."""
    folder, original = tmp_path / "run", Batches.batch

    def poisoned(self, step, rows=None):
        batch = original(self, step, rows)
        if step == position:
            batch["weights"][0, 0] = float("nan")
        return batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Batches, "batch", poisoned)
        assert main(["train", config, "--directory", str(folder), "checkpoint.every.steps=2",
                     "train.skipped_in_a_row=1"]) == 2
    error = capsys.readouterr().err
    assert f"step {position + 1}: the loss or gradient is not finite" in error and "Traceback" not in error
    assert saved_steps(folder)[-1] == position
    assert checkpoint(folder)["step"] == position and not checkpoint(folder)["halted"]
    assert all(np.isfinite(array).all() for array in checkpoint(folder).values())
    assert main(["train", config, "--directory", str(folder)]) == 0
    assert rows(folder) == rows(straight[0])
    assert_same_bits(checkpoint(folder), checkpoint(straight[0]))


def test_an_evaluation_that_a_stop_prevented_is_made_up_for(tmp_path, capsys):
    """A run whose last held-out row is missing is not complete: it evaluates, to the same row."""
    run = tiny_run("llama", "train.steps=3", "data.corpus.heldout=0.1", "train.evaluate_batches=1")
    folder, command = tmp_path / "run", ["train", run_file(run), "--directory", str(tmp_path / "run")]
    assert main(command) == 0
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    assert "held_out/loss" in lines[-1] and "held_out/loss" not in "".join(lines[:-1])
    path.write_text("".join(lines[:-1]))
    assert main(command) == 0
    again = path.read_text().splitlines(keepends=True)
    assert again[:-1] == lines[:-1]
    wanted, found = json.loads(lines[-1]), json.loads(again[-1])
    assert {k: v for k, v in found.items() if k != "time"} == {k: v for k, v in wanted.items() if k != "time"}
    capsys.readouterr()
    assert main(["train", str(folder)]) == 0  # a run's folder stands for its config, and goes on in itself
    assert "is complete" in capsys.readouterr().out and path.read_text().splitlines(keepends=True) == again
