"""One training in a folder: a second one is refused, a killed one is not in the way, and a start that failed leaves no
folder behind."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tiny_runs import ROOT, digests, environment, run_file, tiny_run

from t5x_like.cli.main import main
from t5x_like.core.errors import UserError
from t5x_like.train.directory import locked

HOLD = """
import sys, time
from t5x_like.train.directory import locked
with locked(sys.argv[1]):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_second_training_is_refused_and_a_killed_one_is_not_in_the_way(tmp_path, capsys):
    folder = tmp_path / "run"
    command = ["train", run_file(tiny_run("llama", "train.steps=1")), "--directory", str(folder)]
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True, cwd=ROOT,
                             env=environment())  # fmt: skip
    try:
        assert other.stdout is not None and other.stdout.readline() == "locked\n"
        assert main(command) == 2
        assert f"{folder}: another training is running in this folder" in capsys.readouterr().err
        assert folder.is_dir() and not digests(folder)
    finally:
        other.kill()
        other.communicate()
    assert main(command) == 0
    with locked(folder), pytest.raises(UserError, match="another training"):
        with locked(folder):
            pass
    with locked(folder), locked(folder, first=False):  # another process of the same job
        pass


def test_all_processes_of_a_job_go_by_what_the_first_has_seen(tmp_path):
    with pytest.raises(UserError, match="another training"), locked(tmp_path / "run", False, lambda free: False):
        pass
    assert not (tmp_path / "run").exists()


def test_a_start_that_failed_leaves_no_folder(tmp_path, capsys):
    config = run_file(tiny_run("llama", "data.corpus.source.paths=/no/such/text"))
    assert main(["train", config, "--directory", str(tmp_path / "runs" / "new")]) == 2
    assert "nothing at" in capsys.readouterr().err and not (tmp_path / "runs").exists()
    (tmp_path / "kept").mkdir()
    assert main(["train", config, "--directory", str(tmp_path / "kept")]) == 2
    assert (tmp_path / "kept").is_dir() and not list((tmp_path / "kept").iterdir())


@pytest.mark.parametrize("address", ["gs://bucket/run", "s3://bucket/run", "gs:/bucket/run"])
def test_an_address_is_no_folder(address, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command in (["train", run_file(tiny_run("llama")), "--directory", address], ["eval", address]):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert "is an address" in error and address.split(":")[0] in error and "a folder on a disk" in error
    assert not list(tmp_path.iterdir())
