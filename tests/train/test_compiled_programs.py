"""Compiled programs are kept by themselves, where the user says, by several processes at once, and cost no bits."""

from __future__ import annotations

import os
import sys

import jax
import pytest
import tiny_runs
from jax.experimental.compilation_cache import compilation_cache
from tiny_runs import assert_same_bits, checkpoint, run_file, tiny_run

from t5x_like.train import compiled
from t5x_like.train.compiled import keep_compiled

SETTINGS = ("jax_compilation_cache_dir", "jax_enable_compilation_cache", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture
def untold(monkeypatch, tmp_path):
    """JAX as it is where nothing was said of its cache."""
    before = {name: jax.config.values[name] for name in SETTINGS}
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_enable_compilation_cache", True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_the_users_cache_folder_holds_them_unless_a_field_or_jax_says_otherwise(untold):
    assert keep_compiled("off") is None
    assert jax.config.values["jax_compilation_cache_dir"] is None
    kept = keep_compiled()
    assert kept is not None and kept.parent == untold / "xdg/t5x-like/compiled"
    assert jax.config.values["jax_compilation_cache_dir"] == str(kept)
    assert keep_compiled(str(untold / "own")) == kept, "what is told already stays"
    jax.config.update("jax_compilation_cache_dir", None)
    assert keep_compiled(str(untold / "own")) == untold / "own" / kept.name
    jax.config.update("jax_compilation_cache_dir", None)
    (untold / "file").write_text("")
    assert keep_compiled(str(untold / "file")) is None
    jax.config.update("jax_enable_compilation_cache", False)
    assert keep_compiled() is None


def test_a_folder_that_grew_too_large_loses_what_was_used_longest_ago(untold, monkeypatch):
    folder = keep_compiled()
    assert folder is not None
    for number in range(10):
        (folder / f"{number}-cache").write_bytes(bytes(100))
        os.utime(folder / f"{number}-cache", (1e9 + number, 1e9 + number))
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setattr(compiled, "LARGEST", 700)
    assert keep_compiled() == folder
    assert sorted(path.name for path in folder.iterdir()) == ["7-cache", "8-cache", "9-cache"]


def test_an_entry_with_a_wrong_bit_is_removed_before_jax_looks(untold):
    folder = keep_compiled()
    assert folder is not None
    for number in range(3):
        (folder / f"{number}-cache").write_bytes(bytes(100))
        os.utime(folder / f"{number}-cache", (1e9, 1e9))
    (folder / "new-cache").write_bytes(bytes(50))  # perhaps being written
    compiled.note_new(folder)
    (folder / "1-cache").write_bytes(bytes(99) + b"\1")
    (folder / "2-cache").unlink()
    jax.config.update("jax_compilation_cache_dir", None)
    assert keep_compiled() == folder
    assert sorted(path.name for path in folder.iterdir()) == ["0-cache", "0-cache.crc", "new-cache"]


@pytest.mark.slow
def test_processes_that_share_a_folder_train_to_the_same_bits_as_one_without(tmp_path):
    """Two at once with an empty folder, one with theirs, one with entries that were torn, one that keeps nothing."""
    config = run_file(tiny_run("llama", "train.steps=2"))
    cache = {"XDG_CACHE_HOME": str(tmp_path), "JAX_ENABLE_COMPILATION_CACHE": "true",
             "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}  # fmt: skip

    def train(name: str, *more: str):
        command = [sys.executable, "-m", "t5x_like", "train", config, "--directory", str(tmp_path / name), *more]
        return tiny_runs.start(command, **cache)

    def end(process) -> str:
        output = process.communicate(timeout=300)[0]
        assert process.returncode == 0, output
        return output

    both = train("one"), train("two")
    for process in both:
        end(process)
    entries = list((tmp_path / "t5x-like/compiled").glob("*/jit_step*-cache"))
    assert len(entries) == 1
    assert "warning" not in end(train("three")).lower()
    for entry in entries[0].parent.iterdir():
        entry.write_bytes(entry.read_bytes()[: entry.stat().st_size // 2])  # as a kill leaves it
    end(train("four"))
    end(train("five", "train.compiled=off"))
    wanted = checkpoint(tmp_path / "five")
    for name in ("one", "two", "three", "four"):
        assert_same_bits(checkpoint(tmp_path / name), wanted)


def test_the_folder_is_free_to_change_on_resume():
    from t5x_like.train.config import why_free

    assert why_free("train.compiled")
