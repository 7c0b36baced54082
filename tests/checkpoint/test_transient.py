"""Every single read below a checkpoint's folder fails once, one after the other: none may cost the checkpoint.

A library that is loaded before libc fails the n-th call of open, read, pread or opendir below a folder with EIO, so
that what Python, Orbax and TensorStore read is met alike.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
static const char *below = 0;
static long left = -1, seen = 0;
void arm(const char *folder, long number) { below = folder; left = number; seen = 0; }
long calls(void) { return seen; }
static int fails(const char *path) {
  if (!below || !path || !strstr(path, below)) return 0;
  if (__sync_fetch_and_add(&seen, 1) != left) return 0;
  errno = EIO;
  return 1;
}
static int fails_at(int file) {
  char link[64], path[4096];
  if (!below) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t n = readlink(link, path, sizeof path - 1);
  if (n < 0) return 0;
  path[n] = 0;
  return fails(path);
}
#define NEXT(type, name) static __typeof__(type) real; if (!real) real = dlsym(RTLD_NEXT, name)
#define OPEN(name) int name(const char *p, int f, ...) { va_list a; va_start(a, f); int m = va_arg(a, int); va_end(a); \
  NEXT(int (*)(const char *, int, ...), #name); return fails(p) ? -1 : real(p, f, m); }
#define OPENAT(name) int name(int d, const char *p, int f, ...) { va_list a; va_start(a, f); int m = va_arg(a, int); \
  va_end(a); NEXT(int (*)(int, const char *, int, ...), #name); return fails(p) ? -1 : real(d, p, f, m); }
#define PREAD(name) ssize_t name(int d, void *b, size_t n, off_t o) { \
  NEXT(ssize_t (*)(int, void *, size_t, off_t), #name); return fails_at(d) ? -1 : real(d, b, n, o); }
OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64) PREAD(pread) PREAD(pread64)
ssize_t read(int d, void *b, size_t n) { NEXT(ssize_t (*)(int, void *, size_t), "read");
  return fails_at(d) ? -1 : real(d, b, n); }
DIR *opendir(const char *p) { NEXT(DIR *(*)(const char *), "opendir"); return fails(p) ? 0 : real(p); }
"""

PROGRAM = """
import ctypes, sys
import jax, jax.numpy as jnp
from t5x_like.checkpoint import folder
from t5x_like.checkpoint.checkpoints import Checkpoints
shim = ctypes.CDLL(sys.argv[1])
directory = sys.argv[2].encode()
folder.WAITS = (0.0, 0.0)
state = {"params": {name: jax.random.uniform(jax.random.key(3), (128, 64)) for name in "abc"}, "step": jnp.int32(2)}
template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
with Checkpoints(sys.argv[2]) as checkpoints:
    for step in (1, 2):
        checkpoints.save(step, state, {})
number, lost, said = 0, [], []
while True:
    with Checkpoints(sys.argv[2], say=said.append) as checkpoints:
        shim.arm(directory, number)
        latest, metadata = checkpoints.latest(), checkpoints.restore(template)[1]
        met = shim.calls()
        shim.arm(None, -1)
    shim.arm(directory, number)
    with Checkpoints(sys.argv[2], read_only=True) as reader:
        latest = latest and reader.latest()
    shim.arm(None, -1)
    if (latest, metadata["step"]) != (2, 2):
        lost.append(number)
    number += 1
    if number > met:
        break
print("calls", number, "lost", lost, "said", len(said))
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None or sys.platform != "linux", reason="needs a C compiler on Linux")
def test_one_failed_read_anywhere_costs_nothing(tmp_path: Path):
    (tmp_path / "shim.c").write_text(SHIM)
    library = tmp_path / "shim.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-w", "-o", library, tmp_path / "shim.c", "-ldl"], check=True)
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "LD_PRELOAD": str(library)}
    command = [sys.executable, "-c", PROGRAM, library, tmp_path / "checkpoints"]
    done = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=120,
                          cwd=Path(__file__).resolve().parents[2])  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    words = done.stdout.split()
    assert int(words[1]) > 10 and words[2:] == ["lost", "[]", "said", "0"], done.stdout + done.stderr[-2000:]
