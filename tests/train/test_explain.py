"""A step replayed to the bit, and the bad row of its batch named, by document and text."""

from __future__ import annotations

import dataclasses
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import digests, run_file, text_folder, tiny_run

from t5x_like.cli.main import main
from t5x_like.core.config import override
from t5x_like.input_pipeline.config import Bytes, Corpus, Mixture, Part, TextFiles
from t5x_like.objectives import UL2, PrefixLM, SpanCorruption
from t5x_like.train.data import Data
from t5x_like.train.explain import explain_step


@pytest.fixture(scope="module")
def trained(tmp_path_factory, quick_compiling) -> tuple[Path, int, int]:
    """(folder of a run, the step that has the bad document in its batch, the document's number).

    The document is of letters that no other has, so that a model that has learned a little is most wrong there."""
    folder = tmp_path_factory.mktemp("explain")
    texts = Path(shutil.copytree(text_folder(), folder / "texts"))
    draw = random.Random(1)
    (texts / "bad.txt").write_bytes(bytes(draw.choice(b"@#^~|{}[]<>") for _ in range(31)))
    more = ["data.packing=none", "checkpoint.every.steps=5", "optimizer.learning_rate=2e-2", "model.scan_layers=true"]
    run = override(tiny_run("llama", f"data.corpus.source.paths={texts}", *more), ["train.steps=40"])
    data = Data.open(run)
    bad = data.caches["tiny"].split("train").lengths.tolist().index(31)
    held = lambda step: bad in [number for row in data.train.documents_of(step) for _, number in row]  # noqa: E731
    step = next(n for n in range(24, 40) if n % 5 in (1, 2) and held(n))  # not just after a checkpoint, nor before one
    run = override(run, [f"train.steps={step + 3}"])
    assert main(["train", run_file(run), "--directory", str(folder / "run")]) == 0
    return folder / "run", step + 1, bad


def test_the_bad_row_is_named_and_the_step_replayed_to_the_bit(trained, capsys):
    folder, step, bad = trained
    before = digests(folder)
    capsys.readouterr()
    assert main(["explain", str(folder), "--step", str(step)]) == 0
    out = capsys.readouterr().out
    assert f"bit for bit the loss of step {step} in metrics.jsonl" in out
    assert "bit for bit all arrays of the checkpoint of step" in out
    assert digests(folder) == before
    found = explain_step(folder, step, proof=False, say=lambda _: None)
    rows = [row.index for row in found.rows if row.documents == [("tiny", bad)]]
    for rank in ("loss", "gradient_norm"):
        first = sorted(found.rows, key=lambda row: -getattr(row, rank))[:3]
        assert set(rows) & {row.index for row in first}, (rank, found.rows)
    assert found.replayed_from == (step - 1) // 5 * 5 and found.metrics["made"] == 1
    text = (folder.parent / "texts" / "bad.txt").read_text()
    assert f"row {rows[0]} · tiny {bad}" in out and text[:20] in out


def test_rows_and_parameters_add_up_to_the_step(trained):
    folder, step, _ = trained
    found = explain_step(folder, step, proof=False, say=lambda _: None)
    mean = sum(row.loss * row.targets for row in found.rows) / sum(row.targets for row in found.rows)
    assert mean == pytest.approx(found.metrics["loss"], abs=1e-5)
    squares = sum(each.gradient_norm**2 for each in found.parameters)
    assert np.sqrt(squares) == pytest.approx(found.metrics["gradient_norm"], rel=1e-5)
    # a sum is no longer than its parts together
    assert found.metrics["gradient_norm"] <= sum(row.gradient_norm for row in found.rows) * (1 + 1e-5)
    layers = {(each.path, each.layer) for each in found.parameters}
    assert len(layers) == len(found.parameters) and {0} <= {layer for _, layer in layers}
    assert all(each.update_ratio > 0 for each in found.parameters if each.gradient_norm)


def test_a_replay_that_is_not_of_these_bits_says_so(trained, capsys):
    """The metrics say something else."""
    folder, step, _ = trained
    other = Path(shutil.copytree(folder, folder.parent / "other"))
    text = (other / "metrics.jsonl").read_text()
    (other / "metrics.jsonl").write_text(text.replace('"train/loss": ', '"train/loss": 1'))
    assert main(["explain", str(other), "--step", str(step), "--no-proof", "--rows", "1"]) == 1
    assert f"WARNING: not bit for bit the loss of step {step}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "step, said", [("0", "--step: got 0"), ("999", "--step: 999, and the run has"), ("-1", "--step: got -1")]
)
def test_a_step_that_the_run_does_not_have(trained, capsys, step, said):
    assert main(["explain", str(trained[0]), "--step", step]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("packing", ["concatenate", "first_fit", "none"])
def test_documents_of_a_row_are_those_whose_text_it_has(packing):
    """Each target of a row is in one of its documents, and no document is there for nothing."""
    few = Corpus("few", TextFiles((str(text_folder() / "3.txt"), str(text_folder() / "8.txt"))), Bytes(), "", "", 0.0)
    all_of_it = Corpus("tiny", TextFiles((str(text_folder()),)), Bytes(), "", "", 0.0)
    run = tiny_run("t5", f"data.packing={packing}")
    mixture = Mixture("both", (Part(all_of_it, 2.0), Part(few)), Bytes())
    objective = UL2((SpanCorruption(0.15, 3.0), PrefixLM()), (1.0, 1.0))
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, corpus=mixture), objective=objective)
    data = Data.open(run)
    for step in range(12):
        sources, batch = data.train.sources_of(step), data.train.batch(step)
        for row, documents in enumerate(data.train.documents_of(step)):
            assert {name for name, _ in documents} == {sources[row][0]}
            splits = [(data.caches[name].split("train"), number) for name, number in documents]
            texts = [data.tokenizer.decode(split.document(number).tolist()) for split, number in splits]
            segments = int(max(batch["encoder_segments"][row].max(), batch["decoder_segments"][row].max()))
            if packing != "concatenate":
                assert 1 <= len(documents) <= segments
            for segment in range(1, segments + 1):
                ids = batch["targets"][row][batch["decoder_segments"][row] == segment].tolist()
                pieces = [part for part in data.tokenizer.decode(ids).split() if part.isalpha() and len(part) > 3]
                assert all(any(piece in text for text in texts) for piece in pieces if "extra" not in piece)
