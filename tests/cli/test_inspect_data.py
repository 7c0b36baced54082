"""``inspect data`` on tiny runs: what it prints is held against the batch and the corpus."""

from __future__ import annotations

import dataclasses
import re

import pytest
from tiny_runs import run_file, text_folder, tiny_run

from t5x_like.cli.main import main
from t5x_like.input_pipeline.config import Mixture, Part, TextFiles
from t5x_like.input_pipeline.tokenizers.bytes import ByteTokenizer
from t5x_like.train.config import Run
from t5x_like.train.data import Data


def mixture_run(kind: str) -> Run:
    """Two corpora, the second three times as often; one document of it is empty."""
    run = tiny_run(kind)
    folder = text_folder().parent / "more_texts"
    folder.mkdir(exist_ok=True)
    (folder / "one.txt").write_text("Seven jugs of liquor, seven lazy dogs, seven quick brown foxes. " * 3)
    (folder / "two.txt").write_text(" \n")
    one = run.data.corpus
    assert not isinstance(one, Mixture)
    other = dataclasses.replace(one, name="other", source=TextFiles((str(folder),)))
    mixture = Mixture("both", (Part(one), Part(other, rate=3.0)), one.tokenizer)
    return dataclasses.replace(run, data=dataclasses.replace(run.data, corpus=mixture))


def printed(capsys, *arguments: str) -> str:
    assert main(["inspect", "data", *arguments]) == 0
    return capsys.readouterr().out


def test_it_shows_the_text_of_a_batch(capsys):
    run = tiny_run("llama")
    out = printed(capsys, run_file(run), "--step", "2", "--rows", "2")
    batch, tokenizer = Data.open(run).train.batch(2), ByteTokenizer()
    assert out.startswith("tiny_llama, step 2, epoch ")
    assert f"loss on {int((batch['weights'] > 0).sum()):,} targets" in out.splitlines()[1]
    everything = " ".join(path.read_text() for path in sorted(text_folder().iterdir()))
    for row in range(2):
        first = batch["targets"][row][batch["decoder_segments"][row] == 1]
        text = tokenizer.decode(first.tolist())
        assert text in everything  # of the corpus, not only of the batch
        assert f"targets  {text}".replace("\n", "\\n") in out
    assert "row 1 · tiny · Autoregressive(" in out and "row 2" not in out


@pytest.mark.parametrize("kind", ["t5", "bert"])
def test_it_says_where_rows_come_from(kind, capsys):
    run = mixture_run(kind)
    out = printed(capsys, run_file(run), "--step", "3", "--rows", "8")
    train = Data.open(run).train
    sources, seen = train.sources_of(3), train.seen(3)
    assert {name for name, _ in sources} == {"tiny", "other"}
    assert re.findall(r"^row \d · (\w+) · ", out, re.M) == [name for name, _ in sources]
    cells = {line.split()[0]: line.split()[1:] for line in out.splitlines()[4:6]}
    for name in ("tiny", "other"):
        rows = sum(name == source for source, _ in sources)
        assert cells[name] == [str(rows), f"{rows / 8:.1%}", f"{seen[name].tokens:,}", f"{seen[name].epochs:.3f}"]
    assert int(cells["other"][0]) >= 4
    assert "left out when other was prepared: 1 empty\n" in out
    assert "when tiny was prepared" not in out


def test_colours_only_where_wanted(capsys, monkeypatch):
    file = run_file(tiny_run("t5"))
    monkeypatch.setenv("COLUMNS", "100")
    assert "\x1b" not in printed(capsys, file) and "\x1b[35m<extra_id_0>" in printed(capsys, file, "--color", "always")
    assert main(["inspect", "data", file, "--rows", "-1"]) == 2
    assert "--rows: -1" in capsys.readouterr().err


def test_a_picture_of_lengths_and_fill(capsys, tmp_path):
    picture = tmp_path / "new" / "lengths.png"
    file = run_file(mixture_run("t5"))
    assert printed(capsys, file, "--rows", "0", "--plot", str(picture)).endswith(f"\n{picture}\n")
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_corpus_that_is_used_up_soon(capsys, tmp_path):
    """The picture is of the rows that there are."""
    run = tiny_run("llama")
    one = run.data.corpus
    assert not isinstance(one, Mixture)
    limited = Mixture("limited", (Part(one, epochs=1),), one.tokenizer)
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, corpus=limited))
    picture = tmp_path / "lengths.png"
    assert str(picture) in printed(capsys, run_file(run), "--plot", str(picture))
    assert main(["inspect", "data", run_file(run), "--step", "100"]) == 2
    assert "used up" in capsys.readouterr().err
