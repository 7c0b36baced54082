"""The token cache: right, whole or absent, noticed when stale."""

import contextlib
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

from t5x_like.core.config import from_json, to_json
from t5x_like.core.errors import UserError
from t5x_like.input_pipeline import disk
from t5x_like.input_pipeline.config import (
    Bytes,
    Corpus,
    Filters,
    HuggingFaceDataset,
    JsonLines,
    PythonGenerator,
    SentencePiece,
    TextFiles,
)
from t5x_like.input_pipeline.disk import publish
from t5x_like.input_pipeline.prepare import parts
from t5x_like.input_pipeline.prepare import prepare as module
from t5x_like.input_pipeline.prepare.prepare import prepare
from t5x_like.input_pipeline.prepare.token_cache import TokenSplit, open_cache
from t5x_like.input_pipeline.prepare.vocabulary import tokenizer_config
from t5x_like.input_pipeline.sources import splits
from t5x_like.input_pipeline.sources.splits import documents_of_split
from t5x_like.input_pipeline.tokenizers.bytes import ByteTokenizer
from t5x_like.input_pipeline.tokenizers.tokenizer import open_tokenizer


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


def interrupted(corpus, cache, patch) -> None:
    """Prepares, killed when all parts are finished."""
    with patch.context() as here:
        here.setattr(module.CacheWriter, "splits", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            prepare(corpus, Bytes(), str(cache))


def test_a_part_of_other_content_is_not_kept_when_the_files_change_back(tmp_path, monkeypatch):
    """Branch one, branch other, branch one, with a kill in between: sizes and digest are the first ones again."""
    monkeypatch.setattr(parts, "_SMALLEST_PART", 1)
    (tmp_path / "texts").mkdir()
    contents = {"0.txt": "one here", "1.txt": "one there"}
    for name, content in contents.items():
        (tmp_path / "texts" / name).write_text(content)
        os.utime(tmp_path / "texts" / name, ns=(10**18, 10**18))
    corpus = byte_corpus(tmp_path / "texts", 0.0)
    read = TextFiles.read_unit

    def other_branch(source, unit):
        (tmp_path / "texts" / "1.txt").write_text("two there")  # when its stamp has been looked at
        yield from read(source, unit)

    with monkeypatch.context() as patch:
        patch.setattr(TextFiles, "read_unit", other_branch)
        with pytest.raises(UserError, match="changed while"):
            prepare(corpus, Bytes(), str(tmp_path / "cache"))
    (tmp_path / "texts" / "1.txt").write_text(contents["1.txt"])
    interrupted(corpus, tmp_path / "cache", monkeypatch)
    (work,) = (tmp_path / "cache" / "corpora").glob(".*.work")
    stamps = [json.loads(path.read_text())["identity"] for path in sorted(work.glob("[0-9]*/part.json"))]
    os.utime(tmp_path / "texts" / "1.txt", ns=(2 * 10**18, 2 * 10**18))
    interrupted(corpus, tmp_path / "cache", monkeypatch)
    again = [json.loads(path.read_text())["identity"] for path in sorted(work.glob("[0-9]*/part.json"))]
    assert again[0] == stamps[0] and again[1] != stamps[1], "the part whose file was written since is made again"
    assert texts_of(prepare(corpus, Bytes(), str(tmp_path / "cache"))) == list(contents.values())


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_part_whose_file_changes_is_never_finished(tmp_path, monkeypatch, moment):
    (tmp_path / "a.txt").write_text("one text")
    source = TextFiles((str(tmp_path / "a.txt"),))
    (part,) = parts.cut_into_parts(source.units())
    part = dataclasses.replace(part, stamp=parts.stamp_of(part.units, {f.address: f for f in source.files()}))
    work = parts.Work(source, Bytes(), ByteTokenizer().fingerprint, Filters(), False, str(tmp_path / "work"))
    (tmp_path / "work").mkdir()

    def change():
        (tmp_path / "a.txt").write_text("other on")
        os.utime(tmp_path / "a.txt", ns=(10**18, 10**18))

    encode = ByteTokenizer.encode_batch
    monkeypatch.setattr(ByteTokenizer, "encode_batch", lambda *given: (change(), encode(*given))[1])
    if moment == "before":
        change()
        monkeypatch.setattr(TextFiles, "read_unit", None)
    with pytest.raises(parts.SourceChanged, match="changed while"):
        parts.tokenize_part(work, part, ByteTokenizer(), lambda *_: None)
    assert not list((tmp_path / "work").iterdir())


@pytest.mark.parametrize("kind", ["remote", "folder"])
def test_files_that_are_no_local_ones_are_looked_at_too(tmp_path, kind, monkeypatch):
    """Addresses of fsspec, and a data set whose units are of a folder and not of one file."""
    if kind == "remote":
        fsspec = pytest.importorskip("fsspec")
        fsspec.filesystem("memory").pipe("/looked/a.txt", b"one text")
        source = TextFiles(("memory://looked",))
        change = lambda: fsspec.filesystem("memory").pipe("/looked/a.txt", b"other on")  # noqa: E731
    else:
        pytest.importorskip("datasets").Dataset.from_dict({"text": ["one text"]}).save_to_disk(str(tmp_path / "set"))
        source = HuggingFaceDataset(str(tmp_path / "set"))
        change = lambda: os.utime(next((tmp_path / "set").glob("*.arrow")), ns=(10**18, 10**18))  # noqa: E731
    corpus = Corpus("c", source, Bytes(), "none", "made up", 0.0)
    assert texts_of(prepare(corpus, Bytes(), str(tmp_path))) == ["one text"]
    encode = ByteTokenizer.encode_batch
    monkeypatch.setattr(ByteTokenizer, "encode_batch", lambda *given: (change(), encode(*given))[1])
    files = source.files()
    planned = module.cut_into_parts(source.units())
    monkeypatch.setattr(module, "cut_into_parts", lambda _: planned)
    before = iter([files, files, files])
    looked = type(source).files
    # The parts notice it by themselves.
    monkeypatch.setattr(type(source), "files", lambda self: next(before, None) or looked(self))
    with pytest.raises(parts.SourceChanged):
        prepare(dataclasses.replace(corpus, name="d"), Bytes(), str(tmp_path))


def test_a_number_written_without_its_point_is_the_same_corpus(tmp_path, text_folder):
    filters = Filters(max_mean_word_length=10)
    corpus = byte_corpus(text_folder, 0, filters=filters)
    through_json = from_json(Corpus, to_json(corpus))
    assert repr(through_json) == repr(corpus)
    assert prepare(corpus, Bytes(), str(tmp_path)).path == prepare(through_json, Bytes(), str(tmp_path)).path


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
        patch.setattr(sys.modules["t5x_like.input_pipeline.prepare.token_cache"], "FORMAT_VERSION", 1)
        old = prepare(byte_corpus(text_folder), Bytes(), str(tmp_path))
    new = prepare(byte_corpus(text_folder), Bytes(), str(tmp_path))
    assert new.path != old.path and new.manifest["format"] == 2


def test_files_that_are_left_out_are_told(tmp_path):
    text_folder = tmp_path / "texts"
    text_folder.mkdir()
    (text_folder / "notes.md").write_text("not read")
    (text_folder / "x-00000-of-00002.txt").write_text("half of it")
    seen = []
    made = prepare(byte_corpus(text_folder), Bytes(), str(tmp_path / "cache"), seen.append)
    shards, others, *_ = made.left_out()
    assert shards == f"1 of 2 shards {text_folder}/x-*-of-00002.txt, which are not there: 1"
    assert others.startswith("1 files of other names than *.txt") and others.endswith(f"{text_folder}/notes.md")
    assert shards in seen[0].note and others in seen[0].note


def test_what_a_kill_after_the_last_rename_leaves_is_removed(tmp_path, text_folder):
    made = prepare(byte_corpus(text_folder), Bytes(), str(tmp_path))
    work = made.path.with_name(f".{made.path.name}.work")
    work.mkdir()
    (work / "000000").mkdir()
    prepare(byte_corpus(text_folder), Bytes(), str(tmp_path))
    assert not work.exists()


def test_unfinished_work_of_other_states_is_told(tmp_path, text_folder):
    corpora, seen = tmp_path / "corpora", []
    for name in (".bytes-0123456789abcdef.work", ".bytes-other-0123456789abcdef.work", ".bytes-x.work"):
        (corpora / name).mkdir(parents=True)
    prepare(byte_corpus(text_folder), Bytes(), str(tmp_path), seen.append)
    assert seen[0].note.startswith("another state of it was begun and not finished")
    assert seen[0].note.endswith(str(corpora / ".bytes-0123456789abcdef.work")) and len(list(corpora.glob(".*"))) == 3


def test_only_what_is_left_behind_is_swept(tmp_path, text_folder, monkeypatch):
    """By a process of this host that has ended; never what another host, or a process that lives, may be writing."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    name = disk.temporary_name("000000")
    assert disk.is_left_behind(name) and str(os.getpid()) in name
    host = name.split("-")[1]
    swept = [f".000000-{host}-{ended.pid}-01234567", f".cache-{host}-{ended.pid}-01234567"]
    kept = [f".000000-{host}-{os.getppid()}-01234567", f".000000-elsewhere-{ended.pid}-01234567"]
    assert [disk.is_left_behind(name) for name in swept + kept] == [True, True, False, False]
    with monkeypatch.context() as patch:
        patch.setattr(disk.socket, "gethostname", lambda: "my-host.of.domain")
        assert disk.is_left_behind(disk.temporary_name("cache"))
    interrupted(byte_corpus(text_folder), tmp_path, monkeypatch)
    (work,) = (tmp_path / "corpora").glob(".*.work")
    for each in swept + kept:
        (work / each).mkdir()
    interrupted(byte_corpus(text_folder), tmp_path, monkeypatch)
    left = {path.name for path in work.glob(".*")}
    assert left.issuperset(kept) and not left.intersection(swept)


@pytest.mark.parametrize("alone", [True, False])
def test_an_error_removes_the_work_folder_only_where_nobody_else_is_in_it(tmp_path, text_folder, alone, monkeypatch):
    monkeypatch.setattr(module, "held_lock", lambda *_: contextlib.nullcontext(alone))
    monkeypatch.setattr(ByteTokenizer, "vocab_size", 100)
    (tmp_path / "corpora").mkdir()
    with pytest.raises(RuntimeError, match="of 100"):
        prepare(byte_corpus(text_folder), Bytes(), str(tmp_path))
    assert bool(list((tmp_path / "corpora").glob(".*.work"))) == (not alone)


def test_a_damaged_part_is_tokenized_again(tmp_path, text_folder, monkeypatch):
    whole = prepare(byte_corpus(text_folder), Bytes(), str(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        patch.setattr(module.CacheWriter, "splits", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            prepare(byte_corpus(text_folder), Bytes(), str(tmp_path / "cache"))
    (part,) = (tmp_path / "cache" / "corpora").glob(".*.work/*/tokens")
    content = bytearray(part.read_bytes())
    content[5] ^= 1
    part.write_bytes(content)
    seen = []
    made = prepare(byte_corpus(text_folder), Bytes(), str(tmp_path / "cache"), seen.append)
    assert made.fingerprint == whole.fingerprint and not seen[-1].resumed


def test_a_finished_part_is_not_tokenized_again(tmp_path, text_folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(module.CacheWriter, "splits", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
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
            patch.setattr(module.CacheWriter, "splits", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
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


def test_documents_of_which_the_tokenizer_leaves_nothing_are_empty(tmp_path, monkeypatch):
    encode = ByteTokenizer.encode

    def normalized(self, texts, threads=0):
        return [np.asarray(encode(self, text.replace("\u200b", "")), np.int32) for text in texts]

    monkeypatch.setattr(ByteTokenizer, "encode_batch", normalized)
    made = prepare(lines_corpus(tmp_path / "a.jsonl", ["a", "\u200b", " ", "b"]), Bytes(), str(tmp_path))
    assert texts_of(made) == ["a", "b"] and made.left_out() == ["2 empty"]
    assert made.manifest["counts"]["text_bytes"] == 2 and made.split("train").lengths.tolist() == [1, 1]
    with pytest.raises(UserError, match="no documents"):
        prepare(lines_corpus(tmp_path / "a.jsonl", ["\u200b"]), Bytes(), str(tmp_path))


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


def test_one_document_that_cannot_be_divided_says_so(tmp_path):
    made = prepare(lines_corpus(tmp_path / "a.jsonl", ["oneword"], 0.1), Bytes(), str(tmp_path))
    with pytest.raises(UserError, match=r"one document, with no white space in its last 0.1") as caught:
        made.split("heldout")
    assert caught.value.suggestion == "data.corpus.heldout=0"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_a_line_of_100_megabytes_takes_bounded_memory(tmp_path, corpus, cache, texts, kind):
    config = Bytes() if kind == "bytes" else tokenizer_config(corpus, cache)
    text = "\n".join(texts).encode()
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": (text * (10**8 // len(text) + 1)).decode()}) + "\n")
    script = (
        "import pathlib, re, resource, sys\n"
        "from t5x_like.core.config import from_json\n"
        "from t5x_like.input_pipeline.config import Corpus\n"
        "from t5x_like.input_pipeline.prepare.prepare import prepare\n"
        "corpus = from_json(Corpus, sys.argv[1])\n"
        "made = prepare(corpus, corpus.tokenizer, sys.argv[2])\n"
        "print(made.manifest['counts']['text_bytes'], len(made.split('train').tokens))\n"
        # ru_maxrss of a started process counts the one that started it, here pytest after many tests; VmHWM does not.
        "status = pathlib.Path('/proc/self/status')\n"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(re.search(r'VmHWM:\\s+(\\d+)', status.read_text())[1] if status.exists() else peak)\n"
    )
    long = Corpus("long", JsonLines((str(tmp_path / "a.jsonl"),)), config, "none", "made up", 0.0)
    command = [sys.executable, "-c", script, to_json(long), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    size, tokens, kilobytes = map(int, done.stdout.split())
    assert size > 10**8 and 10**7 < tokens <= size and kilobytes < 1.5e6


def test_documents_of_a_function(tmp_path, monkeypatch):
    script = tmp_path / "corpus.py"
    script.write_text("def documents():\n    for i in range(100):\n        yield f'document {i}'\n")
    from t5x_like.core.loading import mark

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


@pytest.mark.parametrize("change", ["order", "other", "fewer", "more"])
def test_a_function_that_yields_something_else_when_gone_on_with(tmp_path, monkeypatch, change):
    (tmp_path / "list.json").write_text(json.dumps(first := [f"document {i}" for i in range(38)]))
    script = tmp_path / "corpus.py"
    script.write_text(
        "import json, pathlib\n"
        "def documents():\n    yield from json.loads(pathlib.Path(__file__).with_name('list.json').read_text())\n"
    )
    from t5x_like.core.loading import mark

    mark(script)
    corpus = Corpus("generated", PythonGenerator(str(script)), Bytes(), "none", "made up", 0.0)
    monkeypatch.setattr(module, "_GENERATED_PART_CHARACTERS", 100)
    interrupted(corpus, tmp_path / "cache", monkeypatch)
    others = {"order": first[::-1], "other": [*first[:5], "document x", *first[6:]], "fewer": first[:35],
              "more": [*first[:36], "new", *first[36:]]}  # fmt: skip
    (tmp_path / "list.json").write_text(json.dumps(others[change]))
    with pytest.raises(UserError, match="other documents") as caught:
        prepare(corpus, Bytes(), str(tmp_path / "cache"))
    assert "in the same order" in caught.value.allowed
    assert texts_of(prepare(corpus, Bytes(), str(tmp_path / "cache"))) == others[change], "it begins anew"


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
        "import sys; import t5x_like.input_pipeline.processes, t5x_like.input_pipeline.prepare.beam\n"
        "heavy = {'jax', 'flax', 'grain', 'rich', 'tensorflow', 'sentencepiece', 'pyarrow', 'apache_beam'}\n"
        "sys.exit(repr(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == ""
