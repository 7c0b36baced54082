"""Checkpoints that were damaged, cut off or never finished: what is found, and what is gone on from."""

from __future__ import annotations

import operator
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import t5x_like.checkpoint
from t5x_like.checkpoint import arrays
from t5x_like.checkpoint.checkpoints import Checkpoints
from t5x_like.checkpoint.folder import Damaged
from t5x_like.core.errors import UserError

TEMPLATE = {"a": jax.ShapeDtypeStruct((64, 64), jnp.float32), "b": jax.ShapeDtypeStruct((7,), jnp.bfloat16)}


def state(step: int) -> dict:
    return {"a": jax.random.normal(jax.random.key(step), (64, 64)), "b": jnp.full((7,), step, jnp.bfloat16)}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr("t5x_like.checkpoint.folder.WAITS", (0.0, 0.0))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Path:
    """Steps 1 and 2, written once for all tests here, each of which damages a copy."""
    folder = tmp_path_factory.mktemp("pristine")
    with Checkpoints(folder) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state(step), {"position": step * 100})
    return folder


@pytest.fixture
def folder(pristine, tmp_path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "checkpoints"))


def data_file(folder: Path, step: int) -> Path:
    """The file that holds the bits of the arrays: the largest."""
    files = [path for path in (folder / str(step)).rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def restored(folder: Path, **options) -> tuple[int, list[str]]:
    said: list[str] = []
    with Checkpoints(folder, say=said.append) as checkpoints:
        found, metadata = checkpoints.restore(TEMPLATE, **options)
    np.testing.assert_array_equal(np.asarray(found["a"]), np.asarray(state(metadata["step"])["a"]))
    assert metadata["position"] == metadata["step"] * 100
    return metadata["step"], said


def test_undamaged(folder):
    assert restored(folder) == (2, [])
    assert restored(folder, step=1) == (1, [])


def test_every_flipped_bit_is_caught(folder):
    caught = 0
    path = data_file(folder, 2)
    whole = path.read_bytes()
    numbers = np.random.default_rng(0)
    for at in numbers.integers(0, len(whole), 12):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << int(numbers.integers(8)))]) + whole[at + 1 :])
        step, said = restored(folder)
        # A bit that no array depends on (padding, an unused header field) may leave step 2 whole; `restored` has
        # compared the bits with what was saved in either case.
        assert step == 2 or "damaged checkpoints passed over" in said[0]
        caught += bool(said)
    assert caught > 6
    path.write_bytes(whole)
    assert restored(folder) == (2, [])


def test_digests_catch_what_the_files_do_not(folder, monkeypatch):
    # One bit of one element, flipped between file and memory: no file format sees that.
    read = arrays.read

    def flipped(place, wanted):
        found = read(place, wanted)
        if str(place).endswith("/2"):
            bits = found["a"].view(jnp.uint32)
            found["a"] = bits.at[5, 9].set(bits[5, 9] ^ 1).view(jnp.float32)
        return found

    monkeypatch.setattr(arrays, "read", flipped)
    step, said = restored(folder)
    assert step == 1 and "step 2: the bits of a are not those that were saved" in said[0]


@pytest.mark.parametrize("damage", ["truncate", "empty", "remove"])
def test_truncated_or_missing_files(folder, damage):
    path = data_file(folder, 2)
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 if damage == "truncate" else 0])
    step, said = restored(folder)
    assert step == 1 and "step 2: cannot be read" in said[0]


@pytest.mark.parametrize("what", ["arrays.read", "folder.read_block"])
@pytest.mark.parametrize("times, step", [(2, 2), (3, 1)])
def test_an_error_that_passes_does_not_cost_a_checkpoint(folder, monkeypatch, what, times, step):
    """Storage over a network fails for a moment: the same checkpoint is read again before it counts as damaged."""
    read, failures = operator.attrgetter(what)(t5x_like.checkpoint), iter(range(times))

    def failing(place, *arguments):
        if str(place).endswith("/2") and next(failures, None) is not None:
            raise Damaged("cannot be read: Input/output error")
        return read(place, *arguments)

    monkeypatch.setattr(f"t5x_like.checkpoint.{what}", failing)
    found, said = restored(folder)
    assert found == step and bool(said) == (step == 1)


