"""A run goes on where nobody reads its output, and says in one message that no file can be opened any more."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest
from tiny_runs import CLI, environment, run_file, saved_steps, tiny_run

from t5x_like.cli import ends
from t5x_like.job.line import Fault
from t5x_like.job.output import lasting_stream

PROGRAM = """
import os, sys
from t5x_like.cli import ends
from t5x_like.job.line import Fault
from t5x_like.job.output import lasting_stream
sys.stdout = lasting_stream(sys.stdout)
for n in range(3):
    print("line", n, flush=True)
"""


@pytest.mark.parametrize("what", ["closed", "full"])
def test_what_cannot_be_written_is_said_once(what):
    reading, writing = os.pipe()
    os.close(reading)
    with open("/dev/full", "w") if what == "full" else os.fdopen(writing, "w") as out:
        done = subprocess.run([sys.executable, "-c", PROGRAM], stdout=out, stderr=subprocess.PIPE, text=True)
    reason = "No space left on device" if what == "full" else "Broken pipe"
    assert (done.returncode, done.stderr) == (0, f"note: standard output: {reason}; going on without it\n")
    if what == "full":
        os.close(writing)


def test_what_can_be_is_written_and_a_stream_of_a_test_is_left_alone(capsys):
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "line 0\nline 1\nline 2\n", "")
    assert lasting_stream(sys.stdout) is sys.stdout


@pytest.mark.slow
def test_a_run_goes_on_without_its_output(tmp_path):
    command = [*CLI, "train", run_file(tiny_run("llama", "train.steps=3")), "--directory", str(tmp_path / "run")]
    quick = environment(JAX_DISABLE_MOST_OPTIMIZATIONS="1")
    process = subprocess.Popen(command, env=quick, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    _, said = process.communicate(timeout=90)
    assert process.returncode == 0 and saved_steps(tmp_path / "run") == [3], said
    assert said.count("going on without it") == 1 and "Traceback" not in said


def test_too_few_files_are_refused_before_the_run(tmp_path):
    command = [*CLI, "train", run_file(tiny_run("llama", "train.steps=3")), "--directory", str(tmp_path / "run")]
    fewer = ["bash", "-c", 'ulimit -n 24; exec "$@"', "-"]
    done = subprocess.run([*fewer, *command], env=environment(), capture_output=True, text=True, timeout=90)
    assert done.returncode == 2 and done.stderr.startswith("error: ulimit -n: 24: "), done.stderr
    assert len(done.stderr.splitlines()) == 3, done.stderr


def test_running_out_of_files_is_one_message():
    wrapped = ValueError("tensorstore")
    wrapped.__cause__ = OSError(errno.EMFILE, "Too many open files")
    for error in (OSError(errno.EMFILE, "x"), ValueError("OS error code: 24 Too many open files"), wrapped):
        assert ends.fault(error).startswith("no file can be opened any more: the limit is ")
    assert ends.fault(OSError(errno.ENOENT, "x")) == "" and ends.fault(Fault("said")) == "said"
