"""``t5x-like tokenizer``: what it makes can be used as it says, from files of each kind; what it shows is there."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pytest
import sentencepiece
from tiny_runs import text_folder

from t5x_like.cli.main import main
from t5x_like.input_pipeline.config import SentencePiece
from t5x_like.input_pipeline.tokenizers.bytes import ByteTokenizer
from t5x_like.input_pipeline.tokenizers.sentencepiece import SentencePieceTokenizer
from t5x_like.input_pipeline.tokenizers.tokenizer import open_tokenizer


def train(output: Path, *arguments: str) -> int:
    return main(["tokenizer", "train", *arguments, "--output", str(output), "--model", "bpe", "--sentinels", "20"])


def texts() -> list[str]:
    return [path.read_text() for path in sorted(text_folder().iterdir())]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("model") / "new" / "my.model"
    assert train(output, str(text_folder()), "--vocab-size", "400") == 0
    return output


def test_a_trained_model_can_be_used_as_it_says(tmp_path, capsys):
    output = tmp_path / "new" / "my.model"
    size = ["--vocab-size", "390", "--pad-to-multiple", "8"]
    assert train(output, str(text_folder()), *size, "--symbols", "[NLU]", "--symbols", "[a,b]") == 0
    shown = capsys.readouterr()
    assert str(text_folder()) in shown.err
    made, measured, line = shown.out.splitlines()
    tokenizer = SentencePieceTokenizer(output, 20, ["[NLU]", "[a,b]"])
    assert made == (
        f"{output}: 392 ids, 20 sentinels, fingerprint {tokenizer.fingerprint[:12]}, {output.stat().st_size:,} bytes"
    )
    tokens = sum(map(len, map(tokenizer.encode, texts())))
    characters, words = sum(map(len, texts())), sum(len(text.split()) for text in texts())
    assert measured.startswith(f"on {characters:,} characters")
    assert f" {characters / tokens:.2f} characters per token, {tokens / words:.2f} tokens per word" in measured
    assert line.startswith("in a corpus file: tokenizer=SentencePiece(")
    config = eval(line.split("tokenizer=")[1])  # noqa: S307
    assert isinstance(config, SentencePiece) and config.symbols == ("[NLU]", "[a,b]") and config.vocab_size == 392
    assert open_tokenizer(config).fingerprint == tokenizer.fingerprint
    assert main(["tokenizer", "show", str(output), "--symbols", "[NLU]", "--symbols", "[a,b]"]) == 0
    shown = capsys.readouterr().out
    assert tokenizer.fingerprint in shown and f"  special {tokenizer.find('[NLU]'):>9}  [NLU]\n" in shown
    text = texts()[3]
    assert tokenizer.decode(tokenizer.encode(text)) == text and len(tokenizer.encode(text)) < len(text) / 2


def write_lines(path: Path) -> None:
    path.write_text("".join(json.dumps({"body": text}) + "\n" for text in texts()))


def write_zipped_lines(path: Path) -> None:
    path.write_bytes(gzip.compress("".join(json.dumps({"body": text}) + "\n" for text in texts()).encode()))


def write_table(path: Path) -> None:
    with path.open("w", newline="") as file:
        tsv = path.suffix.lower() == ".tsv"
        writer = csv.writer(file, delimiter="\t" if tsv else ",", quoting=csv.QUOTE_ALL if tsv else csv.QUOTE_MINIMAL)
        writer.writerows([["number", "body"], *enumerate(texts())])


def write_parquet(path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs the extra 'parquet'")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"body": texts()}), path)


@pytest.mark.parametrize(
    "name, write",
    [("a.jsonl", write_lines), ("a.jsonl.gz", write_zipped_lines), ("a.csv", write_table), ("a.TSV", write_table),
     ("a.v2.parquet", write_parquet)],
)  # fmt: skip
def test_files_are_read_by_their_suffix(tmp_path, model, name, write):
    write(tmp_path / name)
    assert train(tmp_path / "again.model", str(tmp_path / name), "--field", "body", "--vocab-size", "400") == 0
    assert (tmp_path / "again.model").read_bytes() == model.read_bytes()


def test_what_cannot_be_trained_is_explained(tmp_path, capsys):
    folder = str(text_folder())
    for arguments, message in [
        ([folder, "more.jsonl"], "several kinds"),
        ([folder, "--vocab-size", "100"], "vocab_size: 100"),
        ([folder, "--vocab-size", "100000"], "more than this text can fill"),
        ([folder, "--pad-to-multiple", "0"], "--pad-to-multiple: 0"),
        ([folder, "--symbols", "<mask>"], "symbols: '<mask>'"),
        ([str(tmp_path / "none.txt")], "none.txt"),
    ]:
        assert train(tmp_path / "m", *arguments) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


def test_show_says_what_a_vocabulary_holds(model, capsys):
    assert main(["tokenizer", "show", str(model), "a <mask> quick\n<extra_id_3>"]) == 0
    out = capsys.readouterr().out
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(model))
    tokenizer = SentencePieceTokenizer(model, 20)
    assert out.startswith(f"{model}: 400 ids, fingerprint {tokenizer.fingerprint}\n")
    head, tail = out.split("\n\n")
    rows = {line.split()[0]: line.split()[1:] for line in head.splitlines()[1:]}
    assert rows["padding"] == ["0", "<pad>"] and rows["EOS"] == ["1", "</s>"] and rows["mask"] == ["3", "<mask>"]
    assert rows["sentinels"] == ["20", "ids", str(tokenizer.sentinel_ids[0]), "to", str(tokenizer.sentinel_ids[19])]
    count, *lines = tail.splitlines()
    ids = pieces.encode("a <mask> quick\n<extra_id_3>")
    assert count == f"{len(ids)} tokens"
    assert [line.split(maxsplit=1) for line in lines] == [[str(i), repr(pieces.id_to_piece(i))] for i in ids]


def test_show_reads_the_other_kinds(tmp_path, capsys):
    assert main(["tokenizer", "show", "bytes", "é<extra_id_0>"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"bytes: 259 ids, fingerprint {ByteTokenizer.fingerprint}\n")
    assert [line.split()[0] for line in out.splitlines()[-3:]] == ["198", "172", "258"]
    assert main(["tokenizer", "show", str(tmp_path / "none.model")]) == 2
    assert "no file" in capsys.readouterr().err
    hf = pytest.importorskip("tokenizers", reason="needs the extra 'tokenizers'")
    made = hf.Tokenizer(hf.models.WordLevel({"[UNK]": 0, "fox": 1}, unk_token="[UNK]"))
    made.pre_tokenizer = hf.pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(["[SEP]", "<extra_id_0>", *(f"[{i}]" for i in range(40))])
    made.save(str(tmp_path / "made.json"))
    assert main(["tokenizer", "show", str(tmp_path / "made.json"), "the fox"]) == 0
    out = capsys.readouterr().out
    assert "sentinels       1  ids 3 to 3\n" in out and out.endswith("'[UNK]'\n        1  'fox'\n")
    assert "[0]" in out and "[39]" not in out and "and 24 more" in out
