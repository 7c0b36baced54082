"""Files are found, unpacked and told apart, on disk and through fsspec."""

import bz2
import gzip
import io
import lzma
import os
import sys

import pytest

from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.config import Csv, JsonLines, TextFiles
from t5x_like.input_pipeline.sources.files import BrokenFile, folder_files, list_files, open_file

LINES = "".join(f"line {number} of a text é\n" for number in range(40_000))


@pytest.fixture
def memory():
    """fsspec's file system in memory, empty."""
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()


def test_a_folder_is_walked_in_the_order_of_its_paths(tmp_path):
    for name in ("b/x.txt", "a.d/x.txt", "a/y.txt", "a/x.txt", "a/x.md", "A.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    found = [file.address.removeprefix(f"{tmp_path}/") for file in list_files((str(tmp_path),), ("*.txt",))]
    assert found == ["A.txt", "a/x.txt", "a/y.txt", "a.d/x.txt", "b/x.txt"], "folder by folder, as pathlib sorts"
    twice = list_files((str(tmp_path / "a"), str(tmp_path), f"{tmp_path}/a/*"), ("*.txt",))
    assert len(twice) == 6, "each once; a glob takes what it matches"


def test_each_small_file_costs_one_system_call(tmp_path, monkeypatch):
    for number in range(300):
        (tmp_path / f"{number}.txt").write_text("x")
    calls = []
    monkeypatch.setattr(
        "os.stat", lambda path, *rest, stat=os.stat, **named: calls.append(path) or stat(path, *rest, **named)
    )
    assert len(TextFiles((str(tmp_path),)).units()) == 300
    assert len(calls) < 10, "files of a folder are asked about through its listing"


def test_a_folder_that_may_not_be_listed_is_said(tmp_path, monkeypatch):
    def refuse(folder):
        raise PermissionError(13, "Permission denied", folder)

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(UserError, match="cannot be read: Permission denied"):
        TextFiles((str(tmp_path),)).units()


def test_folders_and_globs_agree_on_hidden_names(memory, tmp_path):
    for name in ("a.txt", ".b.txt", ".c/d.txt", "e/f.txt", "e/.g.txt"):
        memory.pipe_file(f"/data/{name}", b"x")
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text("x")
    for place in (str(tmp_path), "memory:/", f"file://{tmp_path}"):

        def found(path, place=place):
            return [file.address.partition("/data/")[2] for file in list_files((f"{place}/{path}",), ("*.txt",))]

        assert found("data") == found("data/**/*.txt") == ["a.txt", "e/f.txt"], place
        assert found("data/.c/*") == found("data/.c") == [".c/d.txt"] and found("data/.*.txt") == [".b.txt"]
    assert [file.name for file in folder_files(f"{tmp_path}/data")] == ["a.txt"]
    assert [file.name for file in folder_files("memory://data")] == ["a.txt"]


@pytest.mark.parametrize("pattern", ["t*/keep/*.txt", "tes?s/keep/*.txt", "test[s]/keep/*.txt", "tests/k[e]ep/*"])
def test_only_names_below_the_first_wildcard_are_excluded(memory, tmp_path, pattern):
    (tmp_path / "tests/keep").mkdir(parents=True)
    (tmp_path / "tests/keep/a.txt").write_text("x")
    memory.pipe_file("/tests/keep/a.txt", b"x")
    for place in (str(tmp_path), f"file://{tmp_path}", "memory:/"):
        if pattern.startswith("tests/"):
            assert len(list_files((f"{place}/{pattern}",), (), ("tests",))) == 1, "above it, by the user's choice"
            continue
        with pytest.raises(UserError, match="nothing at"):
            list_files((f"{place}/{pattern}",), (), ("tests",))


def test_links(tmp_path):
    (tmp_path / "data/real").mkdir(parents=True)
    (tmp_path / "data/real/a.txt").write_text("x")
    (tmp_path / "data/folder").symlink_to("real")
    (tmp_path / "data/b.txt").symlink_to("real/a.txt")

    def found(path):
        return [file.address.removeprefix(f"{tmp_path}/data/") for file in list_files((str(path),), ("*.txt",))]

    assert found(tmp_path / "data") == found(tmp_path / "data/**/*.txt") == ["b.txt"], "one file, whatever its names"
    (tmp_path / "c.txt").write_text("y")
    (tmp_path / "data/c.txt").symlink_to(tmp_path / "c.txt")
    (tmp_path / "data/else").symlink_to(tmp_path / "else")
    (tmp_path / "else").mkdir()
    (tmp_path / "else/d.txt").write_text("z")
    assert found(tmp_path / "data") == ["b.txt", "c.txt"]
    assert found(tmp_path / "data/**/*.txt") == ["b.txt", "c.txt", "else/d.txt"]
    (tmp_path / "data/lost.txt").symlink_to("nowhere")
    for path in ("data", "data/*"):
        with pytest.raises(UserError, match="lost.txt: cannot be read: No such file"):
            found(tmp_path / path)


@pytest.mark.parametrize("paths", [
    ("{0}/t/a.txt", "a.txt"), ("{0}/t/a.txt", "{0}/t/../t/a.txt"), ("{0}/t", "*.txt"), ("{0}/t", "{0}/link"),
    ("{0}/t/a.txt", "../hard.txt"), ("a.txt", "./a.txt"), ("a.txt", "file://{0}/t/*.txt"),
])  # fmt: skip
def test_a_file_under_two_names_counts_once(tmp_path, monkeypatch, paths):
    if "://" in paths[1]:
        pytest.importorskip("fsspec")
    (tmp_path / "t").mkdir()
    (tmp_path / "t/a.txt").write_text("A\n")
    (tmp_path / "link").symlink_to("t")
    (tmp_path / "hard.txt").hardlink_to(tmp_path / "t/a.txt")
    monkeypatch.chdir(tmp_path / "t")
    assert list(TextFiles(tuple(path.format(tmp_path) for path in paths), "line").texts()) == ["A"]
    assert list(TextFiles(tuple(path.format(tmp_path) for path in paths[::-1]), "line").texts()) == ["A"]


def test_other_names_of_the_same_formats_are_read_and_what_is_left_out_is_named(tmp_path, memory):
    texts = {
        "a.txt": b"A\n", "B.TXT": b"B\n", "c.txt.bz2": bz2.compress(b"C\n"), "d.Txt.XZ": lzma.compress(b"D\n"),
        "e.md": b"E\n", "f.pdf": b"F", ".hidden": b"G", "skip/g.doc": b"H",
    }  # fmt: skip
    line = b'{"text": "X"}\n'
    objects = {
        "a.jsonl": line, "b.ndjson": line, "c.json.gz": gzip.compress(line), "D.JSONL": line,
        "c4-train.00000-of-00002.json": line, "c4-train.00001-of-00002.json": line, "config.json": b"{}",
    }  # fmt: skip
    for folder, files in (("t", texts), ("j", objects)):
        for name, content in files.items():
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).write_bytes(content)
            memory.pipe_file(f"/{folder}/{name}", content)
    for place in (str(tmp_path), "memory:/"):
        source = TextFiles((f"{place}/t",), "line", exclude=("skip",))
        assert sorted(source.texts()) == ["A", "B", "C", "D"]
        (line,) = source.left_out()
        assert line.startswith("2 files of other names than *.txt, ") and "t/e.md, " in line and "t/f.pdf" in line
        source = JsonLines((f"{place}/j",))
        assert list(source.texts()) == ["X"] * 6
        (line,) = source.left_out()
        assert line.startswith("1 files of other names") and line.endswith("/j/config.json")
        assert not TextFiles((f"{place}/t/*.[tT]*",)).left_out(), "a glob is a choice"


