"""Tiny whole runs, for tests of the top of the library: a small text, run configs and run files of the three shapes,
and what is read back from a run's folder. Everything lies in one temporary folder of the session.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from tiny_models import first, resized

from t5x_like.arrays.trees import flatten, unflatten
from t5x_like.checkpoint.checkpoints import Checkpoints
from t5x_like.checkpoint.config import CheckpointConfig
from t5x_like.core.config import override, to_json
from t5x_like.core.every import Every
from t5x_like.input_pipeline.config import Bytes, Corpus, DataConfig, Mixture, SentencePiece, TextFiles
from t5x_like.layers.positions import Learned
from t5x_like.models import families
from t5x_like.objectives import Autoregressive, MaskedLM, SpanCorruption
from t5x_like.optim import AdamW
from t5x_like.report.config import ReportConfig
from t5x_like.report.metrics import read_metrics
from t5x_like.train.config import Run, TrainConfig

ROOT = Path(__file__).resolve().parents[1]
SIZES = dict(vocab_size=264, d_model=16, d_ff=32, heads=4, head_dim=8, scan_layers=False)
MODELS = {
    "t5": lambda: families.t5_1_1(**SIZES, encoder_layers=1, decoder_layers=1),
    "llama": lambda: families.llama(**SIZES, kv_heads=4, decoder_layers=1),
    "bert": lambda: families.bert(**SIZES, encoder_layers=1, positions=Learned(32)),
}
OBJECTIVES = {"t5": SpanCorruption(), "llama": Autoregressive(), "bert": MaskedLM()}
MEASURED = ("time", "train/tokens_per_second", "train/utilization")  # differ from one run of the same bits to the next

_WORDS = "a quick brown fox jumps over the lazy dog while seven wizards box with their jugs of liquor on Monday".split()


@functools.lru_cache(maxsize=1)
def scratch() -> Path:
    """A folder for these tests, removed at their end."""
    folder = Path(tempfile.mkdtemp(prefix="t5x_like_tests_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.lru_cache(maxsize=1)
def text_folder() -> Path:
    """Ten documents of about 150 bytes."""
    folder = scratch() / "texts"
    folder.mkdir()
    for number in range(10):
        draw = random.Random(number)
        words = [draw.choice(_WORDS) for _ in range(25 + number)]
        (folder / f"{number}.txt").write_text(" ".join(words) + ".\n")
    return folder


def tiny_run(kind: str = "llama", *assignments: str) -> Run:
    """A run of one layer per stack over the bytes of ``text_folder``: 5.875 steps an epoch. ``assignments`` as on the
    command line. Nothing is held out, so that no time goes into evaluation and samples."""
    corpus = Corpus("tiny", TextFiles((str(text_folder()),)), Bytes(), "none", "made up", heldout=0.0)
    run = Run(
        name=f"tiny_{kind}",
        model=MODELS[kind](),
        objective=OBJECTIVES[kind],
        data=DataConfig(corpus, input_length=32, cache=str(scratch() / "cache")),
        optimizer=AdamW(learning_rate=3e-3, clip_norm=1.0),
        train=TrainConfig(steps=8, batch_size=8, evaluate_every=Every()),
        checkpoint=CheckpointConfig(every=Every(), keep_last=0),
        report=ReportConfig(every=1, tensorboard=False, plots=False),
    )
    return override(run, assignments)


def run_file(run: Run, name: str = "") -> str:
    """A run file, as a user has it, that returns ``run``."""
    text = "from t5x_like.core.config import from_json\nfrom t5x_like.train.config import Run\n\n"
    text += f"TEXT = {to_json(run)!r}\n"
    path = scratch() / f"{name or hashlib.sha256(text.encode()).hexdigest()[:12]}.py"
    path.write_text(text + "\n\ndef run():\n    return from_json(Run, TEXT)\n")
    return str(path)


COMPILE_ONCE = {"jax_persistent_cache_min_compile_time_secs": 0.0, "jax_persistent_cache_min_entry_size_bytes": 0}
COMPILE_FAST = {"jax_disable_most_optimizations": True}  # a quarter of the time; the program of each device is the same


@contextlib.contextmanager
def compiling(**wanted: object):
    """Settings of jax while programs are compiled inside, read from no cache but the one that they name."""
    before = {name: jax.config.values[name] for name in wanted}
    for name, value in wanted.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="session")
def quick_compiling():
    """Programs are compiled once for the session, and without LLVM's optimizations."""
    kept = {"jax_enable_compilation_cache": True, "jax_compilation_cache_dir": str(scratch() / "compiled")}
    with compiling(**kept, **COMPILE_ONCE, **COMPILE_FAST):
        yield


# What a run left


def rows(directory: Path, kind: str = "train") -> dict[int, dict[str, float]]:
    """Step to metrics of one kind, without those that are measured in seconds. Raises where a step comes twice."""
    found: dict[int, dict[str, float]] = {}
    for row in read_metrics(directory):
        values = {k: v for k, v in row.items() if k.startswith(f"{kind}/") and k not in MEASURED}
        if values:
            assert row["step"] not in found, f"step {row['step']} is in metrics.jsonl twice"
            found[row["step"]] = values
    return found


def losses(directory: Path) -> dict[int, float]:
    return {step: row["train/loss"] for step, row in rows(directory).items()}


