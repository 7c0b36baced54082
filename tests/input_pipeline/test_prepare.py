"""The token cache: right, whole or absent, noticed when stale."""

import dataclasses
import gzip
import hashlib
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from t5x_like.core.errors import UserError
from t5x_like.input_pipeline import parts, splits
from t5x_like.input_pipeline import prepare as module
from t5x_like.input_pipeline.config import Bytes, Corpus, Filters, JsonLines, PythonGenerator, SentencePiece, TextFiles
from t5x_like.input_pipeline.disk import publish
from t5x_like.input_pipeline.prepare import prepare
from t5x_like.input_pipeline.splits import documents_of_split
from t5x_like.input_pipeline.token_cache import TokenSplit, open_cache
from t5x_like.input_pipeline.tokenizers import ByteTokenizer, open_tokenizer, tokenizer_config


def byte_corpus(folder, heldout=0.2, name="bytes", **options) -> Corpus:
    return Corpus(name, TextFiles((str(folder),)), Bytes(), "none", "made up", heldout, **options)


def lines_corpus(path, texts, heldout=0.0, **options) -> Corpus:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return Corpus("lines", JsonLines((str(path),)), Bytes(), "none", "made up", heldout, **options)


def texts_of(cache, *names) -> list[str]:
    decode = ByteTokenizer().decode
    splits = [cache.split(name) for name in names or ("train",)]
    return [decode(split.document(i).tolist()) for split in splits for i in range(len(split))]


def test_documents_come_back_and_each_is_on_one_side(corpus, cache, texts):
    seen = []
    config = tokenizer_config(corpus, cache)
    made = prepare(corpus, config, cache, seen.append)
    tokenizer = open_tokenizer(config)
    assert made.tokenizer_fingerprint == tokenizer.fingerprint
    train, heldout = made.split("train"), made.split("heldout")
    decoded = [tokenizer.decode(split.document(i).tolist()) for split in (train, heldout) for i in range(len(split))]
    assert sorted(decoded) == sorted(texts)
    assert 1 <= len(heldout) < 12 < len(train)
    assert train.lengths.sum() == len(train.tokens) == made.manifest["splits"]["train"]["tokens"]
    assert train.tokens.dtype == np.uint16 and train.offsets.dtype == np.int64
    assert not train.tokens.flags.writeable and not train.offsets.flags.writeable
    assert seen[-1].documents == len(texts) and seen[-1].tokens == len(train.tokens) + len(heldout.tokens)
    assert seen[-1].done == seen[-1].total == made.manifest["counts"]["text_bytes"] == sum(map(len, texts))
    counted = len(seen)
    again = prepare(corpus, config, cache, seen.append)
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


@pytest.mark.parametrize("heldout", [1e-9, 0.2, 0.999999])
@pytest.mark.parametrize("few", [["a", "b", "c"], ["a", "a", "b"], ["a", "a"]])
@pytest.mark.parametrize("memory", [10**6, 1])
def test_neither_side_is_empty_and_the_cache_agrees(tmp_path, heldout, few, memory, monkeypatch):
    monkeypatch.setattr(splits, "_MOST_CHARACTERS", memory)  # with 1 the documents are read twice
    sides = [list(documents_of_split(lambda: few, heldout, name)) for name in ("train", "heldout")]
    assert all(sides) and sorted(sides[0] + sides[1]) == few
    assert len(set(few)) == 1 or not set(sides[0]) & set(sides[1]), "copies lie on one side"
    made = prepare(lines_corpus(tmp_path / "a.jsonl", few, heldout), Bytes(), str(tmp_path))
    assert [texts_of(made, name) for name in ("train", "heldout")] == sides


def test_documents_of_a_split_are_read_once():
    reads = []
    many = [f"document {number}" for number in range(500)]

    def read():
        reads.append(1)
        yield from many

    found = [list(documents_of_split(read, 0.1, name)) for name in ("train", "heldout")]
    assert len(reads) == 2 and sorted(found[0] + found[1]) == sorted(many) and 20 < len(found[1]) < 80


