"""A run resumed with other processes, devices, meshes, workers, micro-batches, scan: the same batches to the bit, the
same losses to 1e-5, and the same state to the bit where the sums are taken in the same order.

Transitions are random from a fixed seed. The default tests change devices and mesh inside one process and share out
batches among pretended ones; ``proof`` starts real processes. ``T5X_LIKE_OTHER_PYTHON`` names the Python of another
environment, with an older jax, say: then every second part is trained there.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import random
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from faults.results import kept, share
from tiny_runs import (
    ROOT,
    assert_same_bits,
    checkpoint,
    losses,
    quick_compiling,  # noqa: F401
    record_batches,
    recorded,
    recorder,
    run_file,
    scratch,
    text_folder,
    tiny_run,
)

import t5x_like.train.opened as opening
from t5x_like.cli.main import main
from t5x_like.input_pipeline.config import Bytes, Corpus, Mixture, Part, Source, TextFiles
from t5x_like.objectives import UL2, PrefixLM, SpanCorruption
from t5x_like.report.ledger import read_starts
from t5x_like.train.config import Run
from t5x_like.train.data import Data

ROWS, STEPS = 24, 6
needs_devices = pytest.mark.skipif(len(jax.devices()) < 8, reason="needs 8 devices")


@dataclasses.dataclass(frozen=True)
class Form:
    """How one part of a run is computed."""

    processes: int
    devices: int  # of each process
    fsdp: int
    tensor: int
    micro_batches: int
    workers: int
    scan: bool

    def fields(self) -> list[str]:
        data = self.processes * self.devices // (self.fsdp * self.tensor)
        return [f"mesh.data={data}", f"mesh.fsdp={self.fsdp}", f"mesh.tensor={self.tensor}",
                f"train.micro_batches={self.micro_batches}", f"data.worker_processes={self.workers}",
                f"model.scan_layers={str(self.scan).lower()}"]  # fmt: skip

    @property
    def order(self) -> tuple:
        """What the order of sums depends on."""
        return dataclasses.replace(self, workers=0), ()


def form(draw: random.Random, processes: int, workers: int) -> Form:
    """A random one whose devices can share the rows."""
    while True:
        devices, tensor, micro = draw.randint(1, 8), draw.choice((1, 1, 2, 4)), draw.choice((1, 1, 2, 3))
        count = draw.randint(1, processes)
        fsdp, left = draw.choice((1, 2, 4)), count * devices
        ways = left // tensor
        if left <= 8 and left % tensor == 0 and ways % fsdp == 0 and ROWS // micro % ways == 0 and ROWS % count == 0:
            # a process holds whole rows: it has all the devices that share one
            if count == 1 or devices % tensor == 0:
                return Form(count, devices, fsdp, tensor, micro, draw.choice(range(workers + 1)), draw.random() < 0.3)


def transitions(count: int, seed: int, processes: int, workers: int) -> list[tuple[int, list[tuple[int, Form]]]]:
    """(number, [(steps at its end, form) of each part]); every third has the same form before and after."""
    draw, found = random.Random(seed), []
    for number in range(count):
        stop, forms = draw.randint(1, STEPS - 1), [form(draw, processes, workers) for _ in range(2)]
        if number % 3 == 0:
            forms[1] = dataclasses.replace(forms[0], workers=forms[1].workers)
        found.append((number, list(zip((stop, STEPS), forms, strict=True))))
    return found


def small_run(packing: str = "first_fit") -> Run:
    """A mixture of two corpora, several documents to a row."""
    few = tuple(str(text_folder() / f"{number}.txt") for number in (3, 8))
    whole = Corpus("tiny", TextFiles((str(text_folder()),)), Bytes(), "none", "made up", heldout=0.0)
    mixture = Mixture("both", (Part(whole, 2.0), Part(Corpus("few", TextFiles(few), Bytes(), "", "", 0.0))), Bytes())
    run = tiny_run("llama", f"train.steps={STEPS}", f"train.batch_size={ROWS}", f"data.packing={packing}")
    return with_data(run, corpus=mixture)


def assert_goes_on(folder: Path, fed: list, straight, parts: list[tuple[int, Form]]) -> None:
    alone, wanted = straight
    assert fed[:STEPS] == wanted and len(wanted) == STEPS
    assert losses(folder) == pytest.approx(losses(alone), abs=1e-5)
    found = checkpoint(folder)
    assert found["step"] == STEPS and all(np.isfinite(array.astype(np.float64)).all() for array in found.values())


# Inside one process


@pytest.fixture(scope="module")
def straight(tmp_path_factory, quick_compiling):  # noqa: F811
    """(folder, batches) of the run on eight devices that nobody stops."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    with pytest.MonkeyPatch.context() as patch:
        fed = record_batches(patch)
        assert main(["train", run_file(small_run()), "--directory", str(folder), "mesh.data=8"]) == 0
    return folder, fed


