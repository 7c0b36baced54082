"""Two processes of four devices: one checkpoint between them, read back by one process, damage seen by both alike."""

from __future__ import annotations

import os
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
make = jax.jit(lambda key: jax.random.normal(jax.random.key(key), (32, 16)), out_shardings=split)
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


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="gloo")
def test_two_processes_save_one_checkpoint(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4"}
    folder, apart = tmp_path / "together", tmp_path / "apart"
    running = [
        subprocess.Popen([sys.executable, "-c", PROGRAM, port, str(process), str(folder), str(apart)], env=environment,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                         cwd=Path(__file__).resolve().parents[2])
        for process in range(2)
    ]
    try:
        results = [process.communicate(timeout=90) for process in running]
    finally:
        for process in running:
            process.kill()
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
    np.testing.assert_array_equal(np.asarray(state["x"]), np.asarray(jax.random.normal(jax.random.key(2), (32, 16))))
