"""The promise: the global batch of a step is a pure function of (seed, step), whatever reads it."""

import itertools
from typing import Any

import numpy as np
import pytest

from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.batches.features import tokens_in
from t5x_like.input_pipeline.batches.pipeline import Batches, process_rows
from t5x_like.input_pipeline.config import Bytes, Corpus, DataConfig, TextFiles
from t5x_like.input_pipeline.tokenizers.bytes import ByteTokenizer
from t5x_like.objectives import Autoregressive, MaskedLM, PrefixLM, SpanCorruption

CORPUS = Corpus("memory", TextFiles(("nowhere",)), Bytes(), "none", "made up")
KINDS = [
    (SpanCorruption(), "encoder-decoder"),
    (Autoregressive(), "decoder-only"),
    (PrefixLM(), "decoder-only"),
    (PrefixLM(), "encoder-decoder"),
    (MaskedLM(), "encoder-only"),
]
PACKINGS = ("concatenate", "first_fit", "best_fit", "none")


def make(
    split, objective, shape, packing: Any = "concatenate", batch_size=4, seed=7, length=24, shuffle=True, **options
):
    data = DataConfig(CORPUS, length, packing=packing, **options)
    return Batches({"memory": split}, ByteTokenizer(), objective, data, shape, batch_size, seed, shuffle)


def same(one, two) -> bool:
    return one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


@pytest.fixture
def split(split_of):
    """Documents of unequal lengths, ids 10 to 233, all different, so that every token can be found again."""
    return split_of(3, 50, 17, 1, 40, 2, 61, 9, 30, 11)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize(("objective", "shape"), KINDS)
def test_readers_of_any_number_of_processes_give_the_batch_of_the_step(split, objective, shape, packing):
    batches = make(split, objective, shape, packing)
    start, stop = 2, 9  # across the end of an epoch
    assert batches.epoch_of(start) < 1 < batches.epoch_of(stop)
    for count in (1, 2, 4):
        readers = [make(split, objective, shape, packing).reader(start, i, count, stop) for i in range(count)]
        for step in range(start, stop):
            shards = [next(reader) for reader in readers]
            assert {number for number, _ in shards} == {step}
            whole = {name: np.concatenate([shard[name] for _, shard in shards]) for name in shards[0][1]}
            assert same(whole, batches.batch(step))
        assert all(next(reader, None) is None for reader in readers), "stop_step is not read"


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_threads_change_nothing_and_seeking_is_reading_on(split, threads):
    batches = make(split, SpanCorruption(), "encoder-decoder", read_threads=threads)
    read = list(itertools.islice(batches.reader(), 12))
    assert [step for step, _ in read] == list(range(12))
    step, sought = next(batches.reader(11))
    assert step == 11 and same(sought, read[11][1])
    assert same(batches.batch(10**9), make(split, SpanCorruption(), "encoder-decoder").batch(10**9))


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize(("objective", "shape"), KINDS)
def test_some_rows_are_those_rows_of_the_whole(split, objective, shape, packing):
    batches = make(split, objective, shape, packing, batch_size=6)
    whole = batches.batch(3)
    assert tuple(whole) == batches.feature_names
    for rows in (slice(0, 2), slice(5, 6), slice(None, None, 2)):
        assert same(batches.batch(3, rows), {name: array[rows] for name, array in whole.items()})


def text_of(batches: Batches, steps: range, rows: int) -> list[int]:
    """All ids of documents (10 and up, so neither EOS nor padding) on either side of the first ``rows`` rows."""
    arrays = [batches.batch(step) for step in steps]
    tokens = np.concatenate([batch["targets"] for batch in arrays])[:rows].reshape(-1)
    if "encoder_tokens" in arrays[0] and "decoder_tokens" in arrays[0]:
        inputs = np.concatenate([batch["encoder_tokens"] for batch in arrays])[:rows].reshape(-1)
        tokens = np.concatenate([tokens, inputs])
    return sorted(tokens[(tokens >= 10) & (tokens < 234)].tolist())


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize(("objective", "shape"), KINDS)
def test_each_epoch_holds_every_token_exactly_once(split, objective, shape, packing):
    batches = make(split, objective, shape, packing, batch_size=1)
    rows = batches.examples_per_epoch
    expected = list(range(10, 234))
    for epoch in range(3):
        found = text_of(batches, range(epoch * rows, (epoch + 1) * rows), rows)
        assert len(found) == len(set(found)), "no token comes twice"
        if packing == "concatenate" or objective.minimum_length == 1:
            assert found == expected
        else:
            assert len(found) >= len(expected) - batches.tokens_left_out and batches.tokens_left_out <= 5


