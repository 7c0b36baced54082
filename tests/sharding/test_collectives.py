"""What the compiled step sends: gradients are summed over ``data`` once a step, outside of every loop, and no more than
their own bytes; along every axis no more than collectives.json says. Numbers stay right when that is lost, so only the
compiled text can show it.

    python -m pytest tests/sharding/test_collectives.py --write-golden

writes collectives.json anew, for a change that is meant and for new versions of the compilers.
"""

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

from t5x_like.plan.collectives import Collective, reductions
from t5x_like.sharding.config import MeshConfig

GOLDEN = Path(__file__).with_name("collectives.json")
JAX = ".".join(version("jax").split(".")[:2])  # what the compilers do differs from version to version
newest = pytest.mark.skipif(JAX != json.loads(GOLDEN.read_text())["jax"], reason="bounds are those of another jax")
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


def summary(found: list[Collective]) -> dict[str, list[int]]:
    """"kind axes depth" to [instructions, bytes of the arrays put in during a step]."""
    totals: dict[str, list[int]] = {}
    for one in found:
        if one.bytes_of_arrays:
            total = totals.setdefault(f"{one.kind} {' '.join(one.axes)} {one.depth}", [0, 0])
            total[0] += 1
            total[1] += one.times * one.bytes_of_arrays
    return dict(sorted(totals.items()))


def assert_golden(found: list[Collective], case: str, write: bool) -> None:
    """No kind, axis or loop depth that is not in collectives.json, no more instructions, bytes within 5%."""
    golden, got = json.loads(GOLDEN.read_text()), summary(found)
    if write:
        golden["jax"] = JAX
        golden["cases"][case] = got
        GOLDEN.write_text(json.dumps(golden, indent=1, sort_keys=True) + "\n")
    bounds = golden["cases"][case]
    assert list(got) == list(bounds), "something is sent that was not, or no longer: --write-golden if it is meant"
    for key, (count, size) in got.items():
        assert count <= bounds[key][0], f"{case}: {count} {key}"
        assert size == pytest.approx(bounds[key][1], rel=0.05), f"{case}: {key}"


@pytest.fixture
def write(request):
    return request.config.getoption("--write-golden")


@newest
@pytest.mark.skipif(len(jax.devices()) < 8, reason="needs 8 devices")
@pytest.mark.parametrize("micro_batches", [1, 4])
@pytest.mark.parametrize(
    "mesh",
    [pytest.param(name, marks=() if name == "data 4 x fsdp 2" else pytest.mark.slow) for name in MESHES],
)
def test_gradients_are_summed_over_data_once_a_step(mesh, micro_batches, write):
    facts = compiled_step.facts(MeshConfig(**MESHES[mesh]), micro_batches=micro_batches)
    assert_one_reduction(facts["collectives"], facts["gradient"])
    assert_golden(facts["collectives"], f"cpu, {mesh}, micro-batches {micro_batches}", write)


@newest
@pytest.mark.skipif(len(jax.devices()) < 8, reason="needs 8 devices")
def test_the_bounds_refuse_a_reduction_in_every_layer():
    facts = compiled_step.facts(MeshConfig(data=8, reduce="per_layer"), micro_batches=4)
    inside = [one for one in reductions(facts["collectives"], "data") if one.depth == 2]
    assert inside
    with pytest.raises(AssertionError):
        assert_one_reduction(facts["collectives"], facts["gradient"])
    with pytest.raises(AssertionError):
        assert_golden(facts["collectives"], "cpu, data 8, micro-batches 4", write=False)


@newest
@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:2x4", "v5p:2x2x2", "v6e:2x4"])
def test_gradients_are_summed_once_on_tpus(topology, write):
    command = [sys.executable, compiled_step.__file__, topology, *map(json.dumps, MESHES.values())]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    lines = [line for line in process.stdout.splitlines() if line.startswith("{")]
    for line, mesh in zip(lines, MESHES, strict=True):
        facts = compiled_step.read(line)
        assert_one_reduction(facts["collectives"], facts["gradient"])
        gathered = [one for one in facts["collectives"] if one.kind == "all-gather" and "fsdp" in one.axes]
        assert all(one.dtypes <= {"bf16", "s32"} for one in gathered)  # weights as the model computes, and token ids
        assert_golden(facts["collectives"], f"{topology}, {mesh}", write)
