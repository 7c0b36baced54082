"""C4 and Wikipedia in made folders of exactly the layouts that Hugging Face and TFDS give them on disk."""

import gzip
import json
import struct
from pathlib import Path

import pytest

from t5x_like.core.loading import shipped
from t5x_like.input_pipeline.config import Bytes, Corpus
from t5x_like.input_pipeline.prepare.prepare import prepare
from t5x_like.input_pipeline.recipes import load_recipe
from t5x_like.input_pipeline.sources.records import masked_crc32c

C4 = [
    {"text": f"Page {n}\nof \u201cclean\u201d text.", "timestamp": "2019-04-25T12:57:54Z", "url": f"https://a.org/{n}"}
    for n in range(40)
]
ARTICLES = [
    {"id": str(n), "url": f"https://en.wikipedia.org/wiki/{n}", "title": f"Article {n}", "text": f"Article {n}\n\nis"}
    for n in range(40)
]


def corpus_of(name: str, directory: Path, **arguments) -> Corpus:
    made = load_recipe(shipped("data") / f"{name}.py", directory=str(directory), tokenizer=Bytes(), **arguments)
    assert isinstance(made, Corpus)
    return made


def check(corpus: Corpus, rows: list[dict[str, str]], cache: Path) -> None:
    assert list(corpus.source.texts()) == [row["text"] for row in rows]
    made = prepare(corpus, corpus.tokenizer, str(cache))
    assert made.split("train") and not made.left_out()


def write_c4(folder: Path) -> Path:
    """As ``allenai/c4`` has it: validation beside train, and shards in the order of their numbers."""
    for split, rows in (("train", C4), ("validation", C4[:3])):
        for shard in range(4):
            name = f"en/c4-{split}.{shard:05}-of-00004.json.gz"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            lines = [json.dumps(row) for row in rows[shard * 10 : shard * 10 + 10]]
            (folder / name).write_bytes(gzip.compress("".join(line + "\n" for line in lines).encode()))
    (folder / "README.md").write_text("---\nlicense: odc-by\n---\n")
    return folder / "en"


def write_wikipedia(folder: Path) -> Path:
    """As ``wikimedia/wikipedia`` has it."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (folder / "20231101.en").mkdir()
    for shard in range(2):
        rows = pyarrow.Table.from_pylist(ARTICLES[shard * 20 : shard * 20 + 20])
        parquet.write_table(rows, folder / "20231101.en" / f"train-{shard:05}-of-00002.parquet")
    return folder / "20231101.en"


def write_tfds(folder: Path, name: str, config: str, version: str, rows: list[dict], file_format: str) -> Path:
    """As ``tfds build`` leaves it: NAME/CONFIG/VERSION, in which shards say how many they are. TFDS itself writes no
    TFRecord without TensorFlow."""
    tfds = pytest.importorskip("tensorflow_datasets")
    from array_record.python.array_record_module import ArrayRecordReader

    directory = folder / name / config / version
    directory.mkdir(parents=True)
    info = tfds.core.DatasetInfo(
        builder=tfds.core.DatasetIdentity(
            name=name, config_name=config, version=version, data_dir=str(directory), module_name=""
        ),
        features=tfds.features.FeaturesDict({key: tfds.features.Text() for key in rows[0]}),
    )
    writer = tfds.core.SequentialWriter(info, 10, file_format="array_record", overwrite=True)
    writer.initialize_splits(["train", "validation"])
    writer.add_examples({"train": rows, "validation": rows[:3]})
    writer.close_all()
    for split in ("train", "validation"):
        files = sorted(directory.glob(f"{name}-{split}.array_record-*"))
        for number, file in enumerate(files):
            final = directory / f"{name}-{split}.{file_format}-{number:05}-of-{len(files):05}"
            if file_format == "tfrecord":
                pytest.importorskip("google_crc32c")
                final.write_bytes(b"".join(map(framed, ArrayRecordReader(str(file)).read_all())))
                file.unlink()
            else:
                file.rename(final)
    described = json.loads((directory / "dataset_info.json").read_text()) | {"fileFormat": file_format}
    template = {"filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"}
    described["splits"] = [split | template for split in described["splits"]]
    (directory / "dataset_info.json").write_text(json.dumps(described))
    return directory


def framed(record: bytes) -> bytes:
    length = struct.pack("<Q", len(record))
    return length + struct.pack("<I", masked_crc32c(length)) + record + struct.pack("<I", masked_crc32c(record))


def test_c4_of_hugging_face(tmp_path):
    folder = write_c4(tmp_path)
    check(corpus_of("c4", folder), C4, tmp_path / "cache")
    assert len(list(corpus_of("c4", folder, split="validation").source.texts())) == 3
    (folder / "c4-train.00002-of-00004.json.gz").unlink()
    (told,) = corpus_of("c4", folder).source.left_out()
    assert told.startswith("1 of 4 shards") and told.endswith("c4-train.*-of-00004.json.gz, which are not there: 2")


def test_c4_in_the_cache_of_the_hub(tmp_path):
    """Links into a folder of files named by their digests, as ``hf download`` leaves it without ``--local-dir``."""
    real = write_c4(tmp_path / "real")
    hub = tmp_path / "hub" / "datasets--allenai--c4"
    snapshot = hub / "snapshots" / "1588ec454efa1a09f29cd18ddd04fe05fc8653a2" / "en"
    (hub / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(real.iterdir(), reverse=True)):
        file.rename(hub / "blobs" / f"{number:064x}")
        (snapshot / file.name).symlink_to(Path("../../../blobs") / f"{number:064x}")
    check(corpus_of("c4", snapshot), C4, tmp_path / "cache")


def test_wikipedia_of_hugging_face(tmp_path):
    check(corpus_of("wikipedia", write_wikipedia(tmp_path)), ARTICLES, tmp_path / "cache")


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_both_of_tfds(tmp_path, file_format):
    folder = write_tfds(tmp_path, "c4", "en", "3.1.0", C4, file_format)
    assert len(list(folder.glob(f"c4-train.{file_format}-*-of-00004"))) == 4
    check(corpus_of("c4", folder, tfds=True), C4, tmp_path / "cache")
    assert len(list(corpus_of("c4", folder, tfds=True, split="validation").source.texts())) == 3
    folder = write_tfds(tmp_path, "wikipedia", "20230601.en", "1.0.0", ARTICLES, file_format)
    check(corpus_of("wikipedia", folder, tfds=True), ARTICLES, tmp_path / "cache")