def test_epochs_differ_in_order_borders_and_noise_and_seeds_differ(split):
    batches = make(split, Autoregressive(), "decoder-only", batch_size=1)
    rows = batches.examples_per_epoch
    epochs = [[tuple(batches.batch(e * rows + i)["targets"][0].tolist()) for i in range(rows)] for e in range(3)]
    assert not set(epochs[0]) & set(epochs[1]) or not set(epochs[1]) & set(epochs[2]), "borders move"
    assert not same(batches.batch(0), make(split, Autoregressive(), "decoder-only", batch_size=1, seed=8).batch(0))
    # Short pieces have one span, which lies at the end and leaves nothing to chance: so many spans here.
    packed = make(split, SpanCorruption(0.4, 2.0), "encoder-decoder", "none", batch_size=1)
    rows = packed.examples_per_epoch
    epochs = [{tuple(packed.batch(e * rows + i)["encoder_tokens"][0].tolist()) for i in range(rows)} for e in range(2)]
    assert len(epochs[0] & epochs[1]) < rows / 2, "the same pieces, other noise"


def test_without_shuffling_text_comes_in_order(split):
    batches = make(split, Autoregressive(), "decoder-only", batch_size=20, shuffle=False)
    targets = batches.batch(0)["targets"][: batches.examples_per_epoch].reshape(-1)
    assert targets[targets >= 10].tolist() == list(range(10, 234))


@pytest.mark.parametrize("packing", PACKINGS)
def test_attention_never_crosses_a_document(split, packing):
    """Ids of a segment are neighbours in one document; a document that ends inside a row ends in EOS."""
    borders = set((split.offsets[1:-1] + 10).tolist())
    batches = make(split, Autoregressive(), "decoder-only", packing, batch_size=1)
    eos = 0
    for step in range(batches.examples_per_epoch):
        batch = batches.batch(step)
        segments, targets = batch["decoder_segments"][0], batch["targets"][0]
        for segment in range(1, segments.max() + 1):
            mine = targets[segments == segment]
            text = mine[:-1] if mine[-1] == 1 else mine
            eos += int(mine[-1] == 1)
            assert np.all(np.diff(text) == 1) and not borders & set(text[1:].tolist())
    assert eos == len(split)


def test_packing_fills_rows_that_single_documents_leave_empty(split):
    fill = {}
    for packing in PACKINGS:
        batches = make(split, Autoregressive(), "decoder-only", packing, batch_size=1)
        counts = [tokens_in(batches.batch(step)) for step in range(batches.examples_per_epoch)]
        fill[packing] = sum(count.tokens for count in counts) / sum(count.slots for count in counts)
    assert fill["none"] < 0.75 < 0.85 < fill["first_fit"] <= fill["best_fit"] <= 1.0 and fill["concatenate"] > 0.93


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize(("objective", "shape"), KINDS)
def test_heldout_rows_come_exactly_once_whatever_the_seed_and_batch_size(split, objective, shape, packing):
    def rows(batch_size, seed):
        found = []
        batches = make(split, objective, shape, packing, batch_size, seed)
        for batch in batches.heldout_batches():
            assert all(len(array) == batch_size for array in batch.values())
            segments = batch["encoder_segments" if "encoder_segments" in batch else "decoder_segments"]
            for row in np.flatnonzero(segments.any(axis=1)):
                found.append(tuple(batch[name][row].tobytes() for name in batch))
            assert not batch["weights"][~segments.any(axis=1)].any()
        assert len(found) == batches.examples_per_epoch
        return found

    assert rows(3, 1) == rows(5, 2)


def test_heldout_shards_and_limit(split):
    batches = make(split, SpanCorruption(), "encoder-decoder", batch_size=4)
    whole = list(batches.heldout_batches())
    shards = [list(batches.heldout_batches(process_index=i, process_count=2)) for i in range(2)]
    for step, batch in enumerate(whole):
        assert same(batch, {name: np.concatenate([shard[step][name] for shard in shards]) for name in batch})
    assert len(list(batches.heldout_batches(limit=1))) == 1
    assert len(whole) == -(-batches.examples_per_epoch // 4)


def test_a_text_shorter_than_one_piece_is_one_padded_row(split_of):
    batches = make(split_of(5), SpanCorruption(), "encoder-decoder", batch_size=2)
    assert batches.examples_per_epoch == 1 and batches.epoch_of(3) == 6.0
    batch = batches.batch(0)
    assert batch["encoder_segments"].any(axis=1).all() and not batch["encoder_segments"][:, -1].any()


def test_mistakes(split, split_of):
    with pytest.raises(UserError, match="MaskedLM cannot train a model that is decoder-only"):
        make(split, MaskedLM(), "decoder-only")
    with pytest.raises(UserError, match="train.batch_size"):
        make(split, MaskedLM(), "encoder-only", batch_size=0)
    with pytest.raises(UserError, match="seed"):
        make(split, MaskedLM(), "encoder-only", seed=-1)
    with pytest.raises(UserError, match="1 tokens in 1 documents: not one example"):
        make(split_of(1), SpanCorruption(), "encoder-decoder")
    batches = make(split, MaskedLM(), "encoder-only")
    with pytest.raises(UserError, match="step"):
        batches.batch(-1)
    with pytest.raises(UserError, match="reading from 5 to 3"):
        batches.reader(5, stop_step=3)
    with pytest.raises(UserError, match="4 rows cannot be shared out among 3 processes"):
        batches.reader(0, 0, 3)
    with pytest.raises(UserError, match="process_index"):
        process_rows(4, 2, 2)


