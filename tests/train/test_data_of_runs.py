"""Whole runs over every kind of data: mixtures, several objectives, skipped batches, stopped and gone on."""

import dataclasses
import shutil

import pytest
from tiny_models import resized
from tiny_runs import losses, record_batches, rows, run_file, text_folder, tiny_run

from t5x_like.cli.main import main
from t5x_like.core.config import to_json
from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.config import Bytes, Corpus, Mixture, Part, TextFiles
from t5x_like.layers.positions import T5Relative
from t5x_like.objectives import UL2, Autoregressive, PermutationLM, PrefixLM, SpanCorruption
from t5x_like.report.metrics import read_metrics
from t5x_like.train.data import check_skipped

pytestmark = pytest.mark.usefixtures("quick_compiling")


def mixture() -> Mixture:
    """All of the texts, and two of them once more at half the rate."""
    few = tuple(str(text_folder() / f"{number}.txt") for number in (3, 8))
    all_of_it = Corpus("tiny", TextFiles((str(text_folder()),)), Bytes(), "none", "made up", heldout=0.2)
    return Mixture("both", (Part(all_of_it, 2.0), Part(Corpus("few", TextFiles(few), Bytes(), "", "", 0.0))), Bytes())


def ul2() -> UL2:
    return UL2((SpanCorruption(0.15, 3.0), PrefixLM(), SpanCorruption(0.5, 3.0)), (2.0, 1.0, 1.0))


def with_data(run, **data):
    return dataclasses.replace(run, data=dataclasses.replace(run.data, **data))


@pytest.mark.slow
def test_a_mixture_of_corpora_and_denoisers_stopped_and_gone_on(tmp_path, monkeypatch):
    run = with_data(tiny_run("t5", "train.evaluate_every.steps=4", "model.vocab_size=264"), corpus=mixture())
    config = run_file(dataclasses.replace(run, objective=ul2()))
    fed = record_batches(monkeypatch)
    assert main(["train", config, "--directory", str(tmp_path / "straight")]) == 0
    straight = fed[:]
    fed.clear()
    assert main(["train", config, "--directory", str(tmp_path / "run"), "train.steps=5"]) == 0
    assert main(["train", config, "--directory", str(tmp_path / "run")]) == 0
    assert fed == straight
    assert losses(tmp_path / "run") == losses(tmp_path / "straight")
    held_out = rows(tmp_path / "run", "held_out")
    assert held_out[4] == rows(tmp_path / "straight", "held_out")[4] and set(held_out) == {4, 5, 8}
    last = [row for row in read_metrics(tmp_path / "run") if "data/fill" in row][-1]
    assert last["data/tiny/tokens"] > last["data/few/tokens"] > 0 and 0.3 < last["data/fill"] <= 1.0


@pytest.mark.slow
def test_a_run_goes_on_and_is_evaluated_from_another_directory(tmp_path, monkeypatch, capsys):
    for place in ("first", "second"):
        shutil.copytree(text_folder(), tmp_path / place / "texts")
    (tmp_path / "elsewhere").mkdir()
    run = tiny_run("llama", "data.corpus.heldout=0.2", "data.corpus.source.paths=texts", "train.steps=2")
    config, directory = run_file(run), str(tmp_path / "run")
    relative = ["data.corpus.source.paths=texts", f"data.cache={tmp_path}/cache"]
    monkeypatch.chdir(tmp_path / "first")
    assert main(["train", config, "--directory", directory, *relative]) == 0
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["train", directory, "train.steps=3"]) == 0
    assert main(["eval", directory]) == 0
    monkeypatch.chdir(tmp_path / "second")
    assert main(["train", config, "--directory", directory, *relative, "train.steps=4"]) == 0, "the same text"
    assert sorted(losses(tmp_path / "run")) == [1, 2, 3, 4]
    (tmp_path / "second" / "texts" / "0.txt").write_text("another text")
    assert main(["train", config, "--directory", directory, *relative, "train.steps=5"]) == 2
    assert "is not what the run was trained on" in capsys.readouterr().err


ENDLESS = """
import itertools
from dataclasses import replace
from t5x_like.config import Bytes, Corpus, PythonGenerator
from t5x_like.core.config import from_json
from t5x_like.train.config import Run

def documents():
    for number in itertools.count():
        yield f"document {number} " * (1 + number % 5)

def run():
    corpus = Corpus("endless", PythonGenerator(__file__), Bytes(), "none", "made up", heldout=0.2, window=40)
    run = from_json(Run, TEXT)
    return replace(run, data=replace(run.data, corpus=corpus))
"""


