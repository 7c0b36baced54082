"""Data sets that Hugging Face ``datasets`` saved to disk."""

import sys

import pytest

from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.config import HuggingFaceDataset

datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")

TEXTS = [f"document {number} é" for number in range(1000)]


@pytest.fixture(autouse=True)
def quiet():
    datasets.disable_progress_bars()


@pytest.fixture
def folder(tmp_path):
    rows = datasets.Dataset.from_dict({"text": TEXTS, "number": list(range(1000))})
    rows.save_to_disk(str(tmp_path / "plain"), num_shards=2)
    splits = datasets.DatasetDict({"train": rows, "test": datasets.Dataset.from_dict({"text": ["one", None]})})
    splits.save_to_disk(str(tmp_path / "splits"))
    return tmp_path


def test_ranges_of_rows_are_units(folder, monkeypatch):
    monkeypatch.setattr("t5x_like.input_pipeline.sources.files.UNIT_BYTES", 10_000)
    source = HuggingFaceDataset(str(folder / "plain"))
    assert len(source.units()) > 2
    assert list(source.texts()) == TEXTS


def test_splits(folder):
    assert list(HuggingFaceDataset(str(folder / "splits"), "train").texts()) == TEXTS
    source = HuggingFaceDataset(str(folder / "splits"), "test")
    assert [text for unit in source.units() for text in source.read_unit(unit)] == ["one", ""], "null is empty"
    with pytest.raises(UserError, match="(?s)no split is named.*train, test"):
        HuggingFaceDataset(str(folder / "splits")).units()
    with pytest.raises(UserError, match="did you mean 'train'"):
        HuggingFaceDataset(str(folder / "splits"), "trian").units()
    with pytest.raises(UserError, match="without splits"):
        HuggingFaceDataset(str(folder / "plain"), "train").units()


def test_columns_and_folders_that_are_not_there(folder):
    with pytest.raises(UserError, match="did you mean 'text'"):
        HuggingFaceDataset(str(folder / "plain"), field="txt").units()
    with pytest.raises(UserError, match="column 'number' holds int64"):
        HuggingFaceDataset(str(folder / "plain"), field="number").units()
    with pytest.raises(UserError, match="has no state.json"):
        HuggingFaceDataset(str(folder)).units()
    with pytest.raises(UserError, match="has no state.json"):
        HuggingFaceDataset(str(folder / "none")).units()


def test_what_other_programs_cache_beside_it_does_not_count(folder):
    source = HuggingFaceDataset(str(folder / "plain"))
    before = source.digest()
    (folder / "plain" / "cache-0123.arrow").write_bytes(b"x")
    assert source.digest() == before
    (folder / "plain" / "state.json").write_text((folder / "plain" / "state.json").read_text() + " ")
    assert source.digest() != before


def test_a_file_that_was_cut(folder):
    file = next((folder / "plain").glob("*.arrow"))
    file.write_bytes(file.read_bytes()[:-5000])
    source = HuggingFaceDataset(str(folder / "plain"))
    (error,) = [text for unit in source.units() for text in source.read_unit(unit)]
    assert isinstance(error, UserError) and "broken Arrow data" in str(error)


def test_no_rows(tmp_path):
    rows = datasets.Dataset.from_dict({"text": ["a", "b"]})
    empty = {
        "select": rows.select([]), "dict": datasets.Dataset.from_dict({"text": []}, features=rows.features),
        "filter": rows.filter(lambda row: False),
    }  # fmt: skip
    for name, each in empty.items():
        each.save_to_disk(str(tmp_path / name))
        with pytest.raises(UserError, match=f"no documents in .*{name}"):
            list(HuggingFaceDataset(str(tmp_path / name)).texts())
    datasets.DatasetDict({"train": rows, "test": empty["select"]}).save_to_disk(str(tmp_path / "splits"))
    assert list(HuggingFaceDataset(str(tmp_path / "splits"), "train").texts()) == ["a", "b"]
    with pytest.raises(UserError, match="no documents in .*, split test"):
        list(HuggingFaceDataset(str(tmp_path / "splits"), "test").texts())


def test_datasets_is_optional(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 't5x-like\[datasets\]'"):
        HuggingFaceDataset(str(folder / "plain")).units()
