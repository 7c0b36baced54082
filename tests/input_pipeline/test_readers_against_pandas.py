"""Readers of tables against those of pandas and pyarrow: generated tables, the same rows wherever these read them.

A table that only we refuse has to break its dialect, and is one of few: at most 5% of the tables of a kind.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import random
from pathlib import Path

import pytest

from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.config import Csv, JsonLines, Parquet

LETTERS = ["a", "b", "word", "é", "\u4e2d", "\U0001f600", " ", "  ", "1", "-", "#", "NA", "\u2028", "\u00a0"]
PACK = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


def draw_text(draw: random.Random, more: list[str]) -> str:
    return "".join(draw.choice(LETTERS + more) for _ in range(draw.randrange(9)))


def draw_rows(draw: random.Random, more: list[str]) -> tuple[list[str], list[list[str]]]:
    """Names of columns, ``text`` among them, and rows."""
    names = ["id", "label", "other name", "t e x t"][: draw.randrange(5)]
    names.insert(draw.randrange(len(names) + 1), "text")
    return names, [[draw_text(draw, more) for _ in names] for _ in range(draw.randrange(12))]


def blank_free(texts: list) -> list[str]:
    """What makes documents: not empty, line ends as on Unix."""
    return [text.replace("\r\n", "\n") for text in texts if isinstance(text, str) and text.strip()]


def delimited(draw: random.Random, file: Path, is_tsv: bool):
    """Writes a table of delimited text: the source, what the reference reads (None: it refuses), and what is broken."""
    pandas = pytest.importorskip("pandas")
    delimiter = "\t" if is_tsv else draw.choice(",,,;|\t")
    quote = draw.choice(['"', '"', '"', "'", "none"])
    escape = "\\" if draw.random() < 0.4 else ""
    doubled = quote == "none" or not escape or draw.random() < 0.5
    dialect = {
        "delimiter": delimiter, "quotechar": None if quote == "none" else quote, "escapechar": escape or None,
        "doublequote": doubled, "lineterminator": draw.choice(["\n", "\r\n"]),
        "quoting": csv.QUOTE_NONE if quote == "none" else draw.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    }  # fmt: skip
    # Without quotes and escapes there is nothing that a delimiter or a line end in a value could be told by.
    plain = quote == "none"
    more = ["5\"", "'"] if plain else ['"', '""', "'", delimiter, "\n", "\r\n", "\\" if escape else ""]
    names, rows = draw_rows(draw, more + ([delimiter, "\\"] if plain and escape else []))
    if plain and len(names) == 1:  # an empty value alone would be an empty line, which is no row
        rows = [[value or "x"] for (value,) in rows]
    header = draw.random() < 0.9
    written = io.StringIO()
    csv.writer(written, **dialect).writerows([names, *rows] if header else rows)
    lines = written.getvalue()
    broken = ""
    if draw.random() < 0.04:
        broken, damage = draw.choice([
            ("a row of fewer columns", f"x{dialect['lineterminator']}" if len(names) > 1 else ""),
            ("a quote that is not closed", f"{quote}x{dialect['lineterminator']}" if quote != "none" else ""),
            ("text behind a quoted value", f"{quote}x{quote}y{delimiter}" * len(names) if quote != "none" else ""),
        ])  # fmt: skip
        lines, broken = lines + damage, broken if damage else ""
    content = draw.choice([b"", b"\xef\xbb\xbf"]) + lines.encode()
    pack = draw.choice(list(PACK))
    file = file.with_name(f"{file.name}.{'tsv' if is_tsv else 'csv'}{pack}")
    file.write_bytes(PACK[pack](content))
    skip = draw.random() < 0.2
    field = "text" if header else str(names.index("text"))
    source = Csv(
        (str(file),), field, "" if is_tsv and draw.random() < 0.5 else delimiter,
        quote=quote, escape=escape, doubled_quotes=doubled, skip_initial_space=skip, header=header,
    )  # fmt: skip
    options = {
        "sep": delimiter, "quoting": dialect["quoting"], "escapechar": escape or None, "doublequote": doubled,
        "skipinitialspace": skip, "header": None, "dtype": str, "keep_default_na": False, "na_filter": False,
        "encoding": "utf-8-sig", "engine": "c",
    }  # fmt: skip
    options |= {} if quote == "none" else {"quotechar": quote}
    try:
        table = pandas.read_csv(io.BytesIO(content), **options)
    except pandas.errors.EmptyDataError:
        return source, [], broken
    except (pandas.errors.ParserError, UnicodeDecodeError):
        return source, None, broken
    found = table.iloc[int(header) :, names.index("text")].tolist()
    return source, found, broken


def json_lines(draw: random.Random, file: Path):
    """As ``delimited``, of JSON lines."""
    pandas = pytest.importorskip("pandas")
    lines, broken = [], ""
    for _ in range(draw.randrange(1, 12)):
        text = draw_text(draw, ['"', "\\", "\n", "\r\n", "\t", "/", "\x7f", "{", "["])
        others = [1, -2.5, 10**15, True, None, [1, "x"], {"text": "inner"}, "2020-01-01", "s" * 300]
        row = {name: draw.choice(others) for name in ["id", "date", "meta"][: draw.randrange(4)]}
        items = [*row.items(), ("text", None if draw.random() < 0.1 else text)]
        draw.shuffle(items)
        spaced = draw.choice([(",", ":"), (", ", ": ")])
        lines.append(json.dumps(dict(items), ensure_ascii=draw.random() < 0.5, separators=spaced))
        lines += [draw.choice(["", " ", "\t"])] * (draw.random() < 0.1)
    if draw.random() < 0.03:
        lines.append('{"id": 1}')
        broken = "a row without the field"
    end = draw.choice(["\n", "\r\n"])
    content = (end.join(lines) + draw.choice(["", end])).encode()
    pack = draw.choice(list(PACK))
    file = file.with_name(f"{file.name}.jsonl{pack}")
    file.write_bytes(PACK[pack](draw.choice([b"", b"\xef\xbb\xbf"]) + content))
    table = pandas.read_json(io.BytesIO(content), lines=True, dtype=False)
    return JsonLines((str(file),)), table["text"].tolist(), broken


def parquet(draw: random.Random, file: Path):
    """As ``delimited``, of Parquet."""
    pyarrow, module = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    field = draw.choice(["text", "meta.text", "a"])
    texts = [draw_text(draw, ["\n", "\r\n", "\0", '"']) for _ in range(draw.randrange(60))]
    texts = [None if draw.random() < 0.1 else text for text in texts]
    kind = draw.choice([pyarrow.string(), pyarrow.large_string(), pyarrow.binary(), "dictionary"])
    column = pyarrow.array(texts, pyarrow.string())
    column = column.dictionary_encode() if kind == "dictionary" else column.cast(kind)
    count = len(texts)
    struct = pyarrow.struct({"text": pyarrow.string(), "n": pyarrow.int64()})
    others = {
        "meta": pyarrow.array([{"text": "inner", "n": n} for n in range(count)], struct),
        "a.b": ["dotted"] * count, "list": pyarrow.array([["x"]] * count, pyarrow.list_(pyarrow.string())),
        "id": list(range(count)),
    }  # fmt: skip
    columns = [(field, column), *(each for each in others.items() if draw.random() < 0.5)]
    draw.shuffle(columns)
    file = file.with_name(f"{file.name}.{draw.choice(['parquet', 'PARQUET'])}")
    module.write_table(
        pyarrow.table(dict(columns)), file, row_group_size=draw.choice([1, 7, 100]),
        compression=draw.choice(["none", "snappy", "gzip", "zstd"]), use_dictionary=draw.random() < 0.5,
        data_page_version=draw.choice(["1.0", "2.0"]), write_page_checksum=draw.random() < 0.5,
    )  # fmt: skip
    found = module.read_table(file).column(field).to_pylist() if count else []
    return Parquet((str(file),), field), [text.decode() if isinstance(text, bytes) else text for text in found], ""


KINDS = {
    "csv": lambda draw, file: delimited(draw, file, False), "tsv": lambda draw, file: delimited(draw, file, True),
    "jsonl": json_lines, "parquet": parquet,
}  # fmt: skip


@pytest.mark.parametrize("count", [40, pytest.param(500, marks=pytest.mark.proof)])
@pytest.mark.parametrize("kind", KINDS)
def test_tables_are_read_as_the_reference_reads_them(tmp_path, kind, count):
    refused = []
    for number in range(count):
        source, expected, broken = KINDS[kind](random.Random(f"{kind} {number}"), tmp_path / str(number))
        found = [item for unit in source.units() for item in source.read_unit(unit)]
        errors = [item for item in found if isinstance(item, UserError) and "no rows" not in item.got]
        errors = [error for error in errors if "an empty file" not in error.got]
        if not errors:
            assert expected is None or blank_free(found) == blank_free(expected), (number, source, expected)
        elif expected is not None:
            assert broken, (number, source, str(errors[0]), expected)
            refused.append(f"table {number}: {broken}: {errors[0].got}")
    print("\n".join(refused))
    assert len(refused) <= max(2, count // 20), refused
