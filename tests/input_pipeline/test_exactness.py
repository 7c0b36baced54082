"""The promise in full: a mixture of three corpora of unequal lengths, packed, three epochs in, whoever reads it."""

import dataclasses
import hashlib
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from t5x_like.core.config import to_json
from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.batches.order import ExampleRandom, permutation
from t5x_like.input_pipeline.batches.pipeline import Batches
from t5x_like.input_pipeline.config import Bytes, Corpus, DataConfig, Mixture, Part, TextFiles, corpora
from t5x_like.input_pipeline.prepare.prepare import prepare
from t5x_like.input_pipeline.tokenizers.bytes import ByteTokenizer
from t5x_like.objectives import UL2, Autoregressive, SpanCorruption

PINNED = ["78078f8b9401391b", "5fac7aae140f360b", "f3ed5d64b649ed1b", "2ab862d4e27c4f01"]
BATCH = 12  # rows: 1, 2, 3 and 4 processes share them


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DataConfig:
    """Three corpora of 5, 12 and 30 documents, of about 0.3, 3 and 10 kB."""
    root, draw = tmp_path_factory.mktemp("mixture"), np.random.default_rng(0)
    parts = []
    for name, documents, rate in (("small", 5, 1.0), ("middle", 12, 2.0), ("large", 30, 4.0)):
        (root / name).mkdir()
        for number in range(documents):
            text = "".join(draw.choice(list("abcdefgh \n"), int(draw.integers(20, 60 + 20 * documents))))
            (root / name / f"{number:02}.txt").write_text(f"{name} {text}")
        corpus = Corpus(name, TextFiles((str(root / name),)), Bytes(), "none", "made up", heldout=0.1)
        parts.append(Part(corpus, rate))
    mixture = Mixture("all", (parts[0], Part(Mixture("inner", tuple(parts[1:]), Bytes()), 3.0)), Bytes())
    return DataConfig(mixture, 64, packing="best_fit", cache=str(root / "cache"))


def open_batches(data, objective=None, batch_size=BATCH, **options) -> Batches:
    data = dataclasses.replace(data, **options)
    splits = {each.name: prepare(each, Bytes(), data.cache).split("train") for each in corpora(data.corpus)}
    return Batches(splits, ByteTokenizer(), objective or SpanCorruption(), data, "encoder-decoder", batch_size, 5)


def digest(batch) -> str:
    return hashlib.sha256(b"".join(batch[name].tobytes() for name in sorted(batch))).hexdigest()


def joined(shards) -> str:
    return digest({name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]})


def steps_of_three_epochs(batches) -> int:
    """The first step before which every stream has been through its rows three times."""
    return next(
        step for step in itertools.count(0, 16) if min(seen.epochs for seen in batches.seen(step).values()) > 3
    )


def test_any_number_of_processes_and_threads_reads_the_same_global_batches(data):
    batches = open_batches(data)
    start = steps_of_three_epochs(batches)
    expected = [digest(batches.batch(step)) for step in range(start, start + 6)]
    assert len(set(expected)) == 6
    for count in (1, 2, 3, 4):
        for threads in (0, 2):
            readers = [
                open_batches(data, read_threads=threads).reader(start, index, count, start + 6)
                for index in range(count)
            ]
            found = [joined([batch for _, batch in shards]) for shards in zip(*readers, strict=True)]
            assert found == expected


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "count"), [(2, 1), (1, 2)])
def test_worker_processes_read_the_same_global_batches(data, workers, count):
    batches = open_batches(data)
    readers = [open_batches(data, worker_processes=workers).reader(40, index, count, 46) for index in range(count)]
    found = [joined([batch for _, batch in shards]) for shards in zip(*readers, strict=True)]
    assert found == [digest(batches.batch(step)) for step in range(40, 46)]


@pytest.mark.slow
def test_seeking_to_step_10_000_is_reading_up_to_it(data):
    read = dict(itertools.islice(open_batches(data, batch_size=2).reader(), 10_001))
    step, sought = next(open_batches(data, batch_size=2).reader(10_000))
    assert step == 10_000 and digest(sought) == digest(read[step])
    assert digest(open_batches(data, batch_size=2).batch(9_999)) == digest(read[9_999])
    assert min(seen.epochs for seen in open_batches(data, batch_size=2).seen(10_000).values()) > 3