def test_a_missing_shard_is_noticed(tmp_path):
    names = ["a-00000-of-00004.jsonl", "a-00003-of-00004.jsonl", "b-00001-of-00002.jsonl", "b-00002-of-00002.jsonl"]
    names += ["c-1-of-2.jsonl", "c-2-of-2.jsonl"]
    names += [f"train-{number:05}-of-00003-{number:016x}.jsonl" for number in (0, 1)]
    for name in names:
        (tmp_path / name).write_text('{"text": "X"}\n')
    assert JsonLines((str(tmp_path),)).left_out() == [
        f"2 of 4 shards {tmp_path}/a-*-of-00004.jsonl, which are not there: 1, 2",
        f"1 of 3 shards {tmp_path}/train-*-of-00003.jsonl, which are not there: 2",
    ]


def test_shards_of_which_some_are_compressed_belong_together(tmp_path):
    for name in ("a-00000-of-00003.jsonl", "a-00001-of-00003.JSONL", "a-00002-of-00003.jsonl.gz"):
        (tmp_path / name).write_text('{"text": "X"}\n')
    assert not JsonLines((str(tmp_path),)).left_out()
    (tmp_path / "a-00000-of-00003.jsonl").unlink()
    (line,) = JsonLines((str(tmp_path),)).left_out()
    assert line.startswith("1 of 3 shards") and line.endswith("which are not there: 0")


