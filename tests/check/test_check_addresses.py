"""What check says of a run and a token cache at addresses; it leaves both as they were."""

from __future__ import annotations

import time

import pytest
from buckets import BUCKET, google, google_environment
from gcs_server import Fault
from tiny_runs import run_file, tiny_run

from t5x_like.cli.main import main
from t5x_like.core.lock import Lock
from t5x_like.core.storage import place


@pytest.fixture
def top(tmp_path, monkeypatch):
    for name, value in (google_environment() | {"GOOGLE_APPLICATION_CREDENTIALS": __file__}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("T5X_LIKE_CACHE", str(tmp_path / "here"))
    google().faults.clear()
    yield f"gs://{BUCKET}/check/{time.time_ns()}"
    google().faults.clear()


def check(capsys, *arguments: str) -> tuple[int, dict[str, str]]:
    code = main(["check", *arguments])
    lines = [line.split(None, 2) for line in capsys.readouterr().out.splitlines() if line[:1] != " "]
    return code, {name: f"{state} {said}" for state, name, said in (line for line in lines if len(line) == 3)}


def test_a_run_and_a_cache_at_addresses(top, tmp_path, capsys, monkeypatch):
    config = run_file(tiny_run("llama", f"data.cache={top}/cache"))
    arguments = (config, "--directory", f"{top}/run")
    code, said = check(capsys, *arguments)
    assert code == 0 and said["storage"] == f"ok {top}/run can be written" and "not prepared" in said["cache"], said
    assert "a bucket has no end" in said["room"] and said["checkpoint"].startswith("ok none yet")
    assert place(top).files() == []
    assert main(["prepare", config]) == 0
    monkeypatch.setenv("T5X_LIKE_CACHE", str(tmp_path / "other"))
    before = place(top).files()
    code, said = check(capsys, *arguments)
    assert code == 0 and f"in {top}/cache, from where each machine copies it" in said["cache"], said
    lock = Lock(place(f"{top}/run"))
    assert lock.acquire() == ""
    code, said = check(capsys, *arguments)
    lock.release()
    assert code == 2 and "FAILED" in said["storage"] and "another training is running" in said["storage"]
    google().faults = [Fault("403", 999, lambda method, name: method == "POST")]
    code, said = check(capsys, *arguments)
    assert code == 2 and "cannot be written: PERMISSION_DENIED" in said["storage"], said
    assert place(top).files() == before
