"""Batches of a source that is read as it comes: the same again with as many processes, resumed by reading again."""

import dataclasses
import itertools

import numpy as np
import pytest

import t5x_like.input_pipeline.batches.streaming as streaming
from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.batches.streaming import StreamingBatches, require_streamable
from t5x_like.input_pipeline.config import Bytes, Corpus, DataConfig, Filters, JsonLines, SentencePiece
from t5x_like.input_pipeline.tokenizers.tokenizer import ByteTokenizer
from t5x_like.objectives import UL2, Autoregressive, SpanCorruption


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    """120 documents; document i is the letter pairs of its number, so that each can be found again."""
    file = tmp_path_factory.mktemp("stream") / "texts.jsonl"
    words = np.random.default_rng(0).integers(3, 30, 120)
    file.write_text("".join(f'{{"text": "{" ".join([f"d{i:03}"] * int(n))}"}}\n' for i, n in enumerate(words)))
    return Corpus("stream", JsonLines((str(file),)), Bytes(), "none", "made up", heldout=0.1)


def make(corpus, packing, objective=None, shape="decoder-only", batch_size=4):
    data = DataConfig(corpus, 64, packing=packing, streaming=True)
    return StreamingBatches(corpus, ByteTokenizer(), objective or Autoregressive(), data, shape, batch_size, 3)


def same(one, two) -> bool:
    return all(np.array_equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("packing", ["concatenate", "first_fit", "none"])
def test_resuming_is_reading_again_and_processes_share_the_documents(corpus, packing):
    batches = make(corpus, packing)
    read = list(itertools.islice(batches.reader(), 9))
    assert [step for step, _ in read] == list(range(9)) and tuple(read[0][1]) == batches.feature_names
    again = list(itertools.islice(make(corpus, packing).reader(5), 4))
    assert all(a == b and same(x, y) for (a, x), (b, y) in zip(again, read[5:], strict=True))
    shards = [next(make(corpus, packing).reader(0, i, 2))[1] for i in range(2)]
    assert all(len(shard["targets"]) == 2 for shard in shards)
    texts = [set(ByteTokenizer().decode(shard["targets"].reshape(-1).tolist()).split()) for shard in shards]
    whole = [{word for word in each if len(word) == 4} for each in texts]
    assert whole[0] and whole[1] and not whole[0] & whole[1], "no document in two processes"


def test_every_training_document_is_read_and_no_held_out_one(corpus, monkeypatch):
    monkeypatch.setattr(streaming, "_SHUFFLE_WINDOW", 8)
    batches = make(corpus, "first_fit", batch_size=1)
    heldout = ByteTokenizer().decode(
        np.concatenate([batch["targets"].reshape(-1) for batch in batches.heldout_batches()]).tolist()
    )
    kept = {word for word in heldout.split() if len(word) == 4}
    found, counts = set(), []
    for _, batch in batches.reader():
        found |= set(ByteTokenizer().decode(batch["targets"].reshape(-1).tolist()).replace("d", " d").split())
        counts.append(np.count_nonzero(batch["decoder_segments"]))
        if batches.epoch_of(0) >= 2:
            break
    numbers = {word for word in found if len(word) == 4}
    assert 5 < len(kept) < 30 and not kept & numbers
    assert len(kept | numbers) == 120 and np.mean(counts) > 0.8 * 64
    assert batches.seen(0)["stream"].tokens == sum(counts)


def test_texts_too_short_for_an_example_are_no_endless_search(tmp_path):
    (tmp_path / "short.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    short = Corpus("short", JsonLines((str(tmp_path / "short.jsonl"),)), Bytes(), "none", "made up", heldout=0.0)
    with pytest.raises(UserError, match="2 documents to train on, none for process 0 that is long enough"):
        next(make(short, "first_fit", SpanCorruption(), "encoder-decoder").reader())


def test_tokens_seen_are_those_given_out(corpus):
    batches, counted = make(corpus, "first_fit"), 0
    for _, batch in itertools.islice(batches.reader(), 5):
        counted += np.count_nonzero(batch["decoder_segments"])
        assert batches.seen(0)["stream"].tokens == counted and batches.seen(0)["stream"].epochs < 1


def test_segments_are_documents_and_joined_rows_are_full(corpus):
    _, batch = next(make(corpus, "concatenate").reader())
    assert (batch["decoder_segments"] > 0).all()
    for row in range(4):
        for segment in range(1, batch["decoder_segments"][row].max() + 1):
            text = ByteTokenizer().decode(batch["targets"][row][batch["decoder_segments"][row] == segment].tolist())
            assert len({word for word in text.split() if len(word) == 4}) <= 1, "one document a segment"
    _, batch = next(make(corpus, "concatenate", SpanCorruption(), "encoder-decoder").reader())
    assert (batch["encoder_segments"] == 1).all()


def test_held_out_batches_are_the_same_each_time_and_shared_out(corpus):
    batches = make(corpus, "none")
    whole = list(batches.heldout_batches())
    assert all(same(x, y) for x, y in zip(whole, batches.heldout_batches(), strict=True))
    shards = [list(batches.heldout_batches(process_index=i, process_count=2)) for i in range(2)]
    for step, batch in enumerate(whole):
        assert same(batch, {name: np.concatenate([shard[step][name] for shard in shards]) for name in batch})
    assert len(list(batches.heldout_batches(1))) == 1


def test_mistakes(corpus):
    with pytest.raises(UserError, match="with UL2"):
        make(corpus, "none", UL2(), "encoder-decoder")
    with pytest.raises(UserError, match="reading from -1"):
        make(corpus, "none").reader(-1)
    with pytest.raises(UserError, match="deduplicate"):
        require_streamable(dataclasses.replace(corpus, deduplicate=True))
    spans = make(dataclasses.replace(corpus, filters=Filters(max_characters=10)), "none")
    with pytest.raises(UserError, match="0 documents to train on"):
        next(spans.reader())
    with pytest.raises(UserError, match="tokenizer.path"):
        require_streamable(dataclasses.replace(corpus, tokenizer=SentencePiece()))
    require_streamable(corpus)
    one = dataclasses.replace(corpus, heldout=0.99)
    with pytest.raises(UserError, match="documents to train on"):
        next(make(one, "none", batch_size=50).reader(0, 49, 50))