def checkpoint(directory: Path, step: int | None = None) -> dict[str, np.ndarray]:
    """Path to array of the whole state of a checkpoint, the latest by default."""
    with Checkpoints(directory / "checkpoints", read_only=True) as checkpoints:
        state, _ = checkpoints.restore(unflatten(checkpoints.arrays(step)), step)
    return {path: np.asarray(array) for path, array in flatten(state).items()}


def saved_steps(directory: Path) -> list[int]:
    with Checkpoints(directory / "checkpoints", read_only=True) as checkpoints:
        return checkpoints.steps()


def assert_same_bits(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert left.keys() == right.keys()
    different = [path for path in left if left[path].tobytes() != right[path].tobytes()]
    assert not different, different


def assert_close(left: dict[str, np.ndarray], right: dict[str, np.ndarray], tolerance: float = 1e-5) -> None:
    assert left.keys() == right.keys()
    for path in left:
        np.testing.assert_allclose(
            left[path].astype(np.float64), right[path].astype(np.float64), rtol=0, atol=tolerance, err_msg=path
        )


def digests(directory: Path) -> dict[str, str]:
    """Path to digest of every file below a folder, and empty folders."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(directory.rglob("*"))
    }


# The batches that a run was fed

RECORDER = """
import hashlib, json, os, sys
import t5x_like.train.feed as feeding
import t5x_like.train.run  # before, so that its evaluation is not recorded
from t5x_like.cli.main import main

original = feeding.to_devices
def recording(placement, local, share):
    rows = [hashlib.sha256(b"".join(a[r].tobytes() for a in local.values())).hexdigest() for r in range(len(next(iter(
        local.values()))))]
    with open(os.environ["RECORD"], "a") as file:
        file.write(json.dumps([share[0], rows]) + "\\n")
    return original(placement, local, share)
feeding.to_devices = recording
sys.exit(main())
"""


def recorder() -> list[str]:
    """The command ``t5x-like``, but each process adds (its share, digests of its rows of each batch) to the file
    named by $RECORD."""
    path = scratch() / "recorder.py"
    path.write_text(RECORDER)
    return [sys.executable, str(path)]


def record_batches(monkeypatch) -> list[list[str]]:
    """A list that fills with the digests of the rows of every batch that this process puts on its devices."""
    import t5x_like.train.feed as feeding
    import t5x_like.train.run  # noqa: F401, before, so that its evaluation is not recorded

    original, fed = feeding.to_devices, []

    def recording(placement, local, share):
        count = len(next(iter(local.values())))
        parts = [b"".join(array[row].tobytes() for array in local.values()) for row in range(count)]
        fed.append([hashlib.sha256(part).hexdigest() for part in parts])
        return original(placement, local, share)

    monkeypatch.setattr(feeding, "to_devices", recording)
    return fed


def recorded(path: Path) -> list[list[str]]:
    """What recorders wrote to one file: batches in order, each put together from the shares of its processes."""
    by_process: dict[int, list[list[str]]] = {}
    for line in path.read_text().splitlines():
        process, digests_of_rows = json.loads(line)
        by_process.setdefault(process, []).append(digests_of_rows)
    return [sum(parts, []) for parts in zip(*(by_process[p] for p in sorted(by_process)), strict=False)]


# Processes


def environment(devices: int = 1, **more: str) -> dict[str, str]:
    """Environment of a process with n virtual devices, which compiles what it needs itself."""
    return os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)} | more


def start(command: list[str], devices: int = 1, **more: str) -> subprocess.Popen:
    return subprocess.Popen(
        command, env=environment(devices, **more), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
    )


def wait_for_step(directory: Path, step: int, process) -> None:
    """Returns when metrics.jsonl has that step; a process that ends before that is a failure."""
    metrics, deadline = directory / "metrics.jsonl", time.monotonic() + 120
    while time.monotonic() < deadline:
        if metrics.is_file() and f'"step": {step},' in metrics.read_text():
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    process.kill()
    raise AssertionError(f"step {step} did not come")


CLI = [sys.executable, "-m", "t5x_like"]


def program() -> str:
    """How a run that was not started as ``t5x-like`` tells to call the program."""
    return "t5x-like" if shutil.which("t5x-like") else " ".join(CLI)


def shrink(run: Run, kind: str) -> Run:
    """``run`` at the size of ``tiny_run``, on its text: what makes it that run rather than another stays."""
    tiny, model = tiny_run(kind), run.model
    tokenizer = Bytes()
    if isinstance(run.data.corpus.tokenizer, SentencePiece) and (symbols := run.data.corpus.tokenizer.symbols):
        tokenizer = SentencePiece(400, "bpe", sentinels=20, symbols=symbols)

    def small(corpus: Corpus | Mixture) -> Corpus | Mixture:
        if isinstance(corpus, Corpus):
            return dataclasses.replace(tiny.data.corpus, name=corpus.name, tokenizer=tokenizer)
        parts = tuple(dataclasses.replace(part, corpus=small(part.corpus)) for part in corpus.parts)
        return dataclasses.replace(corpus, parts=parts, tokenizer=tokenizer)

    return dataclasses.replace(
        run,
        data=dataclasses.replace(tiny.data, corpus=small(run.data.corpus), packing=run.data.packing),
        model=resized(
            model, vocab_size=264 if tokenizer == Bytes() else 400, d_model=16, width=32, heads=4, head_dim=8,
            kv_heads=min(first(model).mixer.kv_heads, 2), times=2, length=64,
        ),  # fmt: skip
    )
