"""Every seeded mistake is named by the check that it belongs to, by no other; good runs raise no alarm."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import seeded_mistakes
import tiny_runs
from seeded_mistakes import FOUND, Kit
from tiny_runs import digests, run_file, tiny_run

from t5x_like.check.checks import CHECKS
from t5x_like.cli.main import main

GOOD = dict(seeded_mistakes.good_runs())
SOME = 5  # every fifth is tried each time, and all of them by the proof


def some(names) -> list:
    marks = [() if number % SOME == 0 else pytest.mark.proof for number, _ in enumerate(names)]
    return [pytest.param(name, marks=mark) for name, mark in zip(names, marks, strict=True)]


@pytest.fixture(scope="session")
def straight(tmp_path_factory, quick_compiling) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", run_file(tiny_run()), "train.steps=3", "--directory", str(folder)]) == 0
    return folder


@pytest.fixture
def kit(straight, tmp_path, monkeypatch):
    made = Kit(tmp_path, Path(shutil.copytree(straight, tmp_path / "trained")), monkeypatch)
    yield made
    if held := getattr(made, "held", None):
        os.close(held)


def check(arguments: list[str], capsys) -> tuple[int, dict[str, tuple[str, str]]]:
    """(exit code, name of a check to its state and text)."""
    capsys.readouterr()
    code = main(["check", *arguments])
    lines = capsys.readouterr().out.splitlines()
    found = {}
    for line in lines[:-1]:
        state, name, text = line.split(maxsplit=2)
        assert name not in found, "one line for each"
        found[name] = state, text
    return code, found


def test_there_are_forty_mistakes_and_twenty_good_runs():
    assert len(FOUND) >= 40 and len(GOOD) >= 20
    assert {each.check for each in FOUND.values()} >= {*CHECKS} - {"versions", "program"}


@pytest.mark.parametrize("name", some(FOUND))
def test_the_mistake_is_named(name, kit, capsys):
    wanted = FOUND[name]
    code, found = check(wanted.make(kit), capsys)
    failed = {each for each, (state, _) in found.items() if state == "FAILED"}
    assert code == 2
    assert wanted.check in failed and failed <= {wanted.check, *wanted.also}, found
    assert wanted.words in found[wanted.check][1]
    assert found.keys() == CHECKS.keys() or found.keys() == {"config"}  # the first mistake does not end the others


@pytest.mark.parametrize("name", some(GOOD))
def test_a_good_run_raises_no_alarm(name, kit, capsys):
    arguments = GOOD[name](kit)
    before = digests(kit.folder)
    code, found = check(arguments, capsys)
    assert code == 0, found
    warned = {each for each, (state, _) in found.items() if state == "warning"}
    assert warned <= ({"storage", "environment"} if "--cluster" in arguments else set()), found
    assert list(found) == list(CHECKS)
    assert digests(kit.folder) == before, "a check leaves everything as it was"


def test_what_is_not_prepared_is_a_warning_with_its_cost(kit, capsys):
    code, found = check([run_file(kit.run()), "--directory", str(kit.folder / "run")], capsys)
    assert code == 0
    assert found["cache"][0] == "warning" and "not prepared" in found["cache"][1] and "about" in found["cache"][1]
    assert not (kit.folder / "c").exists()


def test_other_versions_are_a_warning_that_says_what_becomes_of_the_bits(kit, capsys, monkeypatch):
    import t5x_like.check.storage as storage

    now = storage.versions()
    for name, words in (("jaxlib", "goes on with others"), ("sentencepiece", "the bits can be kept")):
        monkeypatch.setattr(storage, "versions", lambda name=name: now | {name: "0.0.1"})
        code, found = check([run_file(tiny_run()), "--directory", str(kit.trained)], capsys)
        assert code == 0
        assert found["versions"][0] == "warning" and f"{name} {now[name]} -> 0.0.1" in found["versions"][1]
        assert words in found["versions"][1]


def test_without_devices_that_are_known_the_rest_is_checked(kit, capsys):
    code, found = check([run_file(tiny_run()), "mesh.fsdp=64", "mesh.data=1", "--cluster", "jobset"], capsys)
    assert code == 0
    assert found["mesh"][0] == "unknown" and "--topology" in found["mesh"][1]
    assert found["room"][0] == "ok"


def test_the_rules_keep_as_many_checkpoints_as_a_run_leaves(tmp_path):
    from t5x_like.check.storage import most_kept

    for arguments in (
        ["checkpoint.every=1", "checkpoint.keep_last=2", "checkpoint.keep_every=3"],
        ["checkpoint.every=3", "checkpoint.keep_last=0"],
    ):
        run = tiny_run("llama", "train.steps=8", *arguments)
        folder = tmp_path / arguments[0].replace("=", "_")
        assert main(["train", run_file(run), "--directory", str(folder)]) == 0
        kept = len(tiny_runs.saved_steps(folder))
        assert kept <= most_kept(run.checkpoint, 8) <= kept + 1
