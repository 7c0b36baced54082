"""The token cache: right, whole or absent, noticed when stale, the same from any number of builders."""

import dataclasses
import json
import multiprocessing
import os

import numpy as np
import pytest

from t5x_like.core.errors import UserError
from t5x_like.input_pipeline import prepare as module
from t5x_like.input_pipeline.config import Bytes, Corpus, JsonLines, SentencePiece, TextFiles
from t5x_like.input_pipeline.prepare import open_cache, prepare
from t5x_like.input_pipeline.splits import documents_of_split
from t5x_like.input_pipeline.tokenizers import ByteTokenizer, load_tokenizer


def byte_corpus(folder, heldout=0.2, name="bytes") -> Corpus:
    return Corpus(name, TextFiles((str(folder),)), Bytes(), "none", "made up", heldout)


def test_documents_come_back_and_each_is_on_one_side(corpus, cache, texts):
    seen = []
    made = prepare(corpus, cache, seen.append)
    tokenizer = load_tokenizer(corpus, cache)
    assert made.tokenizer_fingerprint == tokenizer.fingerprint
    train, heldout = made.split("train"), made.split("heldout")
    decoded = [tokenizer.decode(split.document(i).tolist()) for split in (train, heldout) for i in range(len(split))]
    assert sorted(decoded) == sorted(texts)
    assert 1 <= len(heldout) < 12 < len(train)
    assert train.lengths.sum() == len(train.tokens) == made.manifest["splits"]["train"]["tokens"]
    assert train.tokens.dtype == np.uint16
    assert seen[-1].documents == len(texts) and seen[-1].tokens == len(train.tokens) + len(heldout.tokens)
    counted = len(seen)
    again = prepare(corpus, cache, seen.append)
    assert again.path == made.path and len(seen) == counted, "nothing is tokenized the second time"
    with pytest.raises(UserError, match="'test'"):
        made.split("test")  # pyright: ignore[reportArgumentType]


def test_the_split_follows_the_text_alone(texts):
    held = set(documents_of_split(lambda: texts, 0.2, "heldout"))
    backwards = texts[::-1] + ["one more document"]
    assert held == set(documents_of_split(lambda: backwards, 0.2, "heldout")) - {"one more document"}
    assert not set(documents_of_split(lambda: texts, 0.0, "heldout"))
    many = [f"document {number}" for number in range(5000)]
    share = sum(1 for _ in documents_of_split(lambda: many, 0.1, "heldout")) / 5000
    assert abs(share - 0.1) < 3 * np.sqrt(0.1 * 0.9 / 5000)


@pytest.mark.parametrize("heldout", [1e-9, 0.999999])
def test_neither_side_is_empty(heldout):
    few = ["a", "b", "c"]
    sides = [list(documents_of_split(lambda: few, heldout, name)) for name in ("train", "heldout")]
    assert all(sides) and sorted(sides[0] + sides[1]) == few


def test_one_document_is_split_by_its_tail():
    text = "word " * 100
    head, tail = ("".join(documents_of_split(lambda: [text], 0.1, name)) for name in ("train", "heldout"))
    assert head + tail == text and head.endswith("word") and tail.startswith(" word") and 40 < len(tail) <= 50


def test_wide_ids_for_wide_vocabularies(tmp_path, text_folder, monkeypatch):
    monkeypatch.setattr(ByteTokenizer, "vocab_size", 70_000)
    assert prepare(byte_corpus(text_folder), str(tmp_path)).split("train").tokens.dtype == np.uint32


def test_a_changed_file_tokenizer_or_option_is_noticed(tmp_path, texts):
    folder = tmp_path / "texts"
    folder.mkdir()
    for number, text in enumerate(texts):
        (folder / f"{number}.txt").write_text(text)
    cache = str(tmp_path / "cache")
    paths = [prepare(byte_corpus(folder), cache).path, prepare(byte_corpus(folder, 0.3), cache).path]
    other = dataclasses.replace(byte_corpus(folder), tokenizer=SentencePiece(400, "bpe"))
    paths.append(prepare(other, cache).path)
    (folder / "0.txt").write_text(texts[0] + " changed")
    paths.append(prepare(byte_corpus(folder), cache).path)
    assert len(set(paths)) == 4
    (folder / "0.txt").write_text(texts[0])
    assert prepare(byte_corpus(folder), cache).path == paths[0]


