"""Buckets on loopback for tests: a Google Cloud Storage of our own, which can be told to fail, and moto's S3."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from gcs_server import Server

BUCKET = "bucket"
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}


@functools.cache
def google() -> Server:
    """One for all tests of a process, since TensorStore reads its address once."""
    return Server(BUCKET)


def google_environment() -> dict[str, str]:
    return {"STORAGE_EMULATOR_HOST": google().url}


@functools.cache
def moto() -> str:
    """How to start moto's server; empty where it is not installed."""
    beside = Path(sys.executable).with_name("moto_server")
    return os.environ.get("MOTO_SERVER") or (str(beside) if beside.is_file() else shutil.which("moto_server") or "")


@contextlib.contextmanager
def amazon() -> Iterator[dict[str, str]]:
    """The environment of an S3 with one empty bucket; skips the test where moto is not installed."""
    if not moto():
        pytest.skip("moto's server is not installed: pip install 'moto[s3]' flask-cors")
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    server = subprocess.Popen([moto(), "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL)  # fmt: skip
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 60
    try:
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(urllib.request.Request(f"{url}/{BUCKET}", method="PUT"), timeout=5).close()
                break
            assert server.poll() is None and time.monotonic() < deadline, "moto's server did not start"
            time.sleep(0.1)
        yield KEYS | {"AWS_ENDPOINT_URL_S3": url, "AWS_REGION": "us-east-1"}
    finally:
        server.kill()
        server.wait()


KINDS = ("disk", "gs", "s3")


@contextlib.contextmanager
def storage(kind: str, name: str, tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """(an empty folder's path or address, the environment that leads there)."""
    if kind == "disk":
        yield str(tmp_path / name), {}
    elif kind == "gs":
        yield f"gs://{BUCKET}/{name}", google_environment()
    else:
        with amazon() as environment:
            yield f"s3://{BUCKET}/{name}", environment