@pytest.mark.slow
def test_an_endless_source_over_three_windows_stopped_and_gone_on(tmp_path, monkeypatch):
    run = tiny_run("llama", "train.evaluate_every.steps=5", f"data.cache={tmp_path / 'cache'}")
    config = tmp_path / "endless.py"
    config.write_text(f"TEXT = {to_json(run)!r}\n{ENDLESS}")
    fed = record_batches(monkeypatch)
    train = ["train", str(config), "train.steps=40", "--directory"]
    assert main([*train, str(tmp_path / "straight")]) == 0
    straight = fed[:]
    fed.clear()
    last = [row for row in read_metrics(tmp_path / "straight") if "data/endless/epochs" in row][-1]
    assert last["data/endless/epochs"] > 3
    for steps in (23, 40):
        assert main([*train, str(tmp_path / "run"), f"train.steps={steps}"]) == 0
    assert fed == straight and len(set(map(tuple, straight))) == 40
    assert losses(tmp_path / "run") == losses(tmp_path / "straight")
    assert rows(tmp_path / "run", "held_out")[40] == rows(tmp_path / "straight", "held_out")[40]
    assert main(["inspect", "data", str(config), "--step", "1"]) == 0
    assert main(["eval", str(tmp_path / "run")]) == 0


@pytest.mark.slow
def test_batches_are_skipped_from_the_checkpoint_on_and_not_before(tmp_path, monkeypatch, capsys):
    config = run_file(tiny_run("llama"))
    fed = record_batches(monkeypatch)
    assert main(["train", config, "--directory", str(tmp_path / "all"), "train.steps=10"]) == 0
    straight = fed[:]
    fed.clear()
    command = ["train", config, "--directory", str(tmp_path / "run")]
    assert main([*command, "train.steps=3"]) == 0
    assert main([*command, "train.steps=8", "data.skip=2:4"]) == 2
    assert "the run has trained on batches before 3" in capsys.readouterr().err
    fed.clear()
    assert main([*command, "train.steps=8", "data.skip=4:6"]) == 0
    assert fed == [straight[n] for n in (3, 6, 7, 8, 9)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["several tokens ahead", "permutation"])
def test_objectives_with_needs_of_their_own_train_and_evaluate(tmp_path, kind):
    if kind == "permutation":
        run = dataclasses.replace(tiny_run("bert"), objective=PermutationLM())
    else:
        llama = tiny_run("llama")
        model = dataclasses.replace(llama.model, future_heads=2)
        run = dataclasses.replace(llama, model=model, objective=Autoregressive(future_tokens=2))
    assert main(["train", run_file(run), "--directory", str(tmp_path / "run"), "train.steps=6"]) == 0
    found = list(losses(tmp_path / "run").values())
    assert len(found) == 6 and found[-1] < found[0]


def test_configs_of_objectives_and_models_that_do_not_go_together():
    llama = tiny_run("llama")
    with pytest.raises(UserError, match="objective.future_tokens: 2, but model.future_heads is 0"):
        dataclasses.replace(llama, objective=Autoregressive(future_tokens=2))
    bert = tiny_run("bert")
    relative = resized(bert.model, positions=T5Relative())
    with pytest.raises(UserError, match="Learned, Sinusoidal or Rope positions"):
        dataclasses.replace(bert, objective=PermutationLM(), model=relative)
    with pytest.raises(UserError, match="no window"):
        dataclasses.replace(bert, objective=PermutationLM(), model=resized(bert.model, window=4))


def test_what_may_be_skipped_when_a_run_goes_on():
    data = tiny_run("llama").data

    def skipping(*ranges):
        return dataclasses.replace(data, skip=ranges)

    check_skipped(data, skipping("5:9"), 5)
    check_skipped(skipping("2:4"), skipping("2:4", "9:12"), 7)  # 9 batches of data are behind
    check_skipped(skipping("2:4"), skipping("2:4"), 100)
    for before, now, step in (((), ("4:9",), 5), (("2:4",), (), 5), (("2:4",), ("2:4", "8:9"), 7)):
        with pytest.raises(UserError, match="data.skip"):
            check_skipped(skipping(*before), skipping(*now), step)
