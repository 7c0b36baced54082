"""A run that begins from another: with its parameters, to the bit, and with data, schedule and length of its own."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import CLI, ROOT, assert_same_bits, checkpoint, digests, losses, run_file, start, tiny_run

from t5x_like.arrays.trees import unflatten
from t5x_like.checkpoint.checkpoints import Checkpoints
from t5x_like.cli.main import main
from t5x_like.core.config import flatten, override
from t5x_like.report.ledger import read_ledger
from t5x_like.train.branch import digest, parse

STILL = ["optimizer.learning_rate=0"]  # one step of it changes no parameter


@pytest.fixture(scope="module")
def parent(tmp_path_factory, quick_compiling) -> Path:
    folder = tmp_path_factory.mktemp("parent") / "run"
    config = run_file(tiny_run("llama", "train.steps=4", "checkpoint.every.steps=2"))
    assert main(["train", config, "--directory", str(folder)]) == 0
    return folder


def branch(folder: Path, parent, *more: str) -> int:
    other = run_file(tiny_run("llama", "data.packing=best_fit", "train.seed=5", "optimizer.schedule.kind=cosine"))
    return main(["train", other, "--directory", str(folder), f"start.from={parent}", *more])


def part(arrays: dict, kind: str) -> dict:
    return {path: array for path, array in arrays.items() if path.startswith(f"{kind}/")}


@pytest.mark.parametrize("what", ["parameters", "parameters+optimizer"])
def test_a_branch_has_the_parameters_of_the_parent_and_says_so(tmp_path, parent, what):
    folder = tmp_path / "new"
    assert branch(folder, f"{parent}@2", *STILL, "train.steps=1", f"start.what={what}") == 0
    before, after = checkpoint(parent, 2), checkpoint(folder)
    assert_same_bits(part(after, "params"), part(before, "params"))
    assert after["step"] == 1 and after["optimizer/count"] == (3 if "optimizer" in what else 1)
    taken = part(before, "params") | (part(before, "optimizer") if "optimizer" in what else {})
    wanted = digest(unflatten({path: jnp.asarray(array) for path, array in taken.items()}))
    record = dict(event="branch", parent=str(parent), parent_step=2, what=what, digest=wanted)
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.metadata()["history"] == [record]
    assert record.items() <= next(line for line in read_ledger(folder) if line["event"] == "branch").items()


@pytest.mark.parametrize("what", ["parameters", "parameters+optimizer"])
def test_it_begins_from_a_mean_of_checkpoints(tmp_path, parent, what):
    mean, folder = tmp_path / "mean", tmp_path / "new"
    assert main(["checkpoint", "average", str(parent), "--steps", "2,4", "--output", str(mean)]) == 0
    assert branch(folder, mean, *STILL, "train.steps=1", f"start.what={what}") == 0
    one, other, after = checkpoint(parent, 2), checkpoint(parent, 4), checkpoint(folder)
    floating = [path for path, array in one.items() if jnp.issubdtype(array.dtype, jnp.floating)]
    wanted = other | {path: np.mean([one[path], other[path]], axis=0, dtype=np.float64).astype(one[path].dtype)
                      for path in floating}  # fmt: skip
    assert_same_bits(part(after, "params"), part(wanted, "params"))
    assert any(wanted[path].tobytes() != other[path].tobytes() for path in part(wanted, "params"))
    taken = part(wanted, "params") | (part(wanted, "optimizer") if "optimizer" in what else {})
    record = json.loads((folder / "history.json").read_text())[0]
    assert record["digest"] == digest(unflatten({path: jnp.asarray(array) for path, array in taken.items()}))
    assert (record["parent"], record["parent_step"], record["averaged"]) == (str(mean), 4, [2, 4])
    assert after["optimizer/count"] == (5 if "optimizer" in what else 1)


def test_it_trains_on_and_does_not_begin_again_when_it_resumes(tmp_path, parent):
    folder, gone = tmp_path / "new", shutil.copytree(parent, tmp_path / "gone")
    assert branch(folder, gone, "train.steps=2") == 0
    first, before = losses(folder), part(checkpoint(folder), "params")
    shutil.rmtree(gone)  # nothing of it is needed any more
    assert branch(folder, gone, "train.steps=3", *STILL) == 0
    assert sorted(losses(folder)) == [1, 2, 3] and losses(folder).items() >= first.items()
    assert_same_bits(part(checkpoint(folder), "params"), before)
    assert main(["train", str(folder), "train.steps=4"]) == 0


@pytest.mark.slow
@pytest.mark.skipif(len(jax.devices()) < 2, reason="needs 2 devices")
def test_two_processes_begin_from_a_run_and_replay_its_first_step(tmp_path, parent):
    """On a mesh that splits the parameters over both; the same bits are read, and the same bits replayed."""

    def together(*words: str) -> str:
        launcher = [sys.executable, str(ROOT / "launch" / "local.py"), "--processes", "2", "--devices", "1", "--"]
        process = start([*launcher, *CLI, *words], JAX_DISABLE_MOST_OPTIMIZATIONS="1")
        out, _ = process.communicate(timeout=240)
        assert process.returncode == 0, out
        return out

    folder = tmp_path / "new"
    other = run_file(tiny_run("llama", "train.seed=5", "mesh.fsdp=2", "train.steps=3", "checkpoint.every.steps=2"))
    together("train", other, "--directory", str(folder), f"start.from={parent}@2")
    taken = part(checkpoint(parent, 2), "params")
    (record,) = json.loads((folder / "history.json").read_text())
    assert record["digest"] == digest(unflatten({path: jnp.asarray(array) for path, array in taken.items()}))
    before = digests(folder / "checkpoints")
    for step in ("1", "3"):  # from the run that it began from, and from its own checkpoint
        out = together("explain", str(folder), "--step", step, "--rows", "2")
        assert out.count(f"bit for bit the loss of step {step} in metrics.jsonl") == 1, out
        assert out.count("bit for bit all arrays of the checkpoint") == 1 and "WARNING" not in out
        assert out.count("rows with the largest gradient") == 1
    assert digests(folder / "checkpoints") == before


def test_killed_before_it_has_saved_it_takes_the_same_checkpoint(tmp_path, parent, capsys):
    """Though the parent has gone on meanwhile; and not one that has changed."""
    moving, folder = tmp_path / "parent", tmp_path / "new"
    shutil.copytree(parent, moving)
    shutil.move(moving / "checkpoints" / "4", tmp_path / "4")
    assert branch(folder, moving, *STILL, "train.steps=1") == 0
    shutil.rmtree(folder / "checkpoints")
    shutil.move(tmp_path / "4", moving / "checkpoints" / "4")
    assert branch(folder, moving, *STILL, "train.steps=1") == 0
    assert_same_bits(part(checkpoint(folder), "params"), part(checkpoint(parent, 2), "params"))
    shutil.rmtree(folder / "checkpoints")
    records = json.loads((folder / "history.json").read_text())
    (folder / "history.json").write_text(json.dumps([records[0] | {"digest": "another"}]))
    assert branch(folder, moving) == 2
    assert "is not what it was when this run was first started" in capsys.readouterr().err


@pytest.mark.parametrize(
    "start, more, said",
    [
        ("{none}", [], "start.from: there is no run in {none}: it has no folder checkpoints"),
        ("{parent}@3", [], "has no checkpoint of step 3\n  allowed: one of 2, 4"),
        ("{parent}", ["model.*.width=64"], "of another shape"),
        ("{parent}", ["start.what=parameters+optimizer", "optimizer=Lion"], "only in the checkpoint"),
        ("{parent}", ["start.what=both"], "allowed: parameters | parameters+optimizer"),
    ],
)
def test_what_it_cannot_begin_from_is_refused(tmp_path, parent, capsys, start, more, said):
    names = {"none": str(tmp_path / "none"), "parent": str(parent)}
    assert branch(tmp_path / "new", start.format(**names), *more) == 2
    error = capsys.readouterr().err
    assert said.format(**names) in error and "Traceback" not in error
    assert not (tmp_path / "new" / "history.json").exists()


def test_every_name_that_does_not_fit_is_listed(tmp_path, parent, capsys):
    what = ["model.d_model=24", "start.what=parameters+optimizer"]
    assert branch(tmp_path / "new", parent, *what) == 2
    error, arrays = capsys.readouterr().err, checkpoint(parent)
    differ = [*part(arrays, "params"), *(path for path in part(arrays, "optimizer") if "count" not in path)]
    assert "of another shape" in error and len(differ) > 30 and all(f"    {path}: " in error for path in differ)


def test_no_code_of_the_other_run_is_run(tmp_path, parent):
    """Its folder may be a stranger's: only arrays are read, whatever its config says."""
    stranger = Path(shutil.copytree(parent, tmp_path / "stranger"))
    (stranger / "code").mkdir()
    (stranger / "code" / "mine.py").write_text("raise SystemExit('run')\n")
    (stranger / "config.json").write_text(json.dumps({"type": "Run", "optimizer": {
        "type": "Mine", "code": {"file": "mine.py", "sha256": "0" * 64}}}))  # fmt: skip
    before = digests(stranger)
    assert branch(tmp_path / "new", stranger, *STILL, "train.steps=1") == 0
    assert digests(stranger) == before
    assert all(np.isfinite(array).all() for array in part(checkpoint(tmp_path / "new"), "params").values())


def test_how_it_is_written():
    run = override(tiny_run("llama"), ["start.from=runs/one@1200"])
    assert parse(run.start.from_) == ("runs/one", 1200) and flatten(run)["start.from"] == "runs/one@1200"
    assert parse("me@home/run") == ("me@home/run", None)
    assert override(run, ["start.from=''"]).start.from_ == ""