@pytest.mark.parametrize("copies", [1, 3])
def test_one_document_is_split_by_its_tail(tmp_path, copies):
    text = "word " * 100
    head, tail = ("".join(documents_of_split(lambda: [text], 0.1, name)) for name in ("train", "heldout"))
    assert head + tail == text and head.endswith("word") and tail.startswith(" word") and 40 < len(tail) <= 50
    corpus = lines_corpus(tmp_path / "a.jsonl", [text] * copies, 0.1, deduplicate=copies > 1)
    made = prepare(corpus, Bytes(), str(tmp_path))
    assert texts_of(made, "train", "heldout") == [head, tail]
    whole = prepare(lines_corpus(tmp_path / "a.jsonl", ["oneword" * 9], 0.1), Bytes(), str(tmp_path))
    assert texts_of(whole) == ["oneword" * 9] and not whole.manifest["splits"]["heldout"]["documents"]


def test_wide_ids_for_wide_vocabularies(tmp_path, text_folder, monkeypatch):
    monkeypatch.setattr(ByteTokenizer, "vocab_size", 70_000)
    assert prepare(byte_corpus(text_folder), Bytes(), str(tmp_path)).split("train").tokens.dtype == np.uint32


def test_ids_beyond_the_vocabulary_are_never_stored(tmp_path, text_folder, monkeypatch):
    monkeypatch.setattr(ByteTokenizer, "vocab_size", 100)
    with pytest.raises(RuntimeError, match="of 100"):
        prepare(byte_corpus(text_folder), Bytes(), str(tmp_path))
    assert [path.suffix for path in (tmp_path / "corpora").iterdir()] == [".lock"]


def test_a_changed_file_tokenizer_or_option_is_noticed(tmp_path, texts, corpus, cache):
    folder = tmp_path / "texts"
    folder.mkdir()
    for number, text in enumerate(texts):
        (folder / f"{number}.txt").write_text(text)
    made = []

    def path_of(corpus, tokenizer=Bytes()):  # noqa: B008, frozen
        made.append(prepare(corpus, tokenizer, str(tmp_path / "cache")).path)

    path_of(byte_corpus(folder))
    path_of(byte_corpus(folder, 0.3))
    path_of(byte_corpus(folder, deduplicate=True))
    path_of(byte_corpus(folder, filters=Filters(min_characters=3)))
    path_of(byte_corpus(folder, bad_documents="skip"))
    path_of(byte_corpus(folder), tokenizer_config(corpus, cache))
    other = dataclasses.replace(corpus, tokenizer=SentencePiece(400, "bpe"))
    path_of(byte_corpus(folder), tokenizer_config(other, cache))
    (folder / "0.txt").write_text(texts[0] + " changed")
    path_of(byte_corpus(folder))
    (folder / "new.txt").write_text("one more")
    path_of(byte_corpus(folder))
    assert len(set(made)) == len(made)
    (folder / "0.txt").write_text(texts[0])
    (folder / "new.txt").unlink()
    path_of(byte_corpus(folder))
    assert made[-1] == made[0]


def test_a_file_that_changes_while_it_is_read_makes_no_cache(tmp_path, texts):
    (tmp_path / "texts").mkdir()
    for number, text in enumerate(texts):
        (tmp_path / "texts" / f"{number}.txt").write_text(text)

    def change(progress):
        (tmp_path / "texts" / "0.txt").write_text("something else")

    corpus = byte_corpus(tmp_path / "texts")
    with pytest.raises(UserError, match="changed while"):
        prepare(corpus, Bytes(), str(tmp_path / "cache"), change)
    assert not [path for path in (tmp_path / "cache" / "corpora").iterdir() if path.is_dir()]
    assert "something else" in texts_of(prepare(corpus, Bytes(), str(tmp_path / "cache")), "train", "heldout")


def test_the_fingerprint_does_not_depend_on_the_machine(tmp_path, text_folder):
    first, second = (prepare(byte_corpus(text_folder), Bytes(), str(tmp_path / name)) for name in "ab")
    assert first.path != second.path and first.fingerprint == second.fingerprint


