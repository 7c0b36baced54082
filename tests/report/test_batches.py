"""Rows on a terminal and in a pipe, and the picture of lengths and fill."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from rich.ansi import AnsiDecoder

from t5x_like.report.batches import BatchConsole, Field, Lengths, plot_lengths

ROW: list[Field] = [
    (1, "inputs", [("read ", "text", False), ("<mask>", "loss", True), (" all", "loss", False)]),
    (1, "targets", [("faint ", "faint", False), ("with loss", "loss", False)]),
    (2, "prefix", [("before", "prefix", False)]),
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(colour, out: io.StringIO) -> str:
    console = BatchConsole(colour, out)
    console.title("a [bold]title[/bold]")
    console.table([("corpus", "rows"), ("sotu", "12"), ("python_source", "4")])
    console.row("row 0", "half full", ROW)
    console.legend()
    return out.getvalue()


def test_plain_text_marks_with_brackets_what_has_loss():
    assert shown("auto", io.StringIO()).splitlines() == [
        "a [bold]title[/bold]",
        "corpus         rows",
        "sotu             12",
        "python_source     4",
        "",
        "row 0",
        "  half full",
        "  segment 1   inputs   read ⟦<mask> all⟧",
        "              targets  faint ⟦with loss⟧",
        "  segment 2   prefix   before",
        "",
        "⟦with loss⟧ where not all of a line has it",
    ]


@pytest.mark.parametrize(
    ("colour", "out", "environment", "coloured"),
    [
        ("auto", Terminal, {}, True),
        ("auto", io.StringIO, {}, False),
        ("auto", Terminal, {"NO_COLOR": "1"}, False),
        ("auto", Terminal, {"NO_COLOR": ""}, True),
        ("auto", Terminal, {"TERM": "dumb"}, False),
        ("never", Terminal, {}, False),
        ("always", io.StringIO, {}, True),
        ("always", io.StringIO, {"NO_COLOR": "1", "TERM": "dumb"}, True),
    ],
)
def test_when_there_are_colours(colour, out, environment, coloured, monkeypatch):
    for name, value in ({"TERM": "xterm", "NO_COLOR": ""} | environment).items():
        monkeypatch.setenv(name, value)
    text = shown(colour, out())
    assert ("\x1b[" in text) == coloured
    assert ("\x1b[1;32m" in text) == coloured  # bold green is a colour, not only an attribute


def test_each_mark_has_a_look_of_its_own(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    lines = list(AnsiDecoder().decode(shown("always", io.StringIO())))
    looks: dict[str, str] = {}
    for line in lines:
        for span in line.spans:
            looks.setdefault(line.plain[span.start : span.end].strip(), str(span.style))
    different = ["<mask>", "all", "faint", "before", "segment 1   inputs", "segment 2   prefix"]
    assert len({looks[text] for text in different}) == len(different), looks
    assert looks["with loss"] == looks["all"] and looks["without loss"] == looks["faint"]  # the legend says so
    assert "read" not in looks


def test_long_lines_are_wrapped_at_the_width_of_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    out = io.StringIO()
    words = " ".join(f"word{number}" for number in range(40)) + " " + "x" * 100
    BatchConsole("always", out).row("row 0", "", [(1, "inputs", [(words, "text", False)])])
    plain = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue()).splitlines()
    assert len(plain) > 8 and max(map(len, plain)) <= 60
    assert "".join(line[25:] for line in plain[3:]).replace(" ", "") == words.replace(" ", "")
    assert all(line.startswith("  \u258c ") for line in plain[3:])


@pytest.mark.parametrize("lengths", [[np.array([3, 700, 90_000, 5])], [np.array([7]), np.arange(1, 2000)]])
def test_the_picture_is_drawn_and_replaces_an_older_one(lengths, tmp_path):
    from matplotlib.image import imread

    picture = tmp_path / "lengths.png"
    picture.write_text("older")
    corpora = [Lengths(f"corpus {i}", len(each), each) for i, each in enumerate(lengths)]
    fills = {"encoder": np.array([0.0, 0.5, 1.0]), "decoder": np.ones(3)}
    assert plot_lengths("a run", corpora, [141, 141, 20], fills, picture) == picture
    image = imread(picture)
    assert image.shape[1] == 1200 and image.shape[0] > 400
    assert len(np.unique(image.reshape(-1, image.shape[-1]), axis=0)) > 50
    assert [path.name for path in tmp_path.iterdir()] == ["lengths.png"]
