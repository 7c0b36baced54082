"""``t5x-like checkpoint``: what it lists, finds damaged, deletes, and averages."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import checkpoint, saved_steps, tiny_run

from t5x_like.cli.main import main
from t5x_like.train.directory import locked
from t5x_like.train.run import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Four steps, each saved, with a measured loss."""
    directory = tmp_path_factory.mktemp("trained") / "run"
    train(tiny_run("llama", "train.steps=4", "checkpoint.every.steps=1", "data.corpus.heldout=0.3",
                   "train.evaluate_every=1"), directory)  # fmt: skip
    return directory


@pytest.fixture
def run(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_list_says_what_keeps_each(run, capsys):
    shutil.copytree(run / "checkpoints" / "4", run / "checkpoints" / "9.aside-1")
    (run / "checkpoints" / "5.orbax-checkpoint-tmp-1").mkdir()
    assert main(["checkpoint", "list", str(run)]) == 0
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    assert [line[0] for line in lines[1:5]] == ["1", "2", "3", "4"]
    assert all("held_out/loss" in line for line in out.splitlines()[1:5]) and "all are kept" in out
    assert "9.aside-1: set aside" in out and "5.orbax-checkpoint-tmp-1: left by a save" in out


def test_verify_reads_every_array(run, capsys):
    assert main(["checkpoint", "verify", str(run), "--step", "2", "--step", "3"]) == 0
    assert capsys.readouterr().out.count("good, ") == 2
    path = max((run / "checkpoints" / "3").rglob("*"), key=lambda each: each.stat().st_size * each.is_file())
    whole = bytearray(path.read_bytes())
    for at in range(len(whole) // 4, len(whole), len(whole) // 4 - 1):
        whole[at] ^= 16
    path.write_bytes(whole)
    assert main(["checkpoint", "verify", str(run)]) == 2
    shown = capsys.readouterr()
    assert shown.out.count("good, ") == 3 and "step 3: DAMAGED" in shown.out and "1 of 4 damaged" in shown.err
    assert main(["checkpoint", "verify", str(run), "--step", "8"]) == 2
    assert "there is none of step 8" in capsys.readouterr().err


def test_prune_is_dry_unless_told(run, capsys):
    rules = ["checkpoint.keep_last=1", "checkpoint.keep_best=0", "checkpoint.keep_every=2"]
    (run / "checkpoints" / "5.orbax-checkpoint-tmp-1").mkdir()
    assert main(["checkpoint", "prune", str(run), *rules]) == 0
    assert "3 would be deleted" in capsys.readouterr().out and saved_steps(run) == [1, 2, 3, 4]
    with locked(run):
        assert main(["checkpoint", "prune", str(run), "--go", *rules]) == 2
    assert "another training is running" in capsys.readouterr().err and saved_steps(run) == [1, 2, 3, 4]
    assert main(["checkpoint", "prune", str(run), "--go", *rules]) == 0
    assert saved_steps(run) == [2, 4] and not list((run / "checkpoints").glob("*tmp*"))
    assert main(["checkpoint", "prune", str(run), "--keep", "3"]) == 2
    assert main(["checkpoint", "prune", str(run), "--keep", "4", "--go"]) == 0
    assert saved_steps(run) == [4]


def test_average_is_numpys_mean_and_a_run_of_its_own(run, tmp_path, capsys):
    mean = tmp_path / "mean"
    assert main(["checkpoint", "average", str(run), "--last", "3", "--output", str(mean)]) == 0
    assert "the mean of steps 2, 3, 4, as step 4" in capsys.readouterr().out
    each, found = [checkpoint(run, step) for step in (2, 3, 4)], checkpoint(mean)
    assert found.keys() == each[0].keys() and any(array.dtype == np.int32 for array in found.values())
    for path, array in found.items():
        expected = each[-1][path]
        if np.issubdtype(array.dtype, np.floating):
            expected = np.mean([one[path] for one in each], axis=0, dtype=np.float64).astype(array.dtype)
        assert array.tobytes() == expected.tobytes(), path
    assert any(found[path].tobytes() != each[-1][path].tobytes() for path in found)
    assert main(["eval", str(mean)]) == 0
    assert main(["generate", str(mean), "a quick"]) == 0
    assert main(["checkpoint", "average", str(run), "--last", "3", "--output", str(mean)]) == 2
    assert main(["checkpoint", "average", str(run), "--steps", "2,7", "--output", str(tmp_path / "m")]) == 2
    assert "none of step 7" in capsys.readouterr().err and not (tmp_path / "m" / "config.json").exists()
