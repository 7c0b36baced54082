"""Preparing with several processes, killed and resumed, two at once, on a full disk: the same bits or nothing."""

import csv
import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from t5x_like.core.errors import UserError
from t5x_like.input_pipeline.config import Bytes, Corpus, Csv, JsonLines, Parquet, Source, TextFiles
from t5x_like.input_pipeline.prepare import parts
from t5x_like.input_pipeline.prepare.prepare import prepare, prepare_by
from t5x_like.input_pipeline.prepare.progress import Tally
from t5x_like.input_pipeline.prepare.vocabulary import tokenizer_config
from t5x_like.input_pipeline.tokenizers.tokenizer import open_tokenizer

FILES, FILE_BYTES = 12, 400_000  # four parts of three files
SCRIPT = """
import os, resource
if "FILE_BYTES" in os.environ:  # of the largest file that it may write
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(os.environ["FILE_BYTES"]),) * 2)
import sys, time
from t5x_like.input_pipeline.config import Bytes, Corpus, TextFiles
from t5x_like.input_pipeline.prepare.prepare import prepare
folder, cache, processes, without_locks = sys.argv[1:]
if without_locks == "True":
    import fcntl
    def flock(*_):
        raise OSError("no locks here")
    fcntl.flock = flock
corpus = Corpus("killed", TextFiles((folder,), documents="line"), Bytes(), "none", "made up", 0.2, deduplicate=True)
print(prepare(corpus, Bytes(), cache, None, int(processes)).fingerprint)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("lines")
    draw = random.Random(0)
    for number in range(FILES):
        lines = ["".join(draw.choices("abcdefgh ", k=99)) for _ in range(FILE_BYTES // 100)]
        (made / f"{number:02}.txt").write_text("".join(f"{line}\n" for line in [*lines, lines[0]]))
    return made


@pytest.fixture(scope="module")
def expected(folder, tmp_path_factory) -> str:
    """The fingerprint of the cache, made in one process at one go."""
    corpus = Corpus(
        "killed", TextFiles((str(folder),), documents="line"), Bytes(), "none", "made up", 0.2, deduplicate=True
    )
    made = prepare(corpus, Bytes(), str(tmp_path_factory.mktemp("expected")), processes=1)
    assert made.manifest["counts"]["duplicates"] == FILES
    assert sum(split["documents"] for split in made.manifest["splits"].values()) == FILES * FILE_BYTES // 100
    return made.fingerprint


def start(folder: Path, cache: Path, processes: int, without_locks: bool = False, **options) -> subprocess.Popen:
    command = [sys.executable, "-c", SCRIPT, str(folder), str(cache), str(processes), str(without_locks)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def run(folder: Path, cache: Path, processes: int, **options) -> str:
    """The fingerprint, or the end of what was said instead."""
    process = start(folder, cache, processes, **options)
    out, error = process.communicate(timeout=60)
    return out.strip() if process.returncode == 0 else error[-1500:]


def wait_for(condition: Callable[[], object], process: subprocess.Popen) -> bool:
    """Whether ``condition`` came true while the process was alive."""
    while process.poll() is None:
        if condition():
            return True
        time.sleep(0.001)
    return False


def work_files(cache: Path, pattern: str) -> list[Path]:
    return list((cache / "corpora").glob(f".killed-*.work/{pattern}"))


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize("processes", [2, 3, pytest.param(9, marks=pytest.mark.slow)])
def test_any_number_of_processes_makes_the_same_bits(tmp_path, folder, expected, processes):
    assert len(parts.cut_into_parts([parts.Unit("", size=FILE_BYTES)] * FILES)) == 4
    assert run(folder, tmp_path, processes) == expected
    assert [path.suffix for path in (tmp_path / "corpora").iterdir() if not path.is_dir()] == [".lock"]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_killed_at_every_stage_and_gone_on_with(tmp_path, folder, expected, processes):
    stages = [
        lambda: work_files(tmp_path, ".??????-*/tokens"),  # in the middle of a part
        lambda: work_files(tmp_path, "[0-9]*/part.json"),  # a part is finished
        lambda: len(work_files(tmp_path, "[0-9]*/part.json")) >= 3,
        lambda: work_files(tmp_path, ".cache-*"),  # merging
    ]
    for stage in stages:
        process = start(folder, tmp_path, processes)
        reached = wait_for(stage, process)
        helpers = children(process.pid) if reached else []
        process.kill()
        process.communicate(timeout=30)  # which ends when the workers have closed their output too
        assert reached or stage is stages[-1], "merging may be over before it is seen"
        deadline = time.monotonic() + 5
        while any(map(alive, helpers)) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not any(map(alive, helpers)), "workers die with their parent"
        if stage is stages[-2]:
            assert len(work_files(tmp_path, "[0-9]*/part.json")) >= 3
            assert not list((tmp_path / "corpora").glob("killed-*/manifest.json"))
    assert run(folder, tmp_path, processes) == expected
    assert not list((tmp_path / "corpora").glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_killed_at_random_moments(tmp_path, folder, expected, processes):
    draw = random.Random(processes)
    for _ in range(12):
        process = start(folder, tmp_path, processes)
        time.sleep(draw.uniform(0.1, 1.2))
        process.kill()
        process.communicate()
    assert run(folder, tmp_path, processes) == expected


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_killed_worker_is_told_and_its_part_done_again(tmp_path, folder, expected):
    process = start(folder, tmp_path, 2)
    assert wait_for(lambda: work_files(tmp_path, ".??????-*/tokens"), process)
    os.kill(children(process.pid)[0], signal.SIGKILL)
    _, error = process.communicate(timeout=60)
    assert "was ended by signal SIGKILL, as when memory runs out" in error and "part " in error and ".txt" in error
    assert "what is finished is kept" in error
    assert run(folder, tmp_path, 2) == expected


@pytest.mark.parametrize("without_locks", [False, True])
def test_two_at_once_are_both_right(tmp_path, folder, expected, without_locks):
    both = [start(folder, tmp_path, 2 - number, without_locks) for number in range(2)]
    results = [process.communicate(timeout=60) for process in both]
    assert [out.strip() for out, _ in results] == [expected] * 2, results
    left = [path.name for path in (tmp_path / "corpora").iterdir() if path.suffix != ".lock"]
    assert len(left) == 1 and left[0].startswith("killed-")


def test_one_that_is_overtaken_leaves_nothing(tmp_path, text_folder, monkeypatch):
    """Without locks another one finishes first, and takes the work folder away while this one writes into it."""
    import fcntl

    def no_locks(*_):
        raise OSError("no locks here")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    corpus = Corpus("small", TextFiles((str(text_folder),)), Bytes(), "none", "made up", 0.2)

    def overtaken(work, *_):
        prepare(corpus, Bytes(), str(tmp_path))
        folder = Path(work.folder)
        assert not folder.exists()
        folder.mkdir()
        (folder / ".000000-late").mkdir()  # what was being written meanwhile
        raise FileNotFoundError(folder / "000000")

    found = prepare_by(overtaken, corpus, Bytes(), str(tmp_path), None)
    assert found.path == prepare(corpus, Bytes(), str(tmp_path)).path
    assert [path for path in found.path.parent.iterdir() if path.suffix != ".lock"] == [found.path]


def test_the_one_that_waits_says_so(tmp_path, text_folder):
    import fcntl

    corpus = Corpus("small", TextFiles((str(text_folder),)), Bytes(), "none", "made up", 0.2)
    name = prepare(corpus, Bytes(), str(tmp_path / "other")).path.name
    (tmp_path / "corpora").mkdir()
    with (tmp_path / "corpora" / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        seen = []

        def show(progress):
            seen.append(progress.doing)
            fcntl.flock(lock, fcntl.LOCK_UN)

        prepare(corpus, Bytes(), str(tmp_path), show)
    assert seen[0] == "waiting" and "waiting" not in seen[1:] and seen[-1] == "merging"


@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_file_that_may_not_grow_is_a_full_disk(tmp_path, folder, expected, processes):
    said = run(folder, tmp_path, processes, env=os.environ | {"FILE_BYTES": str(2**20)})
    assert "UserError: data.cache: no room in" in said and "MB free" in said and "is kept" in said
    assert not list((tmp_path / "corpora").glob("killed-*/manifest.json"))
    assert run(folder, tmp_path, processes) == expected


@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize("megabytes", [3, 14])  # full while a part is written; while parts are merged
def test_a_full_disk(tmp_path, folder, expected, processes, megabytes):
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(small)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system of a few megabytes cannot be mounted here")
    try:
        said = run(folder, small, processes)
        assert "data.cache: no room in" in said and str(small) in said and "make room" in said
        assert not list((small / "corpora").glob("killed-*/manifest.json"))
        finished = len(work_files(small, "[0-9]*/part.json"))
        assert finished == 4 if megabytes == 14 else finished < 4
        subprocess.run(["mount", "-o", "remount,size=40m", str(small)], check=True)
        assert run(folder, small, processes) == expected
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.parametrize("processes", [1, 3])
def test_the_first_bad_document_of_the_corpus_is_told(tmp_path, processes, monkeypatch):
    """Even where one of a later part is found before it."""
    monkeypatch.setattr(parts, "_SMALLEST_PART", 1)
    good, bad = '{"text": "good"}\n', '{"txt": "bad"}\n'
    for number, content in enumerate([good, good, good * 100_000 + bad, bad, good, bad]):
        (tmp_path / f"{number}.jsonl").write_text(content)
    corpus = Corpus("json", JsonLines((str(tmp_path),)), Bytes(), "none", "made up")
    with pytest.raises(UserError, match=r"2\.jsonl"):
        prepare(corpus, Bytes(), str(tmp_path / "cache"), processes=processes)
    assert not [path for path in (tmp_path / "cache" / "corpora").iterdir() if path.is_dir()]


def write_texts(folder: Path, kind: str, texts: list[str]) -> Source:
    """Three files of one format."""
    folder.mkdir()
    for number in range(3):
        share = texts[number::3]
        lines = [json.dumps({"text": text}) + "\n" for text in share]
        if kind == "jsonl.gz":
            (folder / f"{number}.jsonl.gz").write_bytes(gzip.compress("".join(lines).encode()))
        elif kind == "csv":
            with (folder / f"{number}.csv").open("w", newline="") as file:
                csv.writer(file).writerows([["number", "text"], *([str(i), text] for i, text in enumerate(share))])
        elif kind == "parquet":
            pyarrow = pytest.importorskip("pyarrow")
            pytest.importorskip("pyarrow.parquet").write_table(
                pyarrow.table({"text": share}), folder / f"{number}.parquet", row_group_size=2
            )
    return {"jsonl.gz": JsonLines, "csv": Csv, "parquet": Parquet}[kind]((str(folder),))


@pytest.mark.parametrize("kind", ["jsonl.gz", "csv", "parquet"])
def test_sources_and_tokenizers_reach_the_workers(tmp_path, texts, corpus, cache, kind, monkeypatch):
    monkeypatch.setattr(parts, "_SMALLEST_PART", 1)
    source = write_texts(tmp_path / "files", kind, texts)
    config = tokenizer_config(corpus, cache)
    many = Corpus("many", source, Bytes(), "none", "made up", 0.0)
    seen = []
    made = prepare(many, config, str(tmp_path), seen.append, processes=2)
    decode = open_tokenizer(config).decode
    split = made.split("train")
    assert [decode(split.document(i).tolist()) for i in range(len(split))] == list(source.texts())
    assert seen[-1].documents == len(texts) == len(split) and seen[-1].done == seen[-1].total > 0


@pytest.fixture
def in_workers(tmp_path, monkeypatch):
    """Runs code at the start of every worker process."""

    def put(code: str) -> None:
        (tmp_path / "start").mkdir()
        (tmp_path / "start" / "sitecustomize.py").write_text(code)
        monkeypatch.syspath_prepend(str(tmp_path / "start"))

    return put


def test_a_fault_in_a_worker_is_shown_with_its_traceback(tmp_path, folder, in_workers):
    in_workers(
        "from t5x_like.input_pipeline.tokenizers.bytes import ByteTokenizer\nByteTokenizer.encode_batch = None\n"
    )
    corpus = Corpus("c", TextFiles((str(folder),)), Bytes(), "none", "made up")
    with pytest.raises(RuntimeError, match=r"(?s)part 0 \(.*00\.txt.*Traceback.*tokenize_part.*not callable"):
        prepare(corpus, Bytes(), str(tmp_path), processes=2)


def test_what_a_library_prints_is_no_answer(tmp_path, folder, expected, in_workers, capfd):
    in_workers(
        "from t5x_like.input_pipeline.tokenizers import bytes as tokenizers\n"
        "encode = tokenizers.ByteTokenizer.encode_batch\n"
        "def chatty(self, texts, threads=0):\n"
        "    print('{\"counts\": 1}', flush=True)\n"
        "    return encode(self, texts, threads)\n"
        "tokenizers.ByteTokenizer.encode_batch = chatty\n"
    )
    corpus = Corpus("c", TextFiles((str(folder),), "line"), Bytes(), "none", "made up", 0.2, deduplicate=True)
    assert prepare(corpus, Bytes(), str(tmp_path), processes=2).fingerprint == expected
    assert "counts" in capfd.readouterr().err


def test_a_worker_does_not_use_another_tokenizer(tmp_path, folder):
    work = parts.Work(TextFiles((str(folder),)), Bytes(), "of another", parts.Filters(), False, str(tmp_path))
    with pytest.raises(UserError, match="has changed"):
        parts.tokenize_in_processes(work, [parts.Part(0, ())], 1, Tally("c", None))
