"""One training in a folder: a second one is refused, a killed one is not in the way, and a start that failed leaves no
folder behind."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
from tiny_runs import CLI, ROOT, digests, environment, run_file, tiny_run

from t5x_like.cli.main import main
from t5x_like.core.config import to_json
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
        who = f"process {other.pid} on {platform.node()} since 20"
        assert f"{folder}: another training is running in this folder: {who}" in capsys.readouterr().err
        assert set(digests(folder)) == {".lock", ".lock/1"}
        (folder / "checkpoints").mkdir()  # of the other training, which has saved nothing yet
        assert main(command) == 2 and (folder / "checkpoints").is_dir()
    finally:
        other.kill()
        other.communicate()
    assert main(command) == 0 and not (folder / ".lock").exists()
    with locked(folder), pytest.raises(UserError, match="another training"):
        with locked(folder):
            pass
    with locked(folder), locked(folder, first=False):  # another process of the same job
        pass


def test_all_processes_of_a_job_go_by_what_the_first_has_seen(tmp_path):
    with pytest.raises(UserError, match="another training"), locked(tmp_path / "run", False, lambda free: False):
        pass
    assert (tmp_path / "run").is_dir()  # that of the other training, now


def test_a_start_that_failed_leaves_no_folder(tmp_path, capsys):
    config = run_file(tiny_run("llama", "data.corpus.source.paths=/no/such/text"))
    assert main(["train", config, "--directory", str(tmp_path / "runs" / "new")]) == 2
    assert "nothing at" in capsys.readouterr().err and not (tmp_path / "runs").exists()
    (tmp_path / "kept").mkdir()
    assert main(["train", config, "--directory", str(tmp_path / "kept")]) == 2
    assert (tmp_path / "kept").is_dir() and not list((tmp_path / "kept").iterdir())


def test_mistakes_of_the_report_are_found_before_the_corpus_is_prepared(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config, cache = run_file(tiny_run("llama", f"data.cache={tmp_path / 'cache'}")), tmp_path / "cache"
    assert main(["train", config, "--directory", str(tmp_path / "run"), "report.wandb=project"]) == 2
    assert "report.wandb: project 'project', but the package" in capsys.readouterr().err
    (tmp_path / "one" / "metrics.jsonl").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "ledger").write_text("")
    for folder, said in (("one", "metrics.jsonl: is no file"), ("other", "ledger: is no folder")):
        assert main(["train", config, "--directory", str(tmp_path / folder)]) == 2
        assert said in capsys.readouterr().err
    assert not cache.exists()


@pytest.mark.parametrize("command", [["train"], ["eval"], ["generate"], ["inspect", "checkpoint"]])
def test_a_platform_that_is_not_there(command, tmp_path):
    """Each in a process of its own: a platform is chosen once."""
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.json").write_text(to_json(tiny_run("llama")))
    arguments = [*CLI, *command, str(folder), *(["a"] if command == ["generate"] else [])]
    chosen = environment() | {"JAX_PLATFORMS": "tpu"}
    done = subprocess.run(arguments, env=chosen, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "JAX_PLATFORMS: tpu: " in done.stderr and "Traceback" not in done.stderr
    assert "JAX_PLATFORMS=cpu" in done.stderr


@pytest.mark.parametrize("address", ["az://bucket/run", "hf://a/b", "gs:/bucket/run", "s3:///run"])
def test_an_address_of_another_kind_is_no_folder(address, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command in (["train", run_file(tiny_run("llama")), "--directory", address], ["eval", address]):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert address in error and ("no support for" in error or "names no bucket" in error)
    assert not list(tmp_path.iterdir())