def test_altered_metadata(folder):
    path = folder / "2" / "_CHECKPOINT_METADATA"
    text = path.read_text()
    assert '"position": 200' in text
    path.write_text(text.replace('"position": 200', '"position": 201'))
    assert restored(folder)[0] == 1
    with Checkpoints(folder) as checkpoints, pytest.raises(UserError, match="not what was saved"):
        checkpoints.metadata(2)
    path.write_text("{")
    assert restored(folder)[0] == 1


def test_a_damaged_step_that_was_asked_for_is_not_replaced(folder):
    data_file(folder, 2).unlink()
    with Checkpoints(folder) as checkpoints:
        with pytest.raises(UserError, match="damaged") as error:
            checkpoints.restore(TEMPLATE, step=2)
        assert "another step: 1" in str(error.value)
        data_file(folder, 1).unlink()
        with pytest.raises(UserError, match="step 2: (.|\n)*step 1: "):
            checkpoints.restore(TEMPLATE)
    assert (folder / "1").is_dir() and (folder / "2").is_dir()  # nothing is deleted or renamed by looking


def test_going_on_after_damage_keeps_what_is_good(folder):
    data_file(folder, 2).unlink()
    said: list[str] = []
    with Checkpoints(folder, say=said.append) as checkpoints:
        checkpoints.restore(TEMPLATE)
        checkpoints.save(2, state(2), {"position": 200})
    assert "renamed to 2.aside-1" in said[1] and "2.aside-1 is deleted: this run has written step 2" in said[2]
    assert not (folder / "2.aside-1").exists()
    assert restored(folder) == (2, [])


def run(program: str, *arguments: str) -> subprocess.Popen:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(program), *arguments], env=environment,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            cwd=Path(__file__).resolve().parents[2])


def test_killed_while_saving(folder):
    killed = run(
        """
        import sys, jax, jax.numpy as jnp
        from t5x_like.checkpoint.checkpoints import Checkpoints
        checkpoints = Checkpoints(sys.argv[1])
        big = {f"x{i}": jax.random.normal(jax.random.key(i), (1024, 1024)) for i in range(24)}
        jax.block_until_ready(big)
        print("ready", flush=True)
        checkpoints.save(3, big, {})
        checkpoints.wait()
        print("done", flush=True)
        """,
        str(folder),
    )
    try:
        assert killed.stdout is not None and killed.stdout.readline() == "ready\n"
        end = time.monotonic() + 30
        while not list(folder.glob("3.orbax-checkpoint-tmp*")) and time.monotonic() < end:
            time.sleep(0.001)
    finally:
        killed.send_signal(signal.SIGKILL)
    rest = killed.communicate()[0]
    assert rest == "", "the save was over before the kill: make it bigger"
    assert list(folder.glob("3.orbax-checkpoint-tmp*")), "nothing was being written when it was killed"
    with Checkpoints(folder, read_only=True) as reader:
        assert reader.steps() == [1, 2]
        assert list(folder.glob("3.orbax-checkpoint-tmp*")), "a reader must leave a save in progress alone"
    assert restored(folder) == (2, [])
    assert not list(folder.glob("*tmp*"))


def test_a_failed_save_is_told_and_cleared_away(folder):
    # A limit on the size of files fails the background write as a full disk does.
    failed = run(
        """
        import resource, signal, sys, time, jax, jax.numpy as jnp
        from pathlib import Path
        from t5x_like.checkpoint.checkpoints import Checkpoints
        from t5x_like.core.errors import UserError
        checkpoints = Checkpoints(sys.argv[1])
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
        try:
            checkpoints.save(3, {"x": jax.random.normal(jax.random.key(0), (1024, 1024))}, {})
            for _ in range(200):
                checkpoints.check()
                time.sleep(0.05)
            print("no error")
        except UserError as error:
            print(error)
        print(sorted(path.name for path in Path(sys.argv[1]).iterdir()), checkpoints.steps())
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        checkpoints.save(4, {"x": jnp.ones(3)}, {})
        checkpoints.close()
        print(checkpoints.steps())
        """,
        str(folder),
    )
    out, err = failed.communicate(timeout=60)
    assert "step 3 could not be written" in out and "resumes from step 2" in out, out + err[-2000:]
    assert "['1', '2'] [1, 2]" in out and "[1, 2, 4]" in out, out + err[-2000:]
