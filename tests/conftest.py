"""What all tests share: eight virtual CPU devices, and JAX's guards.

Array types never widen by accident (strict dtype promotion): an activation that silently became float32 in a
bfloat16 model fails here. Implicit rank promotion stays allowed: ``rows + bias`` is clearer than a reshape at every
bias and norm.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

# JAX reads these once, when it is imported; a subprocess of a test inherits them unless the test says otherwise.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")  # nothing is kept outside of the tests' own folders
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the oracle of tests/parity is built from configs, never fetched

import jax  # noqa: E402
from hypothesis import settings  # noqa: E402

settings.register_profile("shared", deadline=None)  # a machine that others use too stands still at times
settings.load_profile("shared")
jax.config.update("jax_numpy_dtype_promotion", "strict")


def pytest_addoption(parser):
    help = "pass over tests that have passed with the same code and Python, which are kept in this folder"
    parser.addoption("--passed", metavar="FOLDER", help=help)
    parser.addoption("--write-golden", action="store_true", help="write anew what a test compares with: see its file")


def pytest_configure(config):
    if folder := config.getoption("--passed"):
        config.pluginmanager.register(Passed(Path(folder), hasattr(config, "workerinput")))


class Passed:
    """What has passed already, so that hours of tests can be interrupted: one file for each state of the code."""

    def __init__(self, folder: Path, is_worker: bool):
        code = [["rev-parse", "HEAD"], ["diff", "HEAD"]]
        told = [subprocess.run(["git", *command], capture_output=True, check=True).stdout for command in code]
        digest = hashlib.sha256(b"".join([*told, sys.version.encode()])).hexdigest()
        self.file, self.is_worker, self.failed = folder / digest[:16], is_worker, set()
        folder.mkdir(exist_ok=True)
        self.file.touch()

    def pytest_collection_modifyitems(self, config, items):
        passed = set(self.file.read_text().splitlines())
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in passed])
        items[:] = [item for item in items if item.nodeid not in passed]

    def pytest_runtest_logreport(self, report):
        if not report.passed:
            self.failed.add(report.nodeid)
        elif report.when == "teardown" and report.nodeid not in self.failed and not self.is_worker:
            with self.file.open("a") as file:
                file.write(report.nodeid + "\n")
