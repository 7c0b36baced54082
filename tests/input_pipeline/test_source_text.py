"""Text files cut into ranges of bytes give the same documents in the same order; lines may be as long as they like."""

import resource
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.config import JsonLines, TextFiles
from t5x_like.input_pipeline.sources import text
from t5x_like.input_pipeline.sources.files import Unit

LINE_ENDS_AND_TEXT = st.lists(
    st.sampled_from([b"\n", b"\r\n", b"a", b"bc ", "é".encode(), b" ", b"\xff", b"\r"]), max_size=60
)


@pytest.fixture
def small_units(monkeypatch):
    """Units of at most 1,000 bytes, and blocks that end in the middle of everything."""
    monkeypatch.setattr("t5x_like.input_pipeline.sources.files.UNIT_BYTES", 1000)
    monkeypatch.setattr("t5x_like.input_pipeline.sources.text._BLOCK_BYTES", 64)


def shown(documents) -> list[str]:
    return [str(document) for document in documents]


def expected_lines(content: bytes, name: str) -> list[str]:
    """Written out plainly: what the units together have to give."""
    found = []
    for number, line in enumerate(content.split(b"\n"), 1):
        try:
            decoded = line.decode()
        except UnicodeDecodeError:
            found.append(str(text.not_utf8_file(name, f"line {number}")))
        else:
            decoded = decoded.removesuffix("\r") if number <= content.count(b"\n") else decoded
            found += [decoded] if decoded.strip() else []
    return found


@settings(deadline=None)
@given(parts=LINE_ENDS_AND_TEXT, cuts=st.lists(st.integers(0, 200), max_size=5), block=st.integers(1, 20))
def test_units_joined_are_the_file(tmp_path_factory, parts, cuts, block):
    content = b"".join(parts)
    file = tmp_path_factory.getbasetemp() / "cut.txt"
    file.write_bytes(content)
    source = TextFiles((str(file),), "line")
    marks = sorted({0, len(content), *(cut for cut in cuts if cut < len(content))})
    units = [Unit(str(file), start, stop) for start, stop in zip(marks, marks[1:], strict=False)]
    text._count_line_ends.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "_BLOCK_BYTES", block)
        found = [str(line) for unit in units for line in source.read_unit(unit)]
    assert found == expected_lines(content, str(file))


def test_large_files_are_cut_and_lines_keep_their_numbers(tmp_path, small_units):
    lines = [f'{{"text": "{number} {"x" * (number % 90)}"}}' for number in range(400)]
    lines[333] = "broken"
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    source = JsonLines((str(tmp_path),))
    units = source.units()
    assert len(units) > 15 and [unit.stop for unit in units[:-1]] == [unit.start for unit in units[1:]]
    assert sum(unit.size for unit in units) == (tmp_path / "a.jsonl").stat().st_size
    found = [text for unit in units for text in source.read_unit(unit)]
    assert [str(text).split(" ")[0] for text in found if isinstance(text, str)] == [
        str(number) for number in range(400) if number != 333
    ]
    (error,) = (text for text in found if isinstance(text, UserError))
    assert f"{tmp_path}/a.jsonl, line 334: not JSON" in str(error)


def test_units_before_and_after_each_other_share_no_bytes(tmp_path, small_units):
    (tmp_path / "a.txt").write_text("short\n" + "x" * 9000 + "\nshort\n")
    source = TextFiles((str(tmp_path / "a.txt"),), "line")
    counts = [len(list(source.read_unit(unit))) for unit in source.units()]
    assert sum(counts) == 3 and counts[0] == 2 and counts[-1] == 1, "those within the long line are empty"


def test_a_line_of_100_megabytes(tmp_path, monkeypatch):
    """Time in proportion to its length, and memory too: a few copies of it, not one for each of 6,000 blocks."""
    monkeypatch.setattr(text, "_BLOCK_BYTES", 2**14)
    (tmp_path / "a.txt").write_bytes(b"short\n" + b"long line " * 10_000_000 + b"\nlast\n")
    source = TextFiles((str(tmp_path),), "line")
    assert len(source.units()) == 6
    began, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lengths = [len(line) for line in source.texts()]
    assert lengths == [5, 100_000_000, 4]
    assert time.process_time() - began < 20, "joining block by block takes minutes"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 700_000  # kB


def test_a_paragraph_that_is_not_utf8_is_one_bad_document(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\n\ntwo\n\xff\nthree\xff\n\n\nfour\n")
    source = TextFiles((str(tmp_path / "a.txt"),), "paragraph")
    one, bad, four = source.read_unit(source.units()[0])
    assert (one, four) == ("one", "four") and "not UTF-8 at line 5" in str(bad)


def test_documents_of_white_space_are_none(tmp_path):
    (tmp_path / "a.txt").write_text("\u3000\n \n\t\nx\n")
    assert list(TextFiles((str(tmp_path),), "line").texts()) == ["x"]
    (tmp_path / "b.txt").write_text("\u3000\n")
    assert list(TextFiles((str(tmp_path),)).texts()) == ["\u3000\n \n\t\nx\n"]


@pytest.mark.parametrize("documents", ["file", "line", "paragraph"])
@pytest.mark.parametrize("empty", ["\n", "\ufeff", "\ufeff\r\n"])
def test_an_empty_file_that_is_named_is_a_mistake(tmp_path, documents, empty):
    (tmp_path / "full.txt").write_text("x")
    (tmp_path / "empty.txt").write_bytes(empty.encode())
    assert list(TextFiles((str(tmp_path),), documents).texts()) == ["x"]
    with pytest.raises(UserError, match="empty.txt: an empty file"):
        list(TextFiles((str(tmp_path), str(tmp_path / "empty.txt")), documents).texts())