def train_on(folder: Path, steps: int, how: Form) -> None:
    """Trains up to ``steps`` on the first devices of this process."""
    made = functools.partial(opening.make_placement, devices=jax.devices()[: how.devices])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "make_placement", made)
        command = ["train", run_file(small_run()), "--directory", str(folder), f"train.steps={steps}"]
        assert main([*command, *how.fields()]) == 0


@needs_devices
@pytest.mark.slow
@pytest.mark.parametrize("number, parts", transitions(12, seed=10, processes=1, workers=0))
def test_other_devices_and_meshes_go_on(straight, tmp_path, monkeypatch, number, parts):
    fed = record_batches(monkeypatch)
    for steps, how in parts:
        train_on(tmp_path / "run", steps, how)
    assert_goes_on(tmp_path / "run", fed, straight, parts)
    if parts[0][1].order == parts[1][1].order:  # then to the bit, as if it had never been stopped
        train_on(tmp_path / "alone", STEPS, parts[0][1])
        assert_same_bits(checkpoint(tmp_path / "run"), checkpoint(tmp_path / "alone"))
        assert losses(tmp_path / "run") == losses(tmp_path / "alone")


@needs_devices
def test_a_form_that_cannot_hold_the_rows_is_refused_by_name(straight, capsys):
    """The folder is as it was, and the message names the field."""
    before = checkpoint(straight[0])
    for wrong, field in (("train.micro_batches=5", "train.micro_batches"), ("mesh.data=5", "mesh"),
                         ("train.batch_size=16", "train.batch_size")):  # fmt: skip
        command = ["train", run_file(small_run()), "--directory", str(straight[0]), "train.steps=9", wrong]
        assert main(command) == 2
        assert f"{field}: " in capsys.readouterr().err
    assert_same_bits(checkpoint(straight[0]), before)


@dataclasses.dataclass(frozen=True)
class Counting(Source):
    """Never ends."""

    def read(self, unit):
        for number in itertools.count():
            yield f"document {number} " * (1 + number % 5)


def with_data(run: Run, **fields) -> Run:
    return dataclasses.replace(run, data=dataclasses.replace(run.data, **fields))


def kinds_of_data(tmp_path: Path) -> dict[str, Run]:
    """Each way to fill rows, several objectives, and an endless source in windows."""
    kinds = {packing: small_run(packing) for packing in ("concatenate", "first_fit", "best_fit", "none")}
    t5 = tiny_run("t5", f"train.batch_size={ROWS}")
    ul2 = UL2((SpanCorruption(0.15, 3.0), PrefixLM()), (2.0, 1.0))
    kinds["objectives"] = dataclasses.replace(t5, data=kinds["first_fit"].data, objective=ul2)
    endless = Corpus("endless", Counting(), Bytes(), "none", "made up", heldout=0.0, window=200)
    run = tiny_run("llama", f"train.batch_size={ROWS}", f"data.cache={tmp_path / 'cache'}")
    kinds["windows"] = with_data(run, corpus=endless)
    return kinds


