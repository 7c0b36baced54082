"""Two processes of four devices: one checkpoint between them, read back by one process, damage seen by both alike."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_like.checkpoint.checkpoints import Checkpoints

PROGRAM = """
import sys, jax, jax.numpy as jnp, numpy as np
from pathlib import Path
from jax.sharding import Mesh, NamedSharding, PartitionSpec
port, process, folder, apart = sys.argv[1:]
jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(process), initialization_timeout=60)
from t5x_like.checkpoint.checkpoints import Checkpoints
from t5x_like.core.errors import UserError

mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "tensor"))
split = NamedSharding(mesh, PartitionSpec("data", "tensor"))
make = jax.jit(lambda key: jax.random.uniform(jax.random.key(key), (32, 16)), out_shardings=split)
template = {"x": jax.ShapeDtypeStruct((32, 16), jnp.float32, sharding=split)}
try:
    Checkpoints(Path(apart) / process)
    print("not noticed")
except UserError as error:
    print("apart:", error.got)
with Checkpoints(folder) as checkpoints:
    for step in (1, 2):
        checkpoints.save(step, {"x": make(step)}, {"position": step})
        checkpoints.check()
    checkpoints.wait()
    if process == "0":
        for path in (Path(folder) / "2" / "state").rglob("d/*"):
            path.write_bytes(path.read_bytes()[:20])
    jax.experimental.multihost_utils.sync_global_devices("damaged")
    state, metadata = checkpoints.restore(template)
    same = bool(jax.jit(lambda a, b: (a == b).all())(state["x"], make(metadata["step"])))
    print("restored", metadata["step"], same)
    checkpoints.save(2, {"x": make(2)}, {"position": 2})
"""


# Each stage: what one process alone meets with, and what both must then have: no hang, the same step, the same bits.
ALONE = """
import sys, jax, jax.numpy as jnp, numpy as np, shutil
from pathlib import Path
from jax.sharding import Mesh, NamedSharding, PartitionSpec
port, process, folder, disks = sys.argv[1:]
jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(process), initialization_timeout=60)
from t5x_like.checkpoint import arrays, folder as files
from t5x_like.checkpoint.checkpoints import Checkpoints
from t5x_like.checkpoint.folder import Damaged
from t5x_like.checkpoint.config import CheckpointConfig, LocalConfig
from t5x_like.core.errors import UserError

files.WAITS = (0.0, 0.1)
mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "tensor"))
split = NamedSharding(mesh, PartitionSpec("data", "tensor"))
make = jax.jit(lambda key: jax.random.uniform(jax.random.key(key), (32, 16)), out_shardings=split)
template = {"x": jax.ShapeDtypeStruct((32, 16), jnp.float32, sharding=split)}
disk = Path(disks) / f"host{process}"
config = CheckpointConfig(local=LocalConfig(str(disk)))
meet = jax.experimental.multihost_utils.sync_global_devices

def restore(stage, config=CheckpointConfig()):
    with Checkpoints(folder, config) as checkpoints:
        state, metadata = checkpoints.restore(template)
        same = bool(jax.jit(lambda a, b: (a == b).all())(state["x"], make(metadata["step"])))
        print(stage, metadata["step"], same, flush=True)

with Checkpoints(folder, config) as checkpoints:
    for step in (1, 2):
        checkpoints.save(step, {"x": make(step)}, {"position": step})
    for step in (3, 4, 5):
        checkpoints.save_locally(step, {"x": make(step)}, {"position": step})
read, block = arrays.read, files.read_block
for stage, times in (("once", 1), ("always", 99)):
    left = iter(range(times if process == "1" else 0))
    def failing(place, *rest):
        if str(place).endswith("/2") and next(left, None) is not None:
            raise OSError(5, "Input/output error")
        return read(place, *rest)
    arrays.read = failing
    restore(stage)
arrays.read = read
def unreadable(place):
    if str(place).endswith("/2") and process == "1":
        raise Damaged("its metadata cannot be read")
    return block(place)
files.read_block = unreadable
restore("metadata")
files.read_block = block
def broken(place, *rest):
    if process == "1":
        raise MemoryError("none left")
    return read(place, *rest)
arrays.read = broken
try:
    restore("memory")
except (MemoryError, RuntimeError) as error:
    print("memory", type(error).__name__, str(error)[:40], flush=True)
arrays.read = read
restore("local", config)
if process == "1":
    next(disk.glob("*/process-1/5.npz")).unlink()  # killed before it was renamed
meet("one is short")
restore("both", config)
if process == "1":
    shutil.rmtree(disk)  # another host has taken its place
meet("gone")
restore("gone", config)
with Checkpoints(folder) as checkpoints:  # reads that failed in one process alone do not keep the two from saving
    checkpoints.restore(template)
    checkpoints.save(6, {"x": make(6)}, {"position": 6})
restore("saved")
"""


def run_two(program: str, folder: Path, other: Path, devices: int = 4) -> list[tuple[str, str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    running = [
        subprocess.Popen([sys.executable, "-c", program, port, str(process), str(folder), str(other)], env=environment,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                         cwd=Path(__file__).resolve().parents[2])
        for process in range(2)
    ]
    try:
        return [process.communicate(timeout=90) for process in running]
    finally:
        for process in running:
            process.kill()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="gloo")
def test_what_one_process_alone_cannot_read(tmp_path):
    results = run_two(ALONE, tmp_path / "together", tmp_path / "disks")
    for process, (out, err) in enumerate(results):
        lines = re.findall(r"^(?:once|always|metadata|memory|local|both|gone|saved) .*", out, re.MULTILINE)
        assert lines[:3] == ["once 2 True", "always 1 True", "metadata 1 True"], out + err[-3000:]
        whose = "MemoryError none left" if process else "RuntimeError process 1 has failed; its message says w"
        assert lines[3] == f"memory {whose}"[: len(lines[3])], out + err[-3000:]
        assert lines[4:] == ["local 5 True", "both 4 True", "gone 2 True", "saved 6 True"], out + err[-3000:]
    assert "step 2: cannot be read by process 1" in results[0][1]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="gloo")
def test_two_processes_save_one_checkpoint(tmp_path):
    folder, apart = tmp_path / "together", tmp_path / "apart"
    results = run_two(PROGRAM, folder, apart)
    for out, err in results:
        assert "is not the same folder for processes 1 and process 0" in out, out + err[-3000:]
        assert "restored 1 True" in out, out + err[-3000:]
    assert "step 2: " in results[0][1] and "step 2: " not in results[1][1].replace("[process", "")
    # And one process with other devices reads what two have written.
    wanted = {"x": jax.ShapeDtypeStruct((32, 16), jnp.float32)}
    with Checkpoints(folder, read_only=True) as checkpoints:
        assert checkpoints.steps() == [1, 2]
        state, metadata = checkpoints.restore(wanted)
    assert metadata == {"position": 2, "step": 2}
    np.testing.assert_array_equal(np.asarray(state["x"]), np.asarray(jax.random.uniform(jax.random.key(2), (32, 16))))
