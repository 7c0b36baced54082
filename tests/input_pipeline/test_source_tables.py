"""Columns of CSV and Parquet files: rows numbered, only what is bad lost."""

import csv
import gzip
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.config import Csv, Parquet


def read_all(source) -> list[str]:
    """Every document, or the first line of what is said in its place."""
    return [str(text).partition("\n  allowed")[0] for unit in source.units() for text in source.read_unit(unit)]


class TestCsv:
    def test_quotes_delimiters_and_compression(self, tmp_path):
        (tmp_path / "a.csv").write_bytes('\ufeffid,text\r\n1,"one, ""two""\r\nthree"\r\n\r\n2,é\r\n'.encode())
        (tmp_path / "b.csv.gz").write_bytes(gzip.compress(b"text\nfour\n"))
        (tmp_path / "c.tsv").write_text("text\tid\nfive, six\t3\n")
        expected = ['one, "two"\nthree', "é", "four", "five, six"]
        assert list(Csv((str(tmp_path),)).texts()) == expected
        (tmp_path / "d.txt").write_text("text;id\nseven;4\n")
        assert list(Csv((str(tmp_path / "d.txt"),), delimiter=";").texts()) == ["seven"]

    @settings(deadline=None)
    @given(
        rows=st.lists(st.lists(st.text("ab,\"\n é'\t"), min_size=2, max_size=2), min_size=1, max_size=6),
        quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
        line_end=st.sampled_from(["\n", "\r\n"]),
    )
    def test_what_is_written_is_read(self, tmp_path_factory, rows, quoting, line_end):
        written = io.StringIO()
        csv.writer(written, quoting=quoting, lineterminator=line_end).writerows([["other", "text"], *rows])
        file = tmp_path_factory.getbasetemp() / "written.csv"
        file.write_bytes(written.getvalue().encode())
        assert read_all(Csv((str(file),))) == [text for _, text in rows]

    @pytest.mark.parametrize("name, content", [
        ("a.csv", b'"text","label"\r\n"one","1"\r\n'), ("b.csv", b'"text"\n"one"\n'),
        ("c.csv", b'"id, old","text"\n1,one\n'), ("d.csv", b'"id\nold","text"\n1,one\n'),
        ("e.tsv", b'"text"\t"n"\n"one"\t1\n'), ("f.csv", b"text,label\none,1\n"),
    ])  # fmt: skip
    def test_a_byte_order_mark_hides_no_column(self, tmp_path, name, content):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content)
        assert read_all(Csv((str(tmp_path / name),))) == ["one"]

    @pytest.mark.parametrize("rows", [
        ['"Hello he said', "foo bar", 'Bye"', "last"], ['"Hello" he said', "foo"], ['5" pipe', 'a "b" c'], ['""', '"'],
    ])  # fmt: skip
    def test_quotation_marks_in_tab_separated_text_are_letters(self, tmp_path, rows):
        text = "text\tlabel\n" + "".join(f"{row}\t{number}\n" for number, row in enumerate(rows))
        (tmp_path / "a.TSV").write_text(text)
        (tmp_path / "b.csv").write_text(text)
        assert read_all(Csv((str(tmp_path / "a.TSV"),))) == rows
        assert read_all(Csv((str(tmp_path / "b.csv"),), delimiter="\t", quote="none")) == rows
        (tmp_path / "a.TSV").write_text('text\tid\n"one\ntwo"\t1\n')
        (first, *_) = Csv((str(tmp_path / "a.TSV"),)).items()
        assert "line 2: 1 columns" in str(first) and "quote='\"'" in str(first), "how it is read is said"
        assert read_all(Csv((str(tmp_path / "a.TSV"),), quote='"')) == ["one\ntwo"]

    @pytest.mark.parametrize("content, dialect, expected", [
        (b'text,id\n"say \\"no\\", she said",1\n', {"escape": "\\", "doubled_quotes": False}, 'say "no", she said'),
        (b"text,id\na\\, b,1\n", {"escape": "\\", "quote": "none"}, "a, b"),
        (b'id, text\n1, "a, b"\n', {"skip_initial_space": True}, "a, b"),
        (b"id;text\n1;'a; ''b'' c'\n", {"delimiter": ";", "quote": "'"}, "a; 'b' c"),
        (b'1,"a ""b"""\n', {"header": False, "field": "1"}, 'a "b"'),
        (b"id|text\n1|'a | b'\n2|'c | d'\n", {"sniff": True}, "a | b"),
        (b"id;text\n1;a, b\n2;c, d\n", {"sniff": True}, "a, b"), (b"text\tid\na, b\t1\n", {"delimiter": "\\t"}, "a, b"),
    ])  # fmt: skip
    def test_dialects(self, tmp_path, content, dialect, expected):
        (tmp_path / "a.csv").write_bytes(content)
        assert read_all(Csv((str(tmp_path),), **dialect))[0] == expected

    def test_a_sniffed_file_may_double_its_first_quote_far_from_its_beginning(self, tmp_path):
        (tmp_path / "a.csv").write_text('text,id\n' + '"x, y",1\n' * 5000 + '"a ""b"", c",1\n')
        assert read_all(Csv((str(tmp_path),), sniff=True))[-2:] == ["x, y", 'a "b", c']
        (tmp_path / "a.csv").write_text('text,id\n"a \\"b\\", c",1\n"d",2\n')
        assert read_all(Csv((str(tmp_path),), sniff=True, escape="\\")) == ['a "b", c', "d"]

    def test_dialects_that_cannot_be(self, tmp_path):
        for wrong in ({"delimiter": "ab"}, {"quote": "\n"}, {"escape": ","  , "delimiter": ","}, {"header": False}):
            with pytest.raises(UserError, match="data.corpus.source"):
                Csv(("a.csv",), **wrong)
        (tmp_path / "a.csv").write_text("text,id,text\na,1,b\n")
        assert read_all(Csv((str(tmp_path),))) == [f"{tmp_path}/a.csv, line 1: 2 columns are named 'text'"]
        assert read_all(Csv((str(tmp_path),), "id")) == ["1"]
        (tmp_path / "a.csv").write_text("text\n")
        assert read_all(Csv((str(tmp_path),), sniff=True))[0].endswith("its dialect cannot be guessed")

    @pytest.mark.parametrize("dialect", [
        {"delimiter": '"'}, {"quote": ","}, {"escape": '"'}, {"escape": ","}, {"sniff": True, "escape": ","},
        {"quote": " ", "skip_initial_space": True}, {"escape": " ", "skip_initial_space": True},
    ])  # fmt: skip
    def test_one_character_for_two_things(self, tmp_path, dialect):
        (tmp_path / "a.csv").write_text("text,id\none,1\n")
        with pytest.raises(UserError, match=r"data.corpus.source.quote: .*\n.*another character for each"):
            read_all(Csv((str(tmp_path),), **dialect))

    def test_only_bad_rows_are_lost(self, tmp_path):
        file = tmp_path / "a.csv"
        file.write_bytes(b'id,text\n1,"a\nb"\n2,caf\xe9\n3\n4,a,b\n5,good\n')
        assert read_all(Csv((str(file),))) == [
            "a\nb",
            f"{file}: not UTF-8 at line 4",
            f"{file}, line 5: 1 columns, where line 1 names 2",
            f"{file}, line 6: 3 columns, where line 1 names 2",
            "good",
        ]

    def test_a_quote_that_is_never_closed_ends_the_file(self, tmp_path):
        (tmp_path / "a.csv").write_text('text\ngood\n"open\nx\n')
        good, error = read_all(Csv((str(tmp_path),)))
        assert good == "good" and "a.csv, line 3: not CSV: unexpected end of data" in error
        (tmp_path / "a.csv").write_text('text\ngood\n"he said "no"\nx\n')
        good, error = read_all(Csv((str(tmp_path),)))
        assert good == "good" and "line 3: not CSV" in error and "nothing beyond that is read" in error

    def test_no_column_no_rows_and_broken_gzip(self, tmp_path):
        file = tmp_path / "a.csv"
        file.write_text("id,texts\n1,x\n")
        with pytest.raises(UserError, match=r"line 1: no column 'text'\n.*id, texts\n.*did you mean 'texts'"):
            list(Csv((str(file),)).texts())
        file.write_text("")
        assert read_all(Csv((str(tmp_path),))) == [], "in a folder"
        assert read_all(Csv((str(file),))) == [f"{file}: an empty file"]
        file.write_text("id,text\n")
        assert read_all(Csv((str(tmp_path),))) == [], "in a folder"
        assert read_all(Csv((str(file),))) == [f"{file}: no rows"]
        file.unlink()
        rows = "text\n" + "".join(f"{number * 7919 % 1_000_003}\n" for number in range(20_000))
        packed = gzip.compress(rows.encode())
        (tmp_path / "b.csv.gz").write_bytes(packed[: len(packed) // 2])
        *good, error = read_all(Csv((str(tmp_path),)))
        assert good == rows.split("\n")[1 : len(good) + 1] and len(good) > 1000
        assert "broken gzip data: the file ends too early, after line" in error

    def test_a_large_value(self, tmp_path):
        (tmp_path / "a.csv").write_text('text\n"' + "word\n" * 100_000 + '"\n')
        assert list(map(len, Csv((str(tmp_path),)).texts())) == [500_000]


class TestParquet:
    @pytest.fixture
    def write(self, tmp_path):
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")

        def write(name, rows_in_a_group=100, **columns):
            parquet.write_table(pyarrow.table(columns), tmp_path / name, row_group_size=rows_in_a_group)
            return tmp_path / name

        return write

    def test_names_that_begin_alike(self, tmp_path, write):
        meta = [{"text": "inner", "n": 1}]
        write("a.parquet", meta=meta, **{"a.b": ["other"], "a": ["A"], "meta.text": ["dotted"]})
        write("b.parquet", **{"meta.text": ["dotted"], "a": ["A"], "a.b": ["other"]}, meta=meta)
        assert read_all(Parquet((str(tmp_path),), "meta.text")) == ["dotted"] * 2
        assert read_all(Parquet((str(tmp_path),), "a")) == ["A"] * 2
        assert "column 'meta' holds struct" in read_all(Parquet((str(tmp_path),), "meta"))[0]

    def test_row_groups_are_units(self, tmp_path, write, monkeypatch):
        monkeypatch.setattr("t5x_like.input_pipeline.sources.files.UNIT_BYTES", 2000)
        texts = [f"document {number} é" for number in range(1050)]
        file = write("a.parquet", text=texts, noise=[str(number) * 50 for number in range(1050)])
        source = Parquet((str(tmp_path),))
        units = source.units()
        assert len(units) > 5 and units[-1].stop == 11 and units[0].start == 0
        assert [unit.stop for unit in units[:-1]] == [unit.start for unit in units[1:]]
        assert all(unit.size < 6000 for unit in units), "the other column does not count"
        assert read_all(source) == texts
        file.rename(tmp_path / "b.parquet")
        monkeypatch.undo()
        assert len(source.units()) == 1 and read_all(source) == texts

    def test_only_the_column_is_read(self, tmp_path, write):
        import pyarrow.parquet

        file = write("a.parquet", noise=[str(number) for number in range(100)], text=["x"] * 100)
        noise = pyarrow.parquet.read_metadata(file).row_group(0).column(0)
        content = bytearray(file.read_bytes())
        content[4 : 4 + noise.total_compressed_size] = b"\xff" * noise.total_compressed_size
        file.write_bytes(content)
        assert "broken Parquet data" in read_all(Parquet((str(tmp_path),), "noise"))[0]
        assert read_all(Parquet((str(tmp_path),))) == ["x"] * 100

    def test_kinds_of_columns(self, tmp_path, write):
        import pyarrow

        texts = ["one", None, "three é"]
        kinds = (pyarrow.string(), pyarrow.large_string(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string()))
        for kind in kinds:
            write("a.parquet", text=pyarrow.array(texts, kind))
            assert read_all(Parquet((str(tmp_path),))) == ["one", "", "three é"], "null is an empty document"
        file = write("a.parquet", text=pyarrow.array([b"one", b"\xff", None], pyarrow.binary()))
        assert read_all(Parquet((str(tmp_path),))) == ["one", f"{file}: not UTF-8 at row 2", ""]

    def test_text_that_is_not_utf8_in_a_column_of_strings(self, tmp_path, write):
        import pyarrow

        file = write("a.parquet", 2, text=pyarrow.array([b"a", b"b", b"c", b"\xff", b"e"]).view(pyarrow.string()))
        assert read_all(Parquet((str(tmp_path),))) == ["a", "b", "c", f"{file}: not UTF-8 at row 4", "e"]

    def test_columns_that_are_missing_or_hold_no_text(self, tmp_path, write, monkeypatch):
        monkeypatch.setattr("t5x_like.input_pipeline.sources.files.UNIT_BYTES", 100)
        file = write("a.parquet", 10, texts=["x"] * 50, number=[3] * 50)
        (error,) = read_all(Parquet((str(tmp_path),)))
        assert error == f"{file}: no column 'text'", "once, not for each unit"
        with pytest.raises(UserError, match="did you mean 'texts'"):
            list(Parquet((str(tmp_path),)).texts())
        assert read_all(Parquet((str(tmp_path),), "number")) == [f"{file}: column 'number' holds int64"]

    @pytest.mark.parametrize("large", [False, True])
    def test_two_columns_of_one_name(self, tmp_path, monkeypatch, large):
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        if large:
            monkeypatch.setattr("t5x_like.input_pipeline.sources.files.UNIT_BYTES", 100)
        table = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], ["text", "text"])
        parquet.write_table(table, tmp_path / "a.parquet")
        assert read_all(Parquet((str(tmp_path),))) == [f"{tmp_path}/a.parquet: 2 columns are named 'text'"]

    def test_checksums_that_the_writer_stored_are_compared(self, tmp_path):
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
        table = pyarrow.table({"text": ["one", "twotwotwo"]})
        parquet.write_table(table, tmp_path / "a.parquet", write_page_checksum=True, **plain)
        assert read_all(Parquet((str(tmp_path),))) == ["one", "twotwotwo"]
        content = (tmp_path / "a.parquet").read_bytes()
        assert content.count(b"twotwotwo") == 1
        (tmp_path / "a.parquet").write_bytes(content.replace(b"twotwotwo", b"twotwotwi"))
        (error,) = read_all(Parquet((str(tmp_path),)))
        assert "broken Parquet data" in error and "after row 0" in error

    def test_files_without_rows(self, tmp_path, write):
        import pyarrow

        file = write("a.parquet", text=pyarrow.array([], pyarrow.string()))
        assert read_all(Parquet((str(tmp_path),))) == []
        assert read_all(Parquet((str(file),))) == [f"{file}: no rows"]

    @pytest.mark.parametrize("large", [False, True])
    def test_files_that_were_cut(self, tmp_path, write, monkeypatch, large):
        if large:
            monkeypatch.setattr("t5x_like.input_pipeline.sources.files.UNIT_BYTES", 100)
        file = write("a.parquet", text=[str(number) for number in range(5000)])
        whole = file.read_bytes()
        for content in (whole[:-100], whole[: len(whole) // 2], b"PAR1", b""):
            file.write_bytes(content)
            (error,) = read_all(Parquet((str(tmp_path),)))
            assert "broken Parquet data" in error and "at its end" in error

    def test_damage_in_the_middle_loses_what_follows(self, tmp_path, write):
        texts = [f"{number * 7919 % 1_000_003} x" for number in range(4000)]
        file = write("a.parquet", 1000, text=texts)
        whole = bytearray(file.read_bytes())
        whole[len(whole) // 2 : len(whole) // 2 + 3000] = b"\xff" * 3000
        file.write_bytes(whole)
        *good, error = read_all(Parquet((str(tmp_path),)))
        assert good == texts[: len(good)] and len(good) >= 1000
        assert "broken Parquet data" in error and f"after row {len(good)}" in error

    def test_through_fsspec(self, tmp_path, write):
        pytest.importorskip("fsspec")
        write("a.parquet", text=["one", "two"])
        assert read_all(Parquet((f"file://{tmp_path}",))) == ["one", "two"]

    def test_pyarrow_is_optional(self, tmp_path, monkeypatch):
        (tmp_path / "a.parquet").write_bytes(b"x")
        monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
        with pytest.raises(UserError, match=r"pip install 't5x-like\[parquet\]'"):
            list(Parquet((str(tmp_path),)).texts())
