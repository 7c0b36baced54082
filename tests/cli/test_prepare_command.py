"""``t5x-like prepare``: what it prints is what lies in the cache; training then finds it there."""

from __future__ import annotations

import dataclasses
import re

import pytest
from tiny_runs import run_file, text_folder, tiny_run

from t5x_like.cli.main import main
from t5x_like.input_pipeline.config import Corpus, Filters, Mixture, Part, SentencePiece
from t5x_like.input_pipeline.prepare.token_cache import open_cache
from t5x_like.train.config import Run


def fresh_run(tmp_path, **options) -> Run:
    """With a cache of its own."""
    run = tiny_run("llama")
    corpus = run.data.corpus
    assert isinstance(corpus, Corpus)
    corpus = dataclasses.replace(corpus, **options)
    return dataclasses.replace(run, data=dataclasses.replace(run.data, corpus=corpus, cache=str(tmp_path / "cache")))


def test_it_makes_the_cache_and_says_what_is_in_it(tmp_path, capsys):
    run = fresh_run(tmp_path, filters=Filters(min_characters=10**6), deduplicate=True)
    assert main(["prepare", run_file(run), "data.corpus.filters.min_characters=0", "--processes", "2"]) == 0
    out = capsys.readouterr().out
    path = re.search(r"cache +[\d.]+ MB in (\S+)", out)[1]
    manifest = open_cache(tmp_path / path).manifest
    for name, split in manifest["splits"].items():
        assert re.search(rf"{name} +{split['documents']:,} documents +{split['tokens']:,} tokens", out)
    assert re.search(r"time +[\d.]+ s, [\d.]+ MB/s", out)
    assert main(["prepare", run_file(run), "data.corpus.filters.min_characters=0"]) == 0
    out = capsys.readouterr().out
    assert ": prepared already" in out and "time" not in out


def test_it_says_what_was_left_out(tmp_path, capsys):
    longest = max(len(path.read_text()) for path in text_folder().iterdir())
    run = fresh_run(tmp_path, filters=Filters(max_characters=longest - 1))
    assert main(["prepare", run_file(run)]) == 0
    assert "left out 1 dropped by max_characters" in capsys.readouterr().out


def test_every_corpus_of_a_mixture_is_prepared_with_one_tokenizer(tmp_path, capsys):
    run = fresh_run(tmp_path)
    one = run.data.corpus
    assert isinstance(one, Corpus)
    mixture = Mixture("both", (Part(one), Part(dataclasses.replace(one, name="other"))), SentencePiece(400, "bpe"))
    model = dataclasses.replace(run.model, vocab_size=512)
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, corpus=mixture), model=model)
    assert main(["prepare", run_file(run)]) == 0
    out = capsys.readouterr().out
    caches = [open_cache(tmp_path / path) for path in re.findall(r" MB in (\S+)", out)]
    assert [cache.manifest["name"] for cache in caches] == ["tiny", "other"]
    assert len({cache.tokenizer_fingerprint for cache in caches}) == 1 and caches[0].manifest["vocab_size"] == 400


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--processes", "-1"], "--processes"),
        (["--", "--runner=FlinkRunner"], "--beam -- --runner=FlinkRunner"),
        (["data.corpus.heldout=2"], "data.corpus.heldout"),
    ],
)
def test_mistakes_are_told(tmp_path, capsys, arguments, told):
    assert main(["prepare", run_file(fresh_run(tmp_path)), *arguments]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "cache" / "corpora").exists()