def test_a_text_that_also_lies_there_compressed_is_read_once_and_that_is_told(tmp_path, memory):
    line = b'{"text": "X"}\n'
    files = {"a.jsonl": line, "a.jsonl.gz": gzip.compress(line), "A.jsonl.bz2": bz2.compress(line),
             "b.jsonl.xz": lzma.compress(line), "b.JSONL": line, "b.jsonl.gz": gzip.compress(line)}  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        memory.pipe_file(f"/m/{name}", content)
    for place in (str(tmp_path), "memory://m"):
        for paths in ((place,), (f"{place}/*",), (place, f"{place}/a.jsonl")):
            source = JsonLines(paths)
            assert [file.name for file in source.files()] == ["A.jsonl.bz2", "a.jsonl", "b.JSONL", "b.jsonl.gz"]
            (told,) = source.left_out()
            assert told.startswith("2 files which are read from a file packed otherwise: ")
            assert "a.jsonl.gz, " in told and told.endswith("b.jsonl.xz")
        chosen = JsonLines((f"{place}/a.jsonl.gz", place))
        assert [file.name for file in chosen.files()] == ["A.jsonl.bz2", "a.jsonl.gz", "b.JSONL", "b.jsonl.gz"]
        assert len(JsonLines((f"{place}/a.jsonl.gz", f"{place}/a.jsonl")).files()) == 2, "both were asked for"


