"""A token cache at an address: made once by several machines, copied once to each, verified."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from buckets import storage
from tiny_runs import ROOT, text_folder

from t5x_like.core.errors import UserError
from t5x_like.core.storage import place
from t5x_like.input_pipeline.config import Bytes, Corpus, SentencePiece, TextFiles
from t5x_like.input_pipeline.prepare import published
from t5x_like.input_pipeline.prepare.prepare import prepare
from t5x_like.input_pipeline.prepare.vocabulary import load_tokenizer

PROGRAM = """
import json, os, sys, time
from t5x_like.core.storage import _Bucket
from t5x_like.input_pipeline.config import Bytes, Corpus, TextFiles
from t5x_like.input_pipeline.prepare import parts
from t5x_like.input_pipeline.prepare.prepare import prepare
read, tokenize, count = _Bucket.read, parts.tokenize_part, {"read": 0, "made": 0}
def reading(self, name):
    count["read"] += name.endswith("/000000")
    return read(self, name)
def making(*arguments, **more):
    count["made"] += 1
    time.sleep(0.5)
    return tokenize(*arguments, **more)
_Bucket.read, parts.tokenize_part = reading, making
corpus = Corpus("tiny", TextFiles((sys.argv[1],)), Bytes(), "none", "made up", heldout=0.2)
cache = prepare(corpus, Bytes(), sys.argv[2])
print(json.dumps({"fingerprint": cache.fingerprint, **count, "tokens": int(cache.split("train").tokens.sum())}))
"""


def corpus(tokenizer=None) -> Corpus:
    source = TextFiles((str(text_folder()),))
    return Corpus("tiny", source, tokenizer or Bytes(), "none", "made up", heldout=0.2)


@pytest.fixture(params=["gs", "s3"])
def bucket(request, tmp_path, monkeypatch):
    with storage(request.param, f"cache{os.getpid()}{tmp_path.name}", tmp_path) as (where, environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("T5X_LIKE_CACHE", str(tmp_path / "here"))
        yield where


def test_of_four_processes_on_two_machines_one_makes_it_and_one_of_each_other_copies_it(bucket, tmp_path):
    alone = prepare(corpus(), Bytes(), str(tmp_path / "alone"))
    started = [
        subprocess.Popen([sys.executable, "-c", PROGRAM, str(text_folder()), bucket], stdout=subprocess.PIPE, text=True,
                         cwd=ROOT, env=os.environ | {"T5X_LIKE_CACHE": str(tmp_path / f"machine{n % 2}")})
        for n in range(4)
    ]  # fmt: skip
    found = [json.loads(each.communicate(timeout=60)[0].splitlines()[-1]) for each in started]
    assert {each["fingerprint"] for each in found} == {alone.fingerprint}
    assert {each["tokens"] for each in found} == {int(alone.split("train").tokens.sum())}
    assert sum(each["made"] > 0 for each in found) == 1 and sum(each["read"] > 0 for each in found) == 1
    left = place(bucket).files()
    assert len([name for name in left if name.endswith("manifest.json")]) == 1
    assert not [name for name in left if ".making" in name]


def test_pieces_are_joined_and_a_damaged_one_is_told(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(published, "PIECE", 100)
    made = prepare(corpus(), Bytes(), bucket)
    there = place(bucket).at(f"corpora/{made.path.name}")
    assert len(there.files("train.tokens")) == -(-(made.path / "train.tokens").stat().st_size // 100) > 20
    monkeypatch.setenv("T5X_LIKE_CACHE", str(tmp_path / "other"))
    copy = prepare(corpus(), Bytes(), bucket)
    assert copy.path != made.path
    for name in ("train.tokens", "heldout.offsets", "manifest.json"):
        assert (copy.path / name).read_bytes() == (made.path / name).read_bytes()
    monkeypatch.setenv("T5X_LIKE_CACHE", str(tmp_path / "third"))
    there.write("train.tokens/000003", bytes([there.read("train.tokens/000003")[0] ^ 1]) + bytes(99))
    with pytest.raises(UserError, match=f"{there}/train.tokens: .* not as it was written"):
        prepare(corpus(), Bytes(), bucket)
    there.remove("train.tokens/000003")
    with pytest.raises(UserError, match=r"data.cache: there is no .*train.tokens/000003"):
        prepare(corpus(), Bytes(), bucket)
    assert not any(Path(tmp_path / "third").rglob("train.tokens"))


def test_what_was_sent_in_part_is_made_again(bucket, tmp_path, monkeypatch):
    made = prepare(corpus(), Bytes(), bucket)
    there = place(bucket).at(f"corpora/{made.path.name}")
    whole = there.files()
    there.remove("manifest.json")  # as if the process had been killed before it was sent
    there.remove("train.tokens/000000")
    monkeypatch.setenv("T5X_LIKE_CACHE", str(tmp_path / "other"))
    assert prepare(corpus(), Bytes(), bucket).fingerprint == made.fingerprint and there.files() == whole


def test_a_trained_tokenizer_is_trained_once(bucket, tmp_path, monkeypatch):
    said = []
    wanted = corpus(SentencePiece(300, "bpe", sentinels=2))
    first = load_tokenizer(wanted, bucket, said.append)
    assert any("trained in" in line for line in said)
    monkeypatch.setenv("T5X_LIKE_CACHE", str(tmp_path / "other"))
    said.clear()
    assert load_tokenizer(wanted, bucket, said.append).fingerprint == first.fingerprint and not said
