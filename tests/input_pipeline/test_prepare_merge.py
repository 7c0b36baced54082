"""Splitting, dropping copies and joining parts, against the same rules written down plainly."""

import hashlib
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from t5x_like.input_pipeline.config import Bytes, Corpus, TextFiles
from t5x_like.input_pipeline.prepare import merge, parts
from t5x_like.input_pipeline.prepare.merge import Marks
from t5x_like.input_pipeline.prepare.prepare import prepare
from t5x_like.input_pipeline.sources.files import Unit
from t5x_like.input_pipeline.sources.splits import division_of
from t5x_like.input_pipeline.tokenizers.bytes import ByteTokenizer


def plainly(texts: list[str], heldout: float, deduplicate: bool) -> tuple[list[str], list[str]]:
    """Training and held-out documents, of two documents or more."""
    if deduplicate:
        texts = list(dict.fromkeys(texts))
    shares = [int(hashlib.sha256(text.encode()).hexdigest()[:12], 16) / 2**48 for text in texts]
    held = [share < heldout for share in shares]
    if heldout > 0 and not any(held):
        held = [share == min(shares) for share in shares]
    if all(held):
        held = [share != max(shares) for share in shares] if heldout > 0 and len(set(shares)) > 1 else held
    if heldout > 0 and len(set(shares)) == 1:
        held = [index == 0 for index in range(len(texts))]
    pairs = list(zip(texts, held, strict=True))
    return [text for text, is_held in pairs if not is_held], [text for text, is_held in pairs if is_held]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    documents=st.lists(st.sampled_from([*"abcdefghijklmnop", "two words", "\u00e9" * 9]), min_size=2, max_size=30),
    heldout=st.sampled_from([0.0, 1e-9, 0.1, 0.5, 0.9, 0.999999]),
    deduplicate=st.booleans(),
    files=st.integers(1, 5),
    chunk=st.integers(1, 7),
    bucket=st.integers(1, 40),
)
def test_a_cache_is_what_the_rules_say(documents, heldout, deduplicate, files, chunk, bucket):
    if len(set(documents)) < 2:
        documents = [*documents, "another"]
    with tempfile.TemporaryDirectory() as temporary, mock.patch.multiple(
        merge, _CHUNK_DOCUMENTS=chunk, _BUCKET_DOCUMENTS=bucket
    ), mock.patch.multiple(parts, _SMALLEST_PART=1, _UNIT_COST=1):
        folder = Path(temporary) / "texts"
        folder.mkdir()
        for number, lines in enumerate(np.array_split(np.asarray(documents, object), files)):
            (folder / f"{number}.txt").write_text("".join(f"{line}\n" for line in lines))
        source = TextFiles((str(folder),), documents="line")
        corpus = Corpus("c", source, Bytes(), "none", "made up", heldout, deduplicate=deduplicate)
        made = prepare(corpus, Bytes(), temporary)
        found = []
        for name in ("train", "heldout"):
            split = made.split(name) if made.manifest["splits"][name]["documents"] else []
            found.append([ByteTokenizer().decode(split.document(i).tolist()) for i in range(len(split))])
        assert tuple(found) == plainly(documents, heldout, deduplicate)
        duplicates = len(documents) - len(set(documents)) if deduplicate else 0
        assert made.manifest["counts"]["duplicates"] == duplicates


@given(
    sizes=st.lists(st.integers(0, 300), max_size=60),
    smallest=st.integers(1, 200),
    largest=st.integers(200, 1000),
    most=st.integers(1, 20),
)
def test_parts_hold_every_unit_once_in_order(sizes, smallest, largest, most):
    units = [Unit(f"file {number}", size=size) for number, size in enumerate(sizes)]
    with mock.patch.multiple(parts, _SMALLEST_PART=smallest, _LARGEST_PART=largest, _PARTS=most, _UNIT_COST=1):
        made = parts.cut_into_parts(units)
    assert [unit for part in made for unit in part.units] == units
    assert [part.number for part in made] == list(range(len(made)))
    assert len({part.identity for part in made}) == len(made)
    bound = max(smallest, min(largest, sum(sizes) // most))
    assert all(part.units and sum(unit.size + 1 for unit in part.units[:-1]) < bound for part in made)


@given(st.lists(st.integers(0, 99), max_size=150), st.integers(0, 99), st.integers(0, 40))
def test_marks(indices, start, count):
    marks = Marks(100)
    marks.set(np.asarray(indices, np.int64))
    count = min(count, 100 - start)
    assert marks.get(start, count).tolist() == [index in indices for index in range(start, start + count)]
    assert marks.count() == len(set(indices))


@pytest.mark.parametrize("heldout", [0.0, 1e-9, 0.3, 1 - 1e-9])
@pytest.mark.parametrize("shares", [(0.0, 0.5), (0.25, 0.25 + 2**-48), (0.0, 1 - 2**-48)])
def test_a_division_leaves_neither_side_empty(heldout, shares):
    division = division_of(heldout, *shares)
    assert [division.holds_out(share, index) for index, share in enumerate(shares)] == [heldout > 0, False]


def test_foreign_files_among_the_hashes_do_no_harm(tmp_path, monkeypatch):
    """Network file systems keep a file that is open and removed under a name of their own."""
    documents = np.zeros(3, parts.DOCUMENT)
    documents["hash"] = [(1, 2), (1, 3), (1, 2)]
    (tmp_path / "000000").mkdir()
    documents.tofile(tmp_path / "000000" / "documents")
    monkeypatch.setattr(merge, "_BUCKET_DOCUMENTS", 1)
    make = Path.mkdir

    def with_foreign_file(self, *given, **options):
        make(self, *given, **options)
        np.full(2, 1, np.dtype(("<i8", 3))).tofile(self / ".nfs0001")  # as two copies, the second of them document 1

    monkeypatch.setattr(Path, "mkdir", with_foreign_file)
    marks = merge.mark_copies([merge.PartFiles(tmp_path / "000000", 3)], tmp_path)
    assert marks.get(0, 3).tolist() == [False, False, True]
    assert merge.mark_copies([], tmp_path).count() == 0


def test_a_half_hash_alone_makes_no_copy(tmp_path):
    documents = np.zeros(4, parts.DOCUMENT)
    documents["hash"] = [(1, 2), (1, 3), (1, 2), (2, 2)]
    (tmp_path / "000000").mkdir()
    documents.tofile(tmp_path / "000000" / "documents")
    marks = merge.mark_copies([merge.PartFiles(tmp_path / "000000", 4)], tmp_path)
    assert marks.get(0, 4).tolist() == [False, False, True, False]
    assert [path.name for path in tmp_path.iterdir()] == ["000000"]