def test_the_stream_of_batches_is_the_same_for_any_number_of_processes(tmp_path):
    """Twelve random transitions of the readers alone: processes, threads, workers, place in the stream, skips."""
    draw, kinds = random.Random(4), kinds_of_data(tmp_path)
    for number in range(12):
        run = list(kinds.values())[number % len(kinds)]
        if run is not kinds["windows"]:
            first = draw.randint(0, 9)
            run = with_data(run, skip=(f"{first}:{first + draw.randint(1, 5)}",))
        whole, start = Data.open(run).train, draw.randint(0, 12)
        for count in draw.sample((1, 2, 3, 4, 6, 8), 2):
            threads, workers = draw.choice(((0, 0), (1, 0), (2, 0), (1, 2 * (number % 4 == 0))))
            workers *= count < 3 and run is not kinds["windows"]  # each costs a second
            data = Data.open(with_data(run, read_threads=threads, worker_processes=workers)).train
            shares = [list(data.reader(start, index, count, start + 3)) for index in range(count)]
            for place, parts in enumerate(zip(*shares, strict=True)):
                wanted = whole.batch(start + place)
                assert {step for step, _ in parts} == {start + place}
                for name, array in wanted.items():
                    together = np.concatenate([part[name] for _, part in parts])
                    assert together.tobytes() == array.tobytes(), (number, count, name)
            start += 3


# Real processes


@functools.lru_cache(maxsize=1)
def straight_processes() -> tuple[Path, list[list[str]]]:
    """As ``straight``, in a process of its own."""
    folder = scratch() / "straight" / "run"
    folder.parent.mkdir()
    start_processes(folder, STEPS, Form(1, 8, 1, 1, 1, 0, False), folder.with_name("record"), sys.executable)
    return folder, recorded(folder.with_name("record"))[:STEPS]


def start_processes(folder: Path, steps: int, how: Form, record: Path, python: str) -> None:
    launcher = [python, str(ROOT / "launch" / "local.py"), "--processes", str(how.processes), "--devices",
                str(how.devices), "--"]  # fmt: skip
    environment = os.environ | {"RECORD": str(record), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "PYTHONPATH": str(ROOT)}
    command = ["train", run_file(small_run()), "--directory", str(folder), f"train.steps={steps}", *how.fields()]
    ended = subprocess.run([*launcher, python, recorder()[1], *command], env=environment, cwd=ROOT, text=True,
                           capture_output=True, timeout=300)  # fmt: skip
    assert ended.returncode == 0, (how, ended.stdout[-3000:], ended.stderr[-3000:])


SIXTY = {f"{number:03} resumed elsewhere": parts for number, parts in transitions(60, seed=20, processes=4, workers=2)}


@pytest.mark.proof
@pytest.mark.parametrize("name", share([*SIXTY]))
def test_other_processes_go_on(tmp_path, name):
    kept(name, lambda: gone_on(tmp_path, int(name[:3]), SIXTY[name]))


def gone_on(folder: Path, number: int, parts: list[tuple[int, Form]]) -> dict[str, object]:
    """What came of a transition. Where both forms are one, a straight run of that form is compared: to the bit if it is
    all of one version of jax, which every second one is."""
    same = parts[0][1].order == parts[1][1].order
    pythons = [sys.executable, os.environ.get("T5X_LIKE_OTHER_PYTHON", sys.executable)]
    pythons = pythons[:: 1 if number % 2 else -1] if not same or number % 2 else pythons[1:] * 2
    fed, done = [], 0
    for python, (steps, how) in zip(pythons, parts, strict=True):
        record = folder / f"record{done}"
        start_processes(folder / "run", steps, how, record, python)
        fed, done = fed + recorded(record)[: steps - done], steps
    assert_goes_on(folder / "run", fed, straight_processes(), parts)
    result: dict[str, object] = {"forms": [str(how) for _, how in parts], "versions": versions(folder / "run")}
    if same:
        start_processes(folder / "alone", STEPS, parts[0][1], folder / "record", pythons[0])
        left, right = checkpoint(folder / "run"), checkpoint(folder / "alone")
        result["other bits in"] = [path for path in left if left[path].tobytes() != right[path].tobytes()]
        if pythons[0] == pythons[1]:
            assert_same_bits(left, right)
    return result


def versions(folder: Path) -> list[str]:
    """The version of jax of each start, as the ledger has it."""
    starts = [start["versions"] for start in read_starts(folder)]
    return [f"jax {its['jax']}, Python {its['python']}" for its in starts]