def zstandard_of(data: bytes) -> bytes:
    return pytest.importorskip("zstandard").ZstdCompressor(write_checksum=True).compress(data)  # as the program zstd


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), (".zst", zstandard_of)],
)
class TestCompressed:
    def test_files_of_several_frames(self, tmp_path, suffix, pack):
        half = len(LINES) // 2
        data = pack(LINES[:half].encode()) + pack(b"") + pack(LINES[half:].encode())
        (tmp_path / f"a.txt{suffix}").write_bytes(data)
        assert list(TextFiles((str(tmp_path),)).texts()) == [LINES]
        assert list(TextFiles((str(tmp_path),), "line").texts()) == LINES.splitlines()

    def test_what_comes_before_a_break_is_read(self, tmp_path, suffix, pack):
        noise = "".join(f"{number * 7919 % 1_000_003:x} " + ("" if number % 9 else "\n") for number in range(200_000))
        whole = pack(noise.encode())
        (tmp_path / f"a.txt{suffix}").write_bytes(whole[: len(whole) * 3 // 4])
        source = TextFiles((str(tmp_path),), "line")
        *lines, error = source.read_unit(source.units()[0])
        assert noise.splitlines()[: len(lines)] == lines and len(lines) > len(noise.splitlines()) // 2
        assert isinstance(error, UserError) and f"ends too early, after line {len(lines)}" in str(error)
        with pytest.raises(UserError, match="in its only document"):
            list(TextFiles((str(tmp_path),)).texts())

    def test_damage_and_files_of_no_bytes(self, tmp_path, suffix, pack):
        whole = bytearray(pack(LINES.encode()))
        whole[len(whole) // 2] ^= 0xFF
        whole[len(whole) // 2 + 1] ^= 0xFF
        (tmp_path / f"damaged{suffix}").write_bytes(whole)
        (tmp_path / f"nothing{suffix}").write_bytes(b"")
        for name in ("damaged", "nothing"):
            with open_file(str(tmp_path / f"{name}{suffix}")) as file, pytest.raises(BrokenFile, match="broken"):
                while file.read1(1000):
                    pass

    def test_it_is_closed(self, tmp_path, suffix, pack):
        (tmp_path / f"a{suffix}").write_bytes(pack(b"x"))
        with open_file(str(tmp_path / f"a{suffix}")) as file:
            plain = file.raw._plain
        assert plain.closed


def test_padding_after_gzip_is_no_damage(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"text") + bytes(1000))
    assert list(TextFiles((str(tmp_path),)).texts()) == ["text"]


def test_packages_that_are_missing_are_named(tmp_path, monkeypatch):
    (tmp_path / "a.txt.zst").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(UserError, match=r"pip install 't5x-like\[zstd\]'"):
        list(TextFiles((str(tmp_path),)).texts())
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(UserError, match=r"pip install 't5x-like\[remote\]'"):
        list(TextFiles(("memory://a.txt",)).texts())


def test_a_protocol_without_its_package_names_the_package(monkeypatch):
    pytest.importorskip("fsspec")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match="pip install gcsfs"):
        TextFiles(("gs://bucket/*.txt",)).units()
    with pytest.raises(UserError, match="another protocol of fsspec"):
        TextFiles(("nosuchthing://bucket/*.txt",)).units()


def test_files_in_memory_are_read_like_local_ones(memory, tmp_path):
    contents = {
        "b/c.txt": b"three\n\nfour\r\n",
        "a.txt": "\ufeffone\ntwo é".encode(),
        "d.txt.gz": gzip.compress(b"five"),
    }
    for name, content in (*contents.items(), ("b/skipped/e.txt", b"no"), ("b/f.md", b"no")):
        memory.pipe_file(f"/data/{name}", content)
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(content)
    for documents in ("file", "line", "paragraph"):
        expected = list(TextFiles((str(tmp_path / "data"),), documents, ("skipped",)).texts())
        assert len(expected) == {"file": 3, "line": 5, "paragraph": 4}[documents]
        for place in ("memory://data", f"file://{tmp_path}/data"):
            assert list(TextFiles((place,), documents, ("skipped",)).texts()) == expected
    assert list(TextFiles(("memory://data/b/*.txt",)).texts()) == ["three\n\nfour\n"]
    assert list(TextFiles(("memory://data/a.txt",)).texts()) == ["one\ntwo é"]
    with pytest.raises(UserError, match="nothing at 'memory://none'"):
        TextFiles(("memory://none",)).units()


def test_remote_files_are_known_by_what_their_system_says(memory):
    memory.pipe_file("/data/a.txt", b"one")
    source = TextFiles(("memory://data",))
    before = source.digest()
    assert source.digest() == before
    memory.pipe_file("/data/a.txt", b"two")
    assert source.digest() != before, "the same size, another time"


def test_a_listing_that_was_kept_is_made_anew(memory, monkeypatch):
    kept = {}
    find = type(memory).find

    def found(self, path, **rest):
        return kept.setdefault(path, find(self, path, **rest))

    monkeypatch.setattr(type(memory), "find", found)
    monkeypatch.setattr(type(memory), "invalidate_cache", lambda self, path=None: kept.clear())
    memory.pipe_file("/data/a.txt", b"one")
    source = TextFiles(("memory://data",))
    before, of_then = source.digest(), dict(kept)
    memory.pipe_file("/data/a.txt", b"two")
    kept.update(of_then)  # as if another machine had written it
    assert of_then and source.digest() != before


def test_stamps_are_never_empty(memory, monkeypatch):
    memory.pipe_file("/a.txt", b"one")

    def stamp(**told):
        information = {"name": "/a.txt", "size": 3, "type": "file", **told}
        monkeypatch.setattr(type(memory), "info", lambda self, path, **rest: information)
        return list_files(("memory://a.txt",), ())[0].stamp

    assert stamp(sha="abc") == "abc" and stamp(blob_id="def") == "def" and stamp(mtime=0) == "0"
    assert len(stamp()) == 64 and stamp() != stamp(generation=2), "the key that fsspec makes of all that is told"
    monkeypatch.setattr(type(memory), "ukey", lambda self, path: "")
    with pytest.raises(UserError, match="a.txt: its file system .* does not tell when it has changed"):
        stamp()


def test_files_of_an_archive_change_with_it(tmp_path):
    import zipfile

    pytest.importorskip("fsspec")
    source = TextFiles((f"zip://::file://{tmp_path}/a.zip",))
    digests = []
    for content, time in (("one", 1), ("two", 1), ("two", 2), ("two", 2)):
        with zipfile.ZipFile(tmp_path / "new", "w") as file:
            file.writestr(zipfile.ZipInfo("x/a.txt"), content)
        (tmp_path / "new").rename(tmp_path / "a.zip")
        os.utime(tmp_path / "a.zip", (time, time))
        digests.append(source.digest())
        assert list(source.texts()) == [content], "the archive of now"
    assert len(set(digests)) == 3 and digests[2] == digests[3]
    (tmp_path / "a.zip").write_bytes(b"no archive")
    with pytest.raises(UserError, match="cannot be listed: BadZipFile"):
        source.files()
    (tmp_path / "a.zip").unlink()
    with pytest.raises(UserError, match="nothing at"):
        source.files()


def test_chained_addresses(tmp_path):
    import zipfile

    pytest.importorskip("fsspec")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("x/one.txt", "one")
        file.writestr("x/two.jsonl.gz", gzip.compress(b'{"text": "two"}'))
    assert list(TextFiles((f"zip://x/*.txt::file://{tmp_path}/a.zip",)).texts()) == ["one"]
    assert list(JsonLines((f"zip://x::file://{tmp_path}/a.zip",)).texts()) == ["two"]
    (tmp_path / "c.csv").write_text("text\nthree\n")
    cached = Csv((f"simplecache::file://{tmp_path}/*.csv",))
    assert [file.name for file in cached.files()] == ["c.csv"]
    assert list(cached.texts()) == ["three"]


def test_large_remote_files_are_cut_like_local_ones(memory, monkeypatch):
    monkeypatch.setattr("t5x_like.input_pipeline.sources.files.UNIT_BYTES", 1000)
    memory.pipe_file("/a.txt", LINES[:20_000].encode())
    source = TextFiles(("memory://a.txt",), "line")
    assert len(source.units()) > 10
    assert list(source.texts()) == LINES[:20_000].splitlines()


def test_a_network_that_fails_is_no_bad_document(memory, monkeypatch):
    memory.pipe_file("/a.txt", b"text")
    source = TextFiles(("memory://a.txt",))
    (unit,) = source.units()

    class Failing(io.BytesIO):
        def readinto(self, buffer):
            raise TimeoutError(110, "Connection timed out")

    monkeypatch.setattr(type(memory), "_open", lambda self, path, mode="rb", **rest: Failing(b"text"))
    with pytest.raises(UserError, match="cannot be read: Connection timed out"):
        list(source.read_unit(unit))
