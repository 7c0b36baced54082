"""The very step compiled for TPUs that are not here: its kernels are the TPU's, its memory is that of the whole
program, and what does not fit is named. libtpu runs in a process of its own."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import tiny_runs
from tiny_runs import run_file, tiny_run

from pallas_kernels import BlockSizes, Causal, attention, choose
from pallas_kernels.blocks import blocks_for
from t5x_like.core.errors import UserError
from t5x_like.plan import compile as ahead
from t5x_like.plan.compile import topology_size

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None and not (Path(sys.prefix) / "libtpu").is_dir(),
    reason="libtpu is not installed; see benchmarks/install_libtpu.py",
)
V5E, V6E, H100 = (types.SimpleNamespace(platform=platform, device_kind=kind) for platform, kind in (
    ("tpu", "TPU v5 lite"), ("tpu", "TPU v6 lite"), ("gpu", "NVIDIA H100 80GB HBM3")))  # fmt: skip
OLD = ("RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 18.32G of "
       "15.75G hbm. Exceeded hbm capacity by 2.57G.")  # fmt: skip
NEW = ("RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
       "temporaries (10.88G) exceeds available HBM (1.00M). HLO module: jit_step.")  # fmt: skip


def test_kernel_and_blocks_are_those_of_the_device_named():
    q = jax.ShapeDtypeStruct((2, 1024, 4, 64), jnp.bfloat16)
    assert choose(q, q, q, mask=Causal()).backend == "xla"  # a CPU is here
    assert choose(q, q, q, mask=Causal(), device=V5E).backend == "tpu"
    assert choose(q, q, q, mask=Causal(), device=H100).backend in ("gpu", "cudnn")
    assert blocks_for(None, None) is None
    assert blocks_for(None, jax.devices()[0]) is None
    assert blocks_for(None, V5E) == BlockSizes(chip="v5e") and blocks_for(None, V6E) == BlockSizes(chip="v6e")
    assert blocks_for(BlockSizes(queries=256), V6E) == BlockSizes(queries=256, chip="v6e")
    assert blocks_for(BlockSizes(chip="v4"), V6E) == BlockSizes(chip="v4")
    unknown = types.SimpleNamespace(platform="tpu", device_kind="TPU v99")
    assert blocks_for(None, unknown) == BlockSizes(chip="v4")  # whose blocks fit all


def test_the_kernel_that_is_traced_is_cut_for_the_device_named(monkeypatch):
    from pallas_kernels import tpu

    taken, original = [], tpu.attention

    def recorded(*arrays, **options):
        taken.append(options["blocks"])
        return original(*arrays, **options)

    monkeypatch.setattr(tpu, "attention", recorded)
    q = jax.ShapeDtypeStruct((2, 1024, 4, 64), jnp.bfloat16)
    for device in (V5E, V6E):
        jax.eval_shape(lambda q, d=device: attention(q, q, q, mask=Causal(), device=d), q)
    assert [blocks.chip for blocks in taken] == ["v5e", "v6e"]


def test_the_compilers_words_are_read():
    assert ahead._bytes_in(OLD) == int(18.32 * 2**30)
    assert ahead._bytes_in(NEW) == int(10.88 * 2**30)
    assert ahead._bytes_in("INTERNAL: Mosaic failed to compile") is None


def test_a_topology_is_known_by_its_name():
    assert [topology_size(name) for name in ("v5e:4x4", "v5p:2x2x4", "tpu7x:2x2x1", "v5e:16x16 x2")] == [16, 16, 8, 512]
    for name in ("v5e", "v5e:", "v5e:4", "v5e:4x4x4x4", "v9:2x2", "v5e:4x4 x0", "4x4"):
        with pytest.raises(UserError, match="--topology"):
            topology_size(name)


def check(arguments: list[str]) -> tuple[int, dict[str, tuple[str, str]]]:
    process = subprocess.run([*tiny_runs.CLI, "check", *arguments], capture_output=True, text=True, cwd=tiny_runs.ROOT)
    found = [line.split(maxsplit=2) for line in process.stdout.splitlines()[:-1]]
    return process.returncode, {name: (state, text) for state, name, text in found}


@needs_libtpu
@pytest.mark.slow
def test_a_step_compiles_for_a_topology_and_fits(tmp_path):
    code, found = check([run_file(tiny_run("t5")), "--topology", "v5e:2x2", "--directory", str(tmp_path / "run")])
    assert code == 0, found
    assert found["mesh"] == ("ok", "data 4, fsdp 1, tensor 1 on 4 x TPU v5 lite")
    assert found["program"][0] == "ok" and found["program"][1].startswith("compiles for TPU v5 lite")


@needs_libtpu
@pytest.mark.slow
def test_a_step_that_the_chips_cannot_hold_is_named(tmp_path):
    large = ["--topology", "v5e:2x2", "--directory", str(tmp_path / "run"), "model.dtype=bfloat16"]
    many = check([run_file(tiny_run()), "train.batch_size=65536", "data.input_length=2048", *large])
    assert many[0] == 2
    assert many[1]["memory"][0] == many[1]["program"][0] == "FAILED", many
    assert "by the compiler" in many[1]["program"][1]
    code, found = check([run_file(tiny_run()), "model.attention_backend=gpu", *large])
    assert code == 2 and found["mesh"][0] == "FAILED" and found["program"][0] == "unknown"


WHOLE = """
import json, sys
from t5x_like.plan.compile import compile_ahead, topology_devices
devices = topology_devices("v5e:2x2")
from t5x_like.core.config import override
from t5x_like.core.loading import load_run
from t5x_like.sharding.mesh import make_placement
from t5x_like.train.config import Run
from t5x_like.train.feed import abstract_batch
from t5x_like.train.setup import make_setup
from t5x_like.train.step import compile_step
run = override(load_run(sys.argv[1], Run), sys.argv[2:])
placement, setup = make_placement(run.mesh, devices), make_setup(run)
arguments = setup.abstract_state(placement), abstract_batch(placement, run)
for whole in (False, True):
    found = compile_ahead(compile_step(setup, placement), arguments, placement.device, whole)
    print(json.dumps([found.arguments, found.temporaries, found.total, found.available]))
"""


@needs_libtpu
@pytest.mark.proof
def test_memory_under_a_lower_limit_is_that_of_the_whole_program(tmp_path):
    from t5x_like.models import families

    sizes = dict(vocab_size=8192, d_model=512, d_ff=2048, heads=4, kv_heads=4, head_dim=128, decoder_layers=4)
    run = dataclasses.replace(tiny_run(), model=families.llama(**sizes, dtype="bfloat16", remat="full"))
    command = [sys.executable, "-c", WHOLE, run_file(run), "train.batch_size=64", "data.input_length=2048"]
    environment = tiny_runs.environment()
    process = subprocess.run(command, capture_output=True, text=True, cwd=tiny_runs.ROOT, env=environment)
    assert process.returncode == 0, process.stderr
    quick, whole = map(json.loads, process.stdout.splitlines())
    assert quick[0] == whole[0]  # the arguments
    assert quick[2] == pytest.approx(whole[2], rel=0.1)
    assert quick[3] == int(15.75 * 2**30)