def test_a_half_written_folder_is_never_taken_for_a_cache(tmp_path, text_folder):
    made = prepare(byte_corpus(text_folder), Bytes(), str(tmp_path))
    assert sorted(path.name for path in made.path.parent.iterdir()) == [made.path.name, f"{made.path.name}.lock"]
    os.remove(made.path / "manifest.json")
    for opening in (lambda: open_cache(made.path), lambda: prepare(byte_corpus(text_folder), Bytes(), str(tmp_path))):
        with pytest.raises(UserError, match="not a token cache"):
            opening()


def test_damage_is_found_when_opened(tmp_path, text_folder):
    made = prepare(byte_corpus(text_folder), Bytes(), str(tmp_path))
    tokens = made.path / "train.tokens"
    content = bytearray(tokens.read_bytes())
    content[7] ^= 1
    tokens.write_bytes(content)
    with pytest.raises(UserError, match="not as it was written"):
        prepare(byte_corpus(text_folder), Bytes(), str(tmp_path))
    tokens.write_bytes(content[:-1])
    with pytest.raises(UserError, match="not as it was written"):
        open_cache(made.path)
    tokens.unlink()
    with pytest.raises(UserError, match="missing"):
        open_cache(made.path)
    manifest = json.loads((made.path / "manifest.json").read_text())
    (made.path / "manifest.json").write_text(json.dumps(manifest | {"format": 1}))
    with pytest.raises(UserError, match="format 1"):
        open_cache(made.path)


