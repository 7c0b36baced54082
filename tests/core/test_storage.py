"""A folder on a disk and in buckets: the same in each; faults that pass are waited for, others told."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from buckets import BUCKET, KEYS, KINDS, google, google_environment, storage
from gcs_server import Fault
from tiny_runs import ROOT

from t5x_like.core.errors import UserError
from t5x_like.core.storage import is_address, make_writable, place

FILE = "\naws_access_key_id=k\naws_secret_access_key=s\n"


@pytest.fixture
def bucket(monkeypatch):
    """A folder in Google's, whose server does as it is told."""
    for name, value in google_environment().items():
        monkeypatch.setenv(name, value)
    google().faults.clear()
    yield place(f"gs://{BUCKET}/faults/{time.time_ns()}")
    google().faults.clear()


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_is_the_same_everywhere(kind, tmp_path, monkeypatch):
    with storage(kind, "top", tmp_path) as (where, environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        there = place(where)
        assert str(there) == where and there.files() == [] and there.children() == [] and not there.at("a").files()
        with pytest.raises(FileNotFoundError):
            there.read("a/b")
        there.write("a/b", b"1")
        there.write("a/b", b"22")
        there.write("a/é +%.json", b"")
        there.write("ab", bytes(range(256)) * 5000)
        assert there.read("a/b") == b"22" and there.at("a").read("é +%.json") == b""
        assert there.read("ab") == bytes(range(256)) * 5000
        assert there.create("new", b"x") and not there.create("new", b"y") and there.read("new") == b"x"
        assert there.create("new", b"x")  # the caller's own, whose answer was lost
        assert there.files() == ["a/b", "a/é +%.json", "ab", "new"] and there.children() == ["a", "ab", "new"]
        assert there.children("a") == there.files("a") == ["b", "é +%.json"] and there.files("n") == []
        assert there.files(without=("a", "new")) == ["ab"]
        there.copy_tree("a", "c/d")
        assert there.files("c") == ["d/b", "d/é +%.json"] and there.at("c/d").read("b") == b"22"
        there.remove("c")
        there.remove("new")
        there.remove("nothing")
        assert there.files() == ["a/b", "a/é +%.json", "ab"]
        import tensorstore as ts

        assert ts.KvStore.open(there.spec("a")).result().read("b").result().value == b"22"
        there.remove("")
        assert there.files() == []


def test_what_is_no_place_is_refused_by_name(tmp_path, monkeypatch):
    for name, value in google_environment().items():
        monkeypatch.setenv(name, value)
    for where, said in (("az://b/run", "no support for az://"), ("hf://a/b", "no support"), ("gs:/b/run", "no bucket"),
                        ("s3:///run", "no bucket"), ("gs://x/run", "Invalid GCS bucket name")):  # fmt: skip
        assert is_address(where)
        with pytest.raises(UserError, match=said) as error:
            place(where, "data.cache")
        assert error.value.where == "data.cache" and where in error.value.got
    with pytest.raises(UserError, match="directory: gs://not-there/run cannot be written: NOT_FOUND"):
        make_writable(place("gs://not-there/run"), "directory")
    with storage("s3", "a", tmp_path) as (where, environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        make_writable(place(where), "directory")
        assert place(where).files() == []
        with pytest.raises(UserError, match="NoSuchBucket"):
            place("s3://not-there/x")
    assert not is_address("/a/b") and not is_address("runs/x:y/z") and not is_address("C/d")


@pytest.mark.slow
def test_no_answer_is_told_within_seconds(bucket, monkeypatch):
    began = time.monotonic()
    google().faults = [Fault("403", 9)]
    with pytest.raises(UserError, match="PERMISSION_DENIED"):
        place(f"gs://{BUCKET}/x")
    google().faults = [Fault("503", 99)]
    with pytest.raises(UserError, match="All 4 retry attempts failed"):
        place(f"gs://{BUCKET}/x")
    for name, value in (KEYS | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="Failed to connect to 127.0.0.1 port 9") as error:
        place(f"s3://{BUCKET}/x")
    assert "endpoint http://127.0.0.1:9, credentials environment" in str(error.value) and "secret" not in str(error)
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("kind", ["503", "429", "cut", "slow:1"])
def test_a_fault_that_passes_is_waited_for(kind, bucket):
    bucket.write("a", b"content")
    google().faults = [Fault(kind, 1, lambda method, name: method == "GET" and name.endswith("/a"))]
    assert bucket.read("a") == b"content" and google().faults[0].times == 0
    google().faults = [Fault(kind, 1, lambda method, name: method == "GET" and not name)]
    assert bucket.files() == ["a"] and google().faults[0].times == 0


def test_a_write_whose_answer_was_lost_counts_once(bucket):
    google().faults = [Fault("lost", 1, lambda method, name: method == "POST")]
    assert bucket.create("lock", b"mine") and bucket.read("lock") == b"mine" and google().faults[0].times == 0
    assert not bucket.create("lock", b"another's")


def test_a_refusal_is_told_with_the_objects_address(bucket):
    google().faults = [Fault("403", 9)]
    calls = (lambda: bucket.read("a/b"), lambda: bucket.write("a/b", b""), lambda: bucket.create("a/b", b""))
    for act in (bucket.files, *calls):
        with pytest.raises(OSError, match=f"^{bucket}/.*: PERMISSION_DENIED"):
            act()


@pytest.mark.parametrize("files", [{}, {"credentials": f"[default]{FILE}"}, {"config": f"[profile p]{FILE}"}])
def test_looking_for_keys_prints_nothing(files, tmp_path):
    """TensorStore's own search prints a line for each place without keys."""
    (tmp_path / ".aws").mkdir()
    for name, text in files.items():
        (tmp_path / ".aws" / name).write_text(text)
    with storage("s3", "keys", tmp_path) as (where, environment):
        more = {"HOME": str(tmp_path), "AWS_ENDPOINT_URL": environment["AWS_ENDPOINT_URL_S3"],
                **({"AWS_PROFILE": "p"} if "config" in files else {})}  # fmt: skip
        code = f"from t5x_like.core.storage import place; p = place({where!r}); "
        code += "p.write('a', b'b'); print(p.read('a'))" if files else "print(p.files())"  # anyone may list there
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                              env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), **more})  # fmt: skip
    assert (done.stdout, done.stderr, done.returncode) == ("b'b'\n" if files else "[]\n", "", 0)
