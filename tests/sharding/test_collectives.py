"""What the compiled step sends: gradients are summed over ``data`` once a step, outside of every loop, and no more than
their own bytes. Numbers stay right when that is lost, so only the compiled text can show it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import compiled_step
import jax
import pytest
from compiled_text import Collective, reductions

from t5x_like.sharding.config import MeshConfig

NEWEST = (0, 11)  # what the compilers do differs from version to version
newest = pytest.mark.skipif(
    tuple(int(part) for part in version("jax").split(".")[:2]) < NEWEST, reason="bounds are those of the newest jax"
)
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None and not (Path(sys.prefix) / "libtpu").is_dir(),
    reason="libtpu is not installed; see benchmarks/install_libtpu.py",
)
MESHES = {
    "data 8": dict(data=8),
    "data 4 x fsdp 2": dict(data=4, fsdp=2),
    "data 4 x tensor 2": dict(data=4, tensor=2),
    "2 x 2 x 2": dict(data=2, fsdp=2, tensor=2),
}


def assert_one_reduction(found: list[Collective], gradient: int) -> None:
    """Over data: nothing in a loop, nothing gathered, and once the bytes of the parameters' gradients."""
    assert not [one for one in found if one.depth and "data" in one.axes]
    assert {one.kind for one in found if "data" in one.axes} <= {"all-reduce", "reduce-scatter"}
    summed = sum(one.bytes_of_arrays for one in reductions(found, "data"))
    assert summed == pytest.approx(gradient, rel=0.02)


@newest
@pytest.mark.skipif(len(jax.devices()) < 8, reason="needs 8 devices")
@pytest.mark.parametrize("micro_batches", [1, 4])
@pytest.mark.parametrize(
    "mesh",
    [pytest.param(name, marks=() if name == "data 4 x fsdp 2" else pytest.mark.slow) for name in MESHES],
)
def test_gradients_are_summed_over_data_once_a_step(mesh, micro_batches):
    facts = compiled_step.facts(MeshConfig(**MESHES[mesh]), micro_batches=micro_batches)
    found = facts["collectives"]
    assert_one_reduction(found, facts["gradient"])
    inner = 1 if micro_batches == 1 else 2
    for axis in ("fsdp", "tensor"):  # as many passes over the layers as there are: forward and backward
        inside = [one for one in reductions(found, axis) if one.depth == inner]
        assert bool(inside) == (axis in MESHES[mesh])
        assert len(inside) <= {"fsdp": 1, "tensor": 4}[axis]


@newest
@pytest.mark.skipif(len(jax.devices()) < 8, reason="needs 8 devices")
def test_the_bounds_refuse_a_reduction_in_every_layer():
    facts = compiled_step.facts(MeshConfig(data=8, reduce="per_layer"), micro_batches=4)
    inside = [one for one in reductions(facts["collectives"], "data") if one.depth == 2]
    assert inside
    with pytest.raises(AssertionError):
        assert_one_reduction(facts["collectives"], facts["gradient"])


@newest
@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:2x4", "v5p:2x2x2", "v6e:2x4"])
def test_gradients_are_summed_once_on_tpus(topology):
    meshes = [dict(data=8), dict(data=4, fsdp=2), dict(data=4, tensor=2)]
    command = [sys.executable, compiled_step.__file__, topology, *map(json.dumps, meshes)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    lines = [line for line in process.stdout.splitlines() if line.startswith("{")]
    assert len(lines) == len(meshes)
    for line in lines:
        facts = compiled_step.read(line)
        assert_one_reduction(facts["collectives"], facts["gradient"])
        gathered = [one for one in facts["collectives"] if one.kind == "all-gather" and "fsdp" in one.axes]
        assert all(one.dtypes <= {"bf16", "s32"} for one in gathered)  # weights as the model computes, and token ids
