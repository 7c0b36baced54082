"""An endless source, trained on window by window: batches as exact as of a corpus that ends, two windows on disk."""

import dataclasses
import hashlib
import itertools
from dataclasses import dataclass
from pathlib import Path

import pytest

from t5x_like.config import Source
from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.batches.pipeline import Batches
from t5x_like.input_pipeline.batches.windows import Windows
from t5x_like.input_pipeline.config import Bytes, Corpus, DataConfig, Mixture, Part, SentencePiece, TextFiles
from t5x_like.input_pipeline.prepare.vocabulary import load_tokenizer
from t5x_like.input_pipeline.tokenizers.bytes import ByteTokenizer
from t5x_like.objectives import UL2, Autoregressive, PrefixLM


@dataclass(frozen=True)
class Counting(Source):
    """Never ends; as a user defines it."""

    word: str = "number"

    def read(self, unit):
        for number in itertools.count():
            yield " ".join([f"{self.word} {number}"] * (1 + number % 5))


def endless(tmp_path, **options) -> DataConfig:
    corpus = Corpus("endless", Counting(), Bytes(), "none", "made up", heldout=0.2, window=40)
    return DataConfig(dataclasses.replace(corpus, **options), 32, cache=str(tmp_path / "cache"), prefetch_batches=1)


def open_windows(data: DataConfig, objective=None, batch_size=4, seed=3) -> Windows:
    objective = objective or Autoregressive()
    common = (ByteTokenizer(), objective, data, "decoder-only", batch_size)
    identity = (objective, "decoder-only", batch_size)
    return Windows(data.corpus, Bytes(), lambda splits, own: Batches(splits, *common, own), data, identity, seed)


def digest(batch) -> str:
    return hashlib.sha256(b"".join(batch[name].tobytes() for name in sorted(batch))).hexdigest()


def on_disk(data: DataConfig) -> set[str]:
    found = Path(data.cache, "corpora").glob("*endless-window*")
    return {path.name.split("-train-")[0].lstrip(".") for path in found if path.is_dir()}


def steps_of(windows: Windows, count: int) -> int:
    """The first step of window ``count``."""
    return next(step for step in itertools.count() if windows.epoch_of(step) >= count)


def test_read_over_four_windows_with_two_on_disk_at_most(tmp_path):
    data = endless(tmp_path)
    end = steps_of(open_windows(endless(tmp_path / "first")), 4)
    seen, most = [], 0
    for step, batch in open_windows(data).reader(stop_step=end):
        seen.append(digest(batch))
        most = max(most, len(on_disk(data)))
        assert step == len(seen) - 1
    assert len(seen) == end and len(set(seen)) == end and most == 2
    assert len(on_disk(data)) <= 2
    sought = open_windows(endless(tmp_path / "sought"))
    assert [digest(sought.batch(step)) for step in reversed(range(end))] == seen[::-1]


def test_resumed_in_the_third_window_with_and_without_the_ledger(tmp_path):
    data = endless(tmp_path)
    windows = open_windows(data)
    ends = steps_of(windows, 1), steps_of(windows, 2)
    start = ends[1] + 1
    straight = [digest(batch) for _, batch in windows.reader(stop_step=start + 8)]
    known = windows.seen(start)
    again = open_windows(data)
    assert again.seen(start) == known and 2.0 < again.epoch_of(start) < 3.0
    assert [digest(batch) for _, batch in again.reader(start, stop_step=start + 8)] == straight[start:]
    left = on_disk(data)
    assert [open_windows(data).epoch_of(end) for end in ends] == [1.0, 2.0]
    assert on_disk(data) == left, "the end of a window is known without it"
    for file in Path(data.cache, "corpora").glob("*.json"):
        file.unlink()
    lost = open_windows(data)
    assert [digest(batch) for _, batch in lost.reader(start, stop_step=start + 8)] == straight[start:]
    assert lost.seen(start) == known and not list(lost.reader(start, stop_step=start))


def test_processes_share_each_batch_and_seeds_differ(tmp_path):
    data = endless(tmp_path)
    end = steps_of(open_windows(data), 3)
    whole = [batch["targets"] for _, batch in open_windows(data).reader(stop_step=end)]
    for index in (0, 1):
        half = [batch["targets"] for _, batch in open_windows(data).reader(0, index, 2, end)]
        assert all((a[2 * index : 2 * index + 2] == b).all() for a, b in zip(whole, half, strict=True))
    assert any((a != open_windows(data, seed=4).batch(step)["targets"]).any() for step, a in enumerate(whole[:3]))


def test_several_objectives_take_the_text_of_a_window_once(tmp_path):
    windows = open_windows(endless(tmp_path), UL2((PrefixLM(), PrefixLM())), batch_size=2)
    steps = steps_of(windows, 1)
    one = open_windows(endless(tmp_path), PrefixLM(), batch_size=2)
    assert steps == steps_of(one, 1)
    assert [digest(batch) for _, batch in windows.reader(stop_step=steps + 2)] == [
        digest(windows.batch(step)) for step in range(steps + 2)
    ]


def test_a_folder_that_grows(tmp_path):
    (tmp_path / "texts").mkdir()
    for number in range(10):
        (tmp_path / "texts" / f"{number:03}.txt").write_text(f"text {number} " * 20)
    source = TextFiles((str(tmp_path / "texts"),))
    data = endless(tmp_path, source=source, window=8, heldout=0.0)
    windows = open_windows(data)
    first = steps_of(windows, 1)
    before = digest(windows.batch(first - 1))
    with pytest.raises(UserError, match="(?s)ended 2 documents after the start of window 1.*add documents and resume"):
        windows.batch(first)
    for number in range(10, 20):
        (tmp_path / "texts" / f"{number:03}.txt").write_text(f"text {number} " * 20)
    again = open_windows(data)
    assert digest(again.batch(first - 1)) == before and again.batch(first)
    (tmp_path / "texts" / "000.txt").write_text("another text")
    list(again.reader(first, stop_step=first + 2))  # the first window is not needed any more
    with pytest.raises(UserError, match="gives other documents in window 0 than before"):
        list(open_windows(data).reader(0, stop_step=1))


def test_a_vocabulary_is_trained_on_the_first_window_alone(tmp_path):
    data = endless(tmp_path, tokenizer=SentencePiece(280, sentinels=2))
    assert load_tokenizer(data.corpus, data.cache).vocab_size == 280


def test_what_does_not_go_together(tmp_path):
    corpus = endless(tmp_path).corpus
    with pytest.raises(UserError, match="none in a mixture"):
        Mixture("m", (Part(corpus),), Bytes())
    with pytest.raises(UserError, match="a corpus with a window"):
        DataConfig(corpus, 32, skip=("1:2",))
    with pytest.raises(UserError, match="less than a batch"):
        open_windows(endless(tmp_path, window=2, heldout=0.0), batch_size=64)