def test_a_cache_of_an_older_format_is_made_anew(tmp_path, text_folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(module, "FORMAT_VERSION", 1)
        patch.setattr(sys.modules["t5x_like.input_pipeline.token_cache"], "FORMAT_VERSION", 1)
        old = prepare(byte_corpus(text_folder), Bytes(), str(tmp_path))
    new = prepare(byte_corpus(text_folder), Bytes(), str(tmp_path))
    assert new.path != old.path and new.manifest["format"] == 2


def test_a_damaged_part_is_tokenized_again(tmp_path, text_folder, monkeypatch):
    whole = prepare(byte_corpus(text_folder), Bytes(), str(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        patch.setattr(module, "publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            prepare(byte_corpus(text_folder), Bytes(), str(tmp_path / "cache"))
    (part,) = (tmp_path / "cache" / "corpora").glob(".*.work/*.tokens")
    content = bytearray(part.read_bytes())
    content[5] ^= 1
    part.write_bytes(content)
    seen = []
    made = prepare(byte_corpus(text_folder), Bytes(), str(tmp_path / "cache"), seen.append)
    assert made.fingerprint == whole.fingerprint and not seen[-1].resumed


def test_a_finished_part_is_not_tokenized_again(tmp_path, text_folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(module, "publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            prepare(byte_corpus(text_folder), Bytes(), str(tmp_path))
    monkeypatch.setattr(ByteTokenizer, "encode_batch", None)
    seen = []
    made = prepare(byte_corpus(text_folder), Bytes(), str(tmp_path), seen.append)
    assert made.split("train") and seen[-1].resumed == seen[-1].total > 0
    assert not list(made.path.parent.glob(".*"))


def test_parts_with_other_borders_are_not_taken(tmp_path, text_folder, monkeypatch):
    """What a kill and an update of this library in between would do."""
    whole = prepare(byte_corpus(text_folder), Bytes(), str(tmp_path / "whole"))
    for size in (1, 3000):
        with monkeypatch.context() as patch:
            patch.setattr(parts, "_SMALLEST_PART", size)
            patch.setattr(module, "publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
            with pytest.raises(KeyboardInterrupt):
                prepare(byte_corpus(text_folder), Bytes(), str(tmp_path / "cache"))
    assert prepare(byte_corpus(text_folder), Bytes(), str(tmp_path / "cache")).fingerprint == whole.fingerprint


def test_a_cache_folder_that_cannot_be_written_is_named(tmp_path, text_folder):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="data.cache"):
        prepare(byte_corpus(text_folder), Bytes(), str(tmp_path / "file"))


def test_a_document_that_cannot_be_read_is_an_error_or_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "good"}\n{"txt": 1}\n{"text": " "}\n{"txt": 2}\n\xff\xfe\n{"text": "good too"}\n')
    corpus = Corpus("json", JsonLines((str(path),)), Bytes(), "none", "made up", 0.0)
    with pytest.raises(UserError, match="line 2"):
        prepare(corpus, Bytes(), str(tmp_path / "cache"))
    assert not [each for each in (tmp_path / "cache" / "corpora").iterdir() if each.is_dir()]
    made = prepare(dataclasses.replace(corpus, bad_documents="skip"), Bytes(), str(tmp_path / "cache"))
    assert texts_of(made) == ["good", "good too"]
    assert [bad["count"] for bad in made.manifest["counts"]["bad"].values()] == [2, 1]
    told = made.left_out()
    assert told[0] == "1 empty" and told[1].startswith("2 that could not be read: no field 'text'")
    assert "line 2" in told[1] and "UTF-8" in told[2]


def test_a_truncated_file_is_an_error_or_counted(tmp_path):
    lines = b"".join(json.dumps({"text": f"document {number}"}).encode() + b"\n" for number in range(5000))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines)[:-2000])
    corpus = Corpus("gz", JsonLines((str(tmp_path / "a.jsonl.gz"),)), Bytes(), "none", "made up", 0.0)
    with pytest.raises(UserError, match="gz"):
        prepare(corpus, Bytes(), str(tmp_path))
    made = prepare(dataclasses.replace(corpus, bad_documents="skip"), Bytes(), str(tmp_path))
    texts = texts_of(made)
    assert 10 < len(texts) < 5000 and texts == [f"document {number}" for number in range(len(texts))]
    assert [bad["count"] for bad in made.manifest["counts"]["bad"].values()] == [1]


def test_kinds_of_bad_documents_are_bounded():
    total = parts.Counts()
    for part in range(3):
        counts = parts.Counts()
        for number in range(50):
            counts.add_bad(UserError("file", f"wrong in {'x' * number}y at byte {part}"))
        total.add(counts)
    assert len(total.bad) == 21 and sum(bad["count"] for bad in total.bad.values()) == 150
    assert total.bad["wrong in y at byte N"] == {"count": 3, "first": "file: wrong in y at byte 0"}


def test_a_corpus_of_nothing_is_an_error(tmp_path):
    corpus = lines_corpus(tmp_path / "a.jsonl", [" ", "", "\n"])
    with pytest.raises(UserError, match="no documents"):
        prepare(corpus, Bytes(), str(tmp_path))
    dropped = lines_corpus(tmp_path / "a.jsonl", ["short"], filters=Filters(min_characters=9))
    with pytest.raises(UserError, match="1 dropped by data.corpus.filters"):
        prepare(dropped, Bytes(), str(tmp_path))


def test_empty_documents_are_counted(tmp_path):
    made = prepare(lines_corpus(tmp_path / "a.jsonl", ["a", " ", "", "b"]), Bytes(), str(tmp_path))
    assert texts_of(made) == ["a", "b"] and made.left_out() == ["2 empty"]


def test_filters_drop_and_count(tmp_path):
    corpus = lines_corpus(tmp_path / "a.jsonl", ["a b", "abc" * 20, "12345 678", "a"], filters=Filters(2, 30, 0.5))
    made = prepare(corpus, Bytes(), str(tmp_path))
    assert texts_of(made) == ["a b"]
    assert made.manifest["counts"]["dropped"] == {"max_characters": 1, "min_letters": 1, "min_characters": 1}
    assert "1 dropped by min_letters" in made.left_out()


def test_copies_are_dropped_and_counted(tmp_path):
    texts = ["one", "two", "one", "three", "two", "one"]
    made = prepare(lines_corpus(tmp_path / "a.jsonl", texts, deduplicate=True), Bytes(), str(tmp_path))
    assert texts_of(made) == ["one", "two", "three"]
    assert made.left_out() == ["3 copies of an earlier document"]
    kept = prepare(lines_corpus(tmp_path / "a.jsonl", texts), Bytes(), str(tmp_path))
    assert texts_of(kept) == texts and kept.left_out() == []


def test_a_line_of_20_megabytes(tmp_path):
    long = "0123456789abcdef" * (20 * 2**20 // 16)
    made = prepare(lines_corpus(tmp_path / "a.jsonl", ["before", long, "after"]), Bytes(), str(tmp_path))
    split = made.split("train")
    assert split.lengths.tolist() == [6, len(long), 5]
    ids = np.frombuffer(long.encode(), np.uint8).astype(np.uint16) + 3
    assert np.array_equal(split.document(1), ids)


def test_an_empty_heldout_split_says_so(tmp_path, text_folder):
    with pytest.raises(UserError, match="the heldout split of bytes is empty"):
        prepare(byte_corpus(text_folder, 0.0), Bytes(), str(tmp_path)).split("heldout")


def test_documents_of_a_function(tmp_path, monkeypatch):
    script = tmp_path / "corpus.py"
    script.write_text("def documents():\n    for i in range(100):\n        yield f'document {i}'\n")
    from t5x_like.input_pipeline.recipes import mark

    mark(script)
    corpus = Corpus("generated", PythonGenerator(str(script)), Bytes(), "none", "made up", 0.0)
    whole = prepare(corpus, Bytes(), str(tmp_path / "whole"))
    assert texts_of(whole) == [f"document {i}" for i in range(100)]
    monkeypatch.setattr(module, "_GENERATED_PART_CHARACTERS", 100)  # ten documents to a part
    encode, calls = ByteTokenizer.encode_batch, []

    def fail(self, texts, threads=0):
        calls.append(texts)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return encode(self, texts, threads)

    monkeypatch.setattr(ByteTokenizer, "encode_batch", fail)
    with pytest.raises(KeyboardInterrupt):
        prepare(corpus, Bytes(), str(tmp_path / "cache"), processes=3)
    made = prepare(corpus, Bytes(), str(tmp_path / "cache"), processes=3)
    assert made.fingerprint == whole.fingerprint
    assert len(calls) == 11, "the three parts that were finished are not tokenized again"


def test_splits_pickle_as_their_place(tmp_path, text_folder):
    split = prepare(byte_corpus(text_folder), Bytes(), str(tmp_path)).split("train")
    pickled = pickle.dumps(split)
    assert len(pickled) < 500 < split.tokens.nbytes
    again = pickle.loads(pickled)
    assert np.array_equal(again.tokens, split.tokens) and np.array_equal(again.offsets, split.offsets)
    alone = TokenSplit("train", np.arange(5, dtype=np.uint16), np.array([0, 2, 5]))
    assert pickle.loads(pickle.dumps(alone)).document(1).tolist() == [2, 3, 4]
    (tmp_path / "corpora").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="not a token cache"):
        pickle.loads(pickled)


def test_publish_never_replaces_what_is_there(tmp_path):
    for name in ("mine", "theirs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(name)
    assert not publish(tmp_path / "mine", tmp_path / "theirs")
    assert (tmp_path / "theirs" / "manifest.json").read_text() == "theirs" and (tmp_path / "mine").is_dir()
    assert publish(tmp_path / "mine", tmp_path / "new")
    with pytest.raises(OSError):
        publish(tmp_path / "theirs", tmp_path / "nowhere" / "new")


def test_the_hash_of_a_text_is_its_sha256():
    text = "the same on every machine: \u00e9"
    assert splits.text_hash(text.encode()) == hashlib.sha256(text.encode()).digest()[:16]
    assert splits.hashed_share(text) == int(hashlib.sha256(text.encode()).hexdigest()[:12], 16) / 2**48


def test_preparing_imports_no_accelerator():
    code = (
        "import sys; import t5x_like.input_pipeline.prepare_worker, t5x_like.input_pipeline.beam\n"
        "heavy = {'jax', 'flax', 'grain', 'rich', 'tensorflow', 'sentencepiece', 'pyarrow', 'apache_beam'}\n"
        "sys.exit(repr(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == ""
