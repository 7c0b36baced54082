"""Which checkpoints stay, in what order they go, and how much room a save must have."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from t5x_like.checkpoint.checkpoints import Checkpoints
from t5x_like.checkpoint.config import CheckpointConfig
from t5x_like.checkpoint.folder import MEASURED, METADATA, TEMPORARY, Folder
from t5x_like.checkpoint.keep import Saved, best, reasons
from t5x_like.core.errors import UserError

NOW = 1_800_000_000.0
LOSS = "held_out/loss"


def kept(saved: list[Saved], **rules) -> list[int]:
    return [step for step, why in reasons(saved, CheckpointConfig(**rules), NOW).items() if why]


def test_rules():
    saved = [Saved(step, NOW - 3600 * (100 - step), {LOSS: abs(step - 43.0)}) for step in range(10, 100, 10)]
    assert kept(saved, keep_last=2, keep_best=0) == [80, 90]
    assert kept(saved, keep_last=1, keep_best=0, keep_every=40) == [40, 80, 90]
    assert kept(saved, keep_last=1, keep_best=0, keep_hours=31) == [70, 80, 90]
    assert kept(saved, keep_last=1, keep_best=2) == [40, 50, 90]
    assert kept(saved, keep_last=1, keep_best=2, keep_highest=True) == [80, 90]
    assert kept(saved, keep_last=0) == list(range(10, 100, 10))
    assert kept([], keep_last=1) == []


def test_a_spike_does_not_cost_the_good_ones():
    """Loss 3, then 300: the last three are all bad, and the best one stays, by whichever value there is."""
    losses = {10: 4.0, 20: 3.0, 30: 300.0, 40: float("nan"), 50: 290.0}
    for metric in (LOSS, "train/loss"):
        saved = [Saved(step, NOW, {metric: loss}) for step, loss in losses.items()]
        assert kept(saved, keep_last=3) == [20, 30, 40, 50]
    assert best([Saved(40, NOW, {LOSS: float("nan")})], CheckpointConfig()) == []


def test_files_follow_the_rules(tmp_path):
    config = CheckpointConfig(keep_last=1, keep_best=1)
    losses = {10: 4.0, 20: 3.0, 30: 300.0, 40: 290.0, 50: 310.0}
    for steps in ((10, 20, 30), (40, 50)):  # also over a new start
        with Checkpoints(tmp_path, config) as checkpoints:
            for step in steps:
                checkpoints.save(step, {"x": jnp.int32(step)}, {}, loss=9.0)
                checkpoints.measured(step, {LOSS: losses[step], "held_out/targets": 12.0})
                checkpoints.wait()
    with Checkpoints(tmp_path, config) as checkpoints:
        assert checkpoints.steps() == [20, 50]
    assert Folder(tmp_path).measured()[20] == {"train/loss": 9.0, LOSS: 3.0, "held_out/targets": 12.0}
    (tmp_path / MEASURED).write_text('{"20": {"held')  # torn: nothing is best, and nothing fails
    with Checkpoints(tmp_path, config) as checkpoints:
        checkpoints.save(60, {"x": jnp.int32(60)}, {})
        checkpoints.wait()
        assert checkpoints.steps() == [60]


def test_hours(tmp_path):
    with Checkpoints(tmp_path, CheckpointConfig(keep_last=1, keep_hours=2, keep_best=0)) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, {"x": jnp.int32(step)}, {})
            checkpoints.wait()
        assert checkpoints.steps() == [1, 2, 3]
        old = time.time() - 3 * 3600
        os.utime(tmp_path / "2", (old, old))
        checkpoints.save(4, {"x": jnp.int32(4)}, {})
        checkpoints.wait()
        assert checkpoints.steps() == [1, 3, 4]


def test_a_damaged_newest_one_costs_no_good_one(tmp_path, monkeypatch):
    """Step 3 is torn; the run goes on from 1 and keeps one: the last whole one, never the torn one."""
    monkeypatch.setattr("t5x_like.checkpoint.folder.WAITS", (0.0,))
    config = CheckpointConfig(keep_last=1, keep_best=0)
    template = {"x": jax.ShapeDtypeStruct((), jnp.int32)}
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        for step in (1, 3):
            checkpoints.save(step, {"x": jnp.int32(step)}, {})
    (tmp_path / "3" / METADATA).write_text("{")
    said: list[str] = []
    with Checkpoints(tmp_path, config, say=said.append) as checkpoints:
        assert int(checkpoints.restore(template)[0]["x"]) == 1
        checkpoints.save(2, {"x": jnp.int32(2)}, {})
        checkpoints.wait()
        assert checkpoints.steps() == [2] and (tmp_path / "3.aside-1").is_dir()
        assert int(checkpoints.restore(template)[0]["x"]) == 2
        checkpoints.save(3, {"x": jnp.int32(3)}, {})
        checkpoints.wait()
        assert checkpoints.steps() == [3] and not list(tmp_path.glob("*aside*"))
    assert "3.aside-1 is deleted: this run has written step 3" in said


def test_what_is_set_aside_is_bounded(tmp_path):
    for number in range(1, 6):
        (tmp_path / f"9.aside-{number}").mkdir()
        os.utime(tmp_path / f"9.aside-{number}", (number, number))
    (tmp_path / "4.aside-1").mkdir()
    gone = Folder(tmp_path).superseded(5)
    assert gone == ["4.aside-1", "9.aside-1", "9.aside-2", "9.aside-3"]


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "none", str(disk)],
                                      capture_output=True).returncode:  # fmt: skip
        pytest.skip("needs root, and the right to mount a tmpfs")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk(small_disk: Path):
    """12 MB: one save of 4 MB fits, beside leftovers it does not; what is ours goes, what is of others ends the run."""
    big = {"x": jax.random.uniform(jax.random.key(0), (1024, 1024))}
    template = {"x": jax.ShapeDtypeStruct((1024, 1024), jnp.float32)}
    directory = small_disk / "checkpoints"
    said: list[str] = []
    with Checkpoints(directory, CheckpointConfig(), say=said.append) as checkpoints:
        checkpoints.save(1, big, {})
        checkpoints.wait()
        left = directory / f"7{TEMPORARY}-killed"
        left.mkdir()
        (left / "data").write_bytes(bytes(5 << 20))
        checkpoints.save(2, big, {})
        checkpoints.wait()
        assert "the disk is short of room for step 2" in said[0] and not left.exists()
        other = small_disk / "of_others"
        other.write_bytes(bytes(3 << 20))
        with pytest.raises(UserError, match=r"(?s)step 3 needs 4\.3 MB in .* only [01]\.. MB are free.*from step 2"):
            checkpoints.save(3, big, {})
        assert checkpoints.steps() == [1, 2] and not Folder(directory).leftovers()
        other.unlink()
        checkpoints.restore(template, step=1)
        checkpoints.restore(template)
        (directory / "1").rename(small_disk / "elsewhere")
        subprocess.run(["rm", "-r", str(small_disk / "elsewhere")], check=True)
        assert checkpoints.save(3, big, {})  # the same call, once there is room
        checkpoints.wait()
        assert checkpoints.steps() == [2, 3]