def test_the_fingerprint_does_not_depend_on_the_machine(tmp_path, text_folder):
    first, second = (prepare(byte_corpus(text_folder), str(tmp_path / name)) for name in "ab")
    assert first.path != second.path and first.fingerprint == second.fingerprint


def test_a_failure_while_preparing_leaves_nothing_behind(tmp_path, text_folder, monkeypatch):
    def fail(path, content):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_atomically", fail)
        with pytest.raises(UserError, match="No space left on device"):
            prepare(byte_corpus(text_folder), str(tmp_path))
    assert [path.suffix for path in (tmp_path / "corpora").iterdir()] == [".lock"]
    assert prepare(byte_corpus(text_folder), str(tmp_path)).split("train")


def test_a_half_written_folder_is_never_taken_for_a_cache(tmp_path, text_folder):
    """What kill -9 leaves: a temporary folder. It has another name, and the next call does not mind it."""
    made = prepare(byte_corpus(text_folder), str(tmp_path))
    left = made.path.with_name(f".{made.path.name}.killed")
    left.mkdir()
    (left / "train.tokens").write_bytes(b"half")
    assert prepare(byte_corpus(text_folder), str(tmp_path)).fingerprint == made.fingerprint
    os.remove(made.path / "manifest.json")
    for opening in (lambda: open_cache(made.path), lambda: prepare(byte_corpus(text_folder), str(tmp_path))):
        with pytest.raises(UserError, match="not a token cache"):
            opening()


def test_damage_is_found_when_opened(tmp_path, text_folder):
    made = prepare(byte_corpus(text_folder), str(tmp_path))
    tokens = made.path / "train.tokens"
    content = bytearray(tokens.read_bytes())
    content[7] ^= 1
    tokens.write_bytes(content)
    with pytest.raises(UserError, match="not as it was written"):
        prepare(byte_corpus(text_folder), str(tmp_path))
    tokens.write_bytes(content[:-1])
    with pytest.raises(UserError, match="not as it was written"):
        open_cache(made.path)
    tokens.unlink()
    with pytest.raises(UserError, match="missing"):
        open_cache(made.path)
    manifest = json.loads((made.path / "manifest.json").read_text())
    (made.path / "manifest.json").write_text(json.dumps(manifest | {"format": 0}))
    with pytest.raises(UserError, match="format 0"):
        open_cache(made.path)


def _prepare_in_a_process(folder, cache, without_locks, barrier, queue):
    if without_locks:
        import fcntl

        fcntl.flock = lambda *_: (_ for _ in ()).throw(OSError())  # a file system without locks
    barrier.wait()
    try:
        queue.put(prepare(byte_corpus(folder), cache).fingerprint)
    except BaseException as error:
        queue.put(repr(error))


@pytest.mark.parametrize("without_locks", [False, True])
def test_two_processes_at_once_are_both_right(tmp_path, text_folder, without_locks):
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(2), context.Queue()
    arguments = (text_folder, str(tmp_path), without_locks, barrier, queue)
    workers = [context.Process(target=_prepare_in_a_process, args=arguments) for _ in range(2)]
    for worker in workers:
        worker.start()
    results = [queue.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(timeout=60)
    assert results == [prepare(byte_corpus(text_folder), str(tmp_path)).fingerprint] * 2
    folders = [path for path in (tmp_path / "corpora").iterdir() if path.is_dir()]
    assert len(folders) == 1


def test_a_cache_folder_that_cannot_be_written_is_named(tmp_path, text_folder):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="data.cache"):
        prepare(byte_corpus(text_folder), str(tmp_path / "file"))


def test_an_error_in_the_middle_of_a_corpus_leaves_no_cache(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n{"text": "good too"}\n{"txt": "bad"}\n')
    corpus = Corpus("json", JsonLines((str(tmp_path / "a.jsonl"),)), Bytes(), "none", "made up")
    with pytest.raises(UserError, match="line 3"):
        prepare(corpus, str(tmp_path / "cache"))
    assert not [path for path in (tmp_path / "cache" / "corpora").iterdir() if path.is_dir()]


def test_an_empty_heldout_split_says_so(tmp_path, text_folder):
    with pytest.raises(UserError, match="the heldout split of bytes is empty"):
        prepare(byte_corpus(text_folder, 0.0), str(tmp_path)).split("heldout")