READ = """
import sys
from t5x_like.core.config import from_json
from t5x_like.input_pipeline.config import DataConfig
import test_exactness as here

data, start = from_json(DataConfig, open(sys.argv[1]).read()), int(sys.argv[2])
if __name__ == "__main__":
    for step, batch in here.open_batches(data, worker_processes=int(sys.argv[3])).reader(start):
        print(step, here.digest(batch), flush=True)
"""


def start_reader(data, folder, start, workers=0):
    (folder / "read.py").write_text(READ)
    (folder / "data.json").write_text(to_json(data))
    command = [sys.executable, str(folder / "read.py"), str(folder / "data.json"), str(start), str(workers)]
    paths = os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": paths})


@pytest.mark.slow
def test_killed_and_resumed_is_as_if_never_killed(data, tmp_path):
    lines, start = [], 0
    for _ in range(3):
        process = start_reader(data, tmp_path, start)
        lines += [process.stdout.readline().split() for _ in range(20)]
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        start = int(lines[-1][0]) + 1
    batches = open_batches(data)
    assert lines == [[str(step), digest(batches.batch(step))] for step in range(60)]


def children(pid: int) -> set[int]:
    found = set()
    for name in os.listdir("/proc"):
        try:
            fields = Path("/proc", name, "stat").read_text().rsplit(")", 1)[1].split() if name.isdigit() else []
        except OSError:  # ended while we looked
            continue
        if fields and int(fields[1]) == pid and fields[0] != "Z":
            found |= {int(name)} | children(int(name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks for processes in /proc")
def test_workers_die_with_a_killed_parent(data, tmp_path):
    process = start_reader(data, tmp_path, 0, workers=2)
    assert process.stdout.readline().split()[0] == "0"
    workers = children(process.pid)
    assert len(workers) >= 2
    process.kill()
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 10
    while (left := {pid for pid in workers if os.path.exists(f"/proc/{pid}")}) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


@pytest.mark.parametrize("packing", ["best_fit", "first_fit", "none", "concatenate"])
def test_every_row_of_every_corpus_exactly_once_per_epoch(data, packing):
    batches = open_batches(data, packing=packing)
    for stream in batches.streams:
        count = stream.rows.count
        rows, original = [], stream.rows.pieces

        def pieces(row, shift, rows=rows, original=original):
            rows.append(row)
            return original(row, shift)

        stream.rows.pieces = pieces
        for epoch in range(3):
            list(stream.examples(np.arange(epoch * count, (epoch + 1) * count)))
        assert all(sorted(rows[e * count : (e + 1) * count]) == list(range(count)) for e in range(3))
        assert rows[:count] != rows[count : 2 * count] or count < 4


def test_tokens_seen_are_those_in_the_batches(data):
    """Counted against the batches themselves: without corruption every target is a token of the text."""
    data = dataclasses.replace(data, packing="best_fit")
    splits = {each.name: prepare(each, Bytes(), data.cache).split("train") for each in corpora(data.corpus)}
    batches = Batches(splits, ByteTokenizer(), Autoregressive(), data, "decoder-only", BATCH, 0)
    counted = dict.fromkeys(splits, 0)
    for step in range(40):
        assert {name: seen.tokens for name, seen in batches.seen(step).items()} == counted
        batch, sources = batches.batch(step), batches.sources_of(step)
        for row, (name, _) in enumerate(sources):
            counted[name] += int(np.count_nonzero(batch["decoder_segments"][row]))
    total = {name: len(split.tokens) + len(split) for name, split in splits.items()}
    seen = batches.seen(40)
    assert all(seen[name].epochs == pytest.approx(counted[name] / total[name]) for name in splits)
    assert batches.epoch_of(40) == pytest.approx(sum(counted.values()) / sum(total.values()))


def test_skipped_batches_are_never_read_and_never_counted(data):
    straight, skipping = open_batches(data), open_batches(data, skip=("3:5", "7:8"))
    assert [digest(skipping.batch(step)) for step in range(8)] == [
        digest(straight.batch(step)) for step in (0, 1, 2, 5, 6, 8, 9, 10)
    ]
    for step in range(9):
        taken = [s for s in range(100) if s not in (3, 4, 7)][:step]
        expected = sum(
            straight.seen(s + 1)["large"].tokens - straight.seen(s)["large"].tokens for s in taken
        )
        assert skipping.seen(step)["large"].tokens == expected


def test_rows_of_a_mixture_of_objectives_are_of_all_of_them(data):
    objective = UL2(denoisers=(SpanCorruption(0.15, 3.0), SpanCorruption(0.5, 8.0)), rates=(1.0, 3.0))
    batches = open_batches(data, objective)
    assert len(batches.streams) == 6
    found = [source for step in range(60) for source in batches.sources_of(step)]
    share = np.mean([kind.noise_density == 0.5 for _, kind in found])
    assert share == pytest.approx(0.75, abs=0.01)
    assert {name for name, _ in found} == {"small", "middle", "large"}
    assert digest(batches.batch(50)) == digest(open_batches(data, objective).batch(50))


def test_limits_of_epochs_and_tokens_are_kept(data):
    small, inner = data.corpus.parts
    parts = (dataclasses.replace(small, epochs=2.0), inner)
    batches = open_batches(dataclasses.replace(data, corpus=dataclasses.replace(data.corpus, parts=parts)))
    assert batches.seen(3000)["small"].epochs == 2.0 and batches.seen(3000)["large"].epochs > 20
    limited = dataclasses.replace(small, tokens=1000)
    batches = open_batches(dataclasses.replace(data, corpus=dataclasses.replace(data.corpus, parts=(limited, inner))))
    assert 1000 - 64 < batches.seen(3000)["small"].tokens <= 1000, "less than one row is missing"
    shared = UL2((SpanCorruption(0.15, 3.0), SpanCorruption(0.5, 8.0), SpanCorruption(0.5, 3.0)), (1.0, 1.0, 0.0))
    once = dataclasses.replace(data.corpus, parts=(dataclasses.replace(small, epochs=1.0), inner))
    batches = open_batches(dataclasses.replace(data, corpus=once), shared)
    assert len(batches.streams) == 6, "none of an objective whose rate is 0"
    assert batches.seen(3000)["small"].epochs == pytest.approx(1.0, abs=0.15)
    nothing = dataclasses.replace(data.corpus, parts=(dataclasses.replace(small, tokens=3), inner))
    with pytest.raises(UserError, match="'small': 3 tokens are less than one row"):
        open_batches(dataclasses.replace(data, corpus=nothing)).check(1)


def test_random_numbers_are_those_of_the_example_alone():
    one, other = ExampleRandom(1, 2), ExampleRandom(1, 2)
    first = one.at(0, 5).random(3).tolist()
    one.at(9, 9).integers(0, 7, 5)  # leaves half a word in the generator
    assert one.at(0, 5).random(3).tolist() == first == other.at(0, 5).random(3).tolist()
    draws = {tuple(one.at(e, n, p).random(2).tolist()) for e in range(3) for n in range(20) for p in range(3)}
    assert len(draws) == 180
    assert ExampleRandom(1, 3).at(0, 5).random(3).tolist() != first


def test_batches_are_those_of_the_first_version_of_the_rules(data):
    """Other bits mean that no run begun before can go on: then ORDER_VERSION must grow, and these digests change."""
    from t5x_like.input_pipeline.batches.order import ORDER_VERSION

    ul2 = UL2((SpanCorruption(0.15, 3.0), SpanCorruption(0.5, 8.0)))
    packed, joined = open_batches(data), open_batches(data, ul2, packing="concatenate")
    assert ORDER_VERSION == 1
    assert [digest(made.batch(step))[:16] for made in (packed, joined) for step in (0, 1000)] == PINNED


def test_order_uses_every_index_once_also_for_millions():
    order = permutation(1_234_567, (0, 3))
    assert np.array_equal(np.sort(order(np.arange(1_234_567))), np.arange(1_234_567))
