"""Files are written whole or not at all, and a folder that cannot be written is refused by name."""

from __future__ import annotations

import os

import pytest

from t5x_like.core.errors import UserError
from t5x_like.core.paths import make_writable, write_atomically


def test_replaces_whole_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "config.json"
    write_atomically(path, "old and longer")
    write_atomically(path, "größe")
    assert path.read_text(encoding="utf-8") == "größe"
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_a_failed_replacement_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    write_atomically(path, "old")

    def fail(*_):
        raise OSError(28, "disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match="config.json: cannot be written"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_makes_folders_and_leaves_no_probe(tmp_path):
    make_writable(tmp_path / "a" / "b", "run.directory")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match=r"run.directory: .*taken/run cannot be written.*\n  allowed: a writable"):
        make_writable(tmp_path / "taken" / "run", "run.directory")
