"""Kinds and their fields chosen on a real command line, in any order."""

from __future__ import annotations

import random

import pytest
from tiny_runs import run_file, scratch, text_folder, tiny_run

from t5x_like.cli.main import main

CORPUS = """
from t5x_like.config import Bytes, Corpus, PythonGenerator

def corpus(heldout=0.0):
    return Corpus("made", PythonGenerator(__file__), Bytes(), "none", "made up", heldout=heldout)

def documents():
    for number in range(40):
        yield f"the text of number {number}, which is about {number * 7} and {number * 13} and more"
"""


def shown(capsys, *arguments: str) -> dict[str, str]:
    assert main(["inspect", "config", run_file(tiny_run("llama")), "--values", *arguments]) == 0
    return dict(line.split(" = ", 1) for line in capsys.readouterr().out.splitlines())


def test_a_source_with_its_fields_in_any_order(capsys):
    given = ["data.corpus.source=JsonLines", "data.corpus.source.paths=a.jsonl,'b,c.jsonl'", "optimizer=Lion",
             "data.corpus.source.field=body", "optimizer.b1=0.8",
             "optimizer.no_decay=(scale|bias)$,[qk]_norm"]  # fmt: skip
    for seed in range(4):
        found = shown(capsys, *random.Random(seed).sample(given, len(given)))
        assert found["data.corpus.source"] == "JsonLines" and found["data.corpus.source.field"] == "body"
        assert found["data.corpus.source.paths"] == "a.jsonl,'b,c.jsonl'"
        assert found["optimizer"] == "Lion" and found["optimizer.b1"] == "0.8"
        assert found["optimizer.no_decay"] == "(scale|bias)$,[qk]_norm"


def test_evaluations(capsys):
    found = shown(capsys, "evaluations=HeldOut,HeldOut", "evaluations.1.name=short", "evaluations.1.batches=2")
    assert found["evaluations.0.name"] == "held_out" and found["evaluations.0.batches"] == "none"
    assert found["evaluations.1.name"] == "short" and found["evaluations.1.batches"] == "2"
    assert "evaluations.0" not in shown(capsys, "evaluations=")


@pytest.mark.slow
def test_a_corpus_by_its_file_is_prepared_and_trained_on(tmp_path, capsys):
    file = tmp_path / "made.py"
    file.write_text(CORPUS)
    cache = f"data.cache={scratch() / 'made_cache'}"
    run, folder = run_file(tiny_run("llama", "train.steps=1")), str(tmp_path / "run")
    assert main(["train", run, f"data.corpus={file}", cache, "--directory", folder]) == 0
    assert main(["inspect", "config", folder, "--values"]) == 0
    out = capsys.readouterr().out
    assert "data.corpus.source = PythonGenerator" in out and str(file) in out and str(text_folder()) not in out
