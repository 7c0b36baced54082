"""The estimate of a step's memory against what the compiler says, and what is refused before the first step."""

from __future__ import annotations

import dataclasses

import jax
import pytest
from tiny_runs import compiling, tiny_run

from t5x_like.arrays.trees import flatten
from t5x_like.config import AdamW, MeshConfig, Run
from t5x_like.core.config import override
from t5x_like.core.errors import UserError
from t5x_like.core.loading import load_run
from t5x_like.plan import chips
from t5x_like.plan.memory import Memory, batch_arrays, check_memory, step_memory
from t5x_like.report.metrics import read_metrics
from t5x_like.sharding.mesh import make_placement
from t5x_like.train.run import train
from t5x_like.train.setup import make_setup
from t5x_like.train.step import compile_step

ALONE = {"data": 1, "fsdp": 1, "tensor": 1}
GB = 2**30


@pytest.fixture
def optimized():
    """Programs as a run compiles them, whatever other tests of this session do."""
    with compiling(jax_disable_most_optimizations=False, jax_compilation_cache_dir=None):
        yield


def compiled(run: Run, mesh: MeshConfig):
    """The compiler's figures of a run's step; nothing is allocated."""
    sizes = [n for n in (mesh.data, mesh.fsdp, mesh.tensor) if n > 0]
    placement, setup = make_placement(mesh, jax.devices()[: 8 if sizes != [1, 1, 1] else 1]), make_setup(run)
    batch = {
        name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=placement.batch)
        for name, array in batch_arrays(run, run.train.batch_size).items()
    }
    return compile_step(setup, placement).lower(setup.abstract_state(placement), batch).compile().memory_analysis()


SHIPPED = {
    "bert_sotu": (), "byt5_python": (), "gpt_sotu": (), "prefix_sotu": (), "t5_sotu": (), "ul2_mixture": (),
    "t5_1_1_base": ("train.batch_size=16",), "gpt_sotu in micro-batches": ("train.micro_batches=4",),
    "t5_sotu recomputed": ("model.scan_layers=true", "model.remat=full", "train.batch_size=128"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 2)], ids=["one device", "a mesh"])
@pytest.mark.parametrize("name", SHIPPED)
def test_the_estimate_is_within_a_quarter_of_the_compilers_figure(optimized, name, sizes):
    mesh = MeshConfig(*sizes)
    run = override(load_run(name.split()[0], Run), [*SHIPPED[name], "mesh.data=-1", "mesh.fsdp=1"])
    run = dataclasses.replace(run, mesh=mesh)
    found = compiled(run, mesh)
    figure = found.argument_size_in_bytes + found.temp_size_in_bytes
    figure += found.output_size_in_bytes - found.alias_size_in_bytes
    estimate = step_memory(make_setup(run), run, mesh.sizes(max(8 * (sizes != (1, 1, 1)), 1)))
    assert abs(estimate.total / figure - 1) < 0.25, f"{estimate} against {figure:,}"
    stored = estimate.parameters + estimate.optimizer + estimate.batch
    assert abs(stored / found.argument_size_in_bytes - 1) < 0.03


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 2)])
def test_state_and_gradients_are_what_the_devices_hold(sizes):
    run = tiny_run("t5", "train.batch_size=16")
    placement, setup = make_placement(MeshConfig(*sizes), jax.devices()[: 8 if sizes[0] > 1 else 1]), make_setup(run)
    state = setup.initial_state(placement, 0)
    held = lambda tree: sum(a.addressable_shards[0].data.nbytes for a in flatten(tree).values())  # noqa: E731
    found = step_memory(setup, run, dict(placement.mesh.shape))
    assert found.parameters == found.gradients == held(state["params"])
    assert found.optimizer == held(state["optimizer"])
    frozen = dataclasses.replace(run, optimizer=AdamW(frozen=("embedding",)))
    less = step_memory(make_setup(frozen), frozen, dict(placement.mesh.shape))
    assert less.parameters == found.parameters and less.gradients < found.gradients and less.optimizer < found.optimizer


def test_what_saves_memory_saves_it_in_the_estimate():
    def activations(*assignments: str, mesh: dict[str, int] = ALONE) -> int:
        run = tiny_run("llama", "train.batch_size=64", *assignments)
        return step_memory(make_setup(run), run, mesh).activations

    whole = activations()
    assert 1.9 < activations("train.batch_size=128") / whole < 2.1
    assert activations("train.micro_batches=8") < whole / 6
    assert activations("train.logits_chunk=4") < whole
    assert activations("model.remat=full") < activations("model.remat=dots") < whole
    assert activations(mesh={"data": 4, "fsdp": 2, "tensor": 1}) < whole / 6
    assert activations(mesh={"data": 1, "fsdp": 1, "tensor": 4}) < whole


def test_a_batch_that_cannot_fit_is_refused_before_the_folder_is_made(tmp_path):
    run = tiny_run("llama", "train.batch_size=1000000000")
    with pytest.raises(UserError) as error:
        train(run, tmp_path / "run")
    assert error.value.where == "train.batch_size" and "1,000,000,000 rows" in error.value.got
    assert "TB of activations" in error.value.got and error.value.suggestion.startswith("train.batch_size=")
    assert not (tmp_path / "run").exists()
    rows = int(error.value.suggestion.split("=")[1])  # what is suggested would be taken
    smaller = override(run, [f"train.batch_size={rows}"])
    mesh, available = MeshConfig().sizes(len(jax.devices())), chips.memory_bytes(jax.devices()[0])
    assert rows % len(jax.devices()) == 0
    assert check_memory(step_memory(make_setup(smaller), smaller, mesh), available, run, mesh) == ""


def test_peak_memory_is_a_metric(tmp_path):
    train(tiny_run("llama", "train.steps=2"), tmp_path)
    rows = [row for row in read_metrics(tmp_path) if "memory/peak_bytes" in row]
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[1]["memory/peak_bytes"] >= rows[0]["memory/peak_bytes"] > 2**27


def test_what_to_change_depends_on_what_is_too_large():
    run = tiny_run("llama", "train.batch_size=64")
    ask = lambda memory, available: check_memory(memory, available, run, ALONE)  # noqa: E731
    fits = Memory(1 * GB, 2 * GB, 0, 1 * GB, 3 * GB)
    assert fits.total == 7 * GB and "7.52GB a device: 1.07GB of parameters" in str(fits)
    assert ask(fits, 16 * GB) == ask(fits, None) == ""
    warning = ask(fits, 8 * GB)
    assert warning.startswith("memory may be short") and "train.micro_batches=2, or model.remat=dots" in warning
    with pytest.raises(UserError, match=r"train.micro_batches=16, or model.remat=dots") as error:
        ask(dataclasses.replace(fits, activations=48 * GB), 10 * GB)
    assert error.value.where == "train.batch_size"
    with pytest.raises(UserError, match="more devices with mesh.fsdp=-1") as error:
        ask(fits, 4 * GB)
    assert error.value.where == "mesh"


def test_a_smaller_batch_that_is_suggested_is_one_of_whole_micro_batches():
    run = tiny_run("llama", "train.batch_size=1000000000", "train.micro_batches=4")
    memory, mesh = step_memory(make_setup(run), run, ALONE), {"data": 2, "fsdp": 3, "tensor": 1}
    with pytest.raises(UserError) as error:
        check_memory(memory, GB, run, mesh)
    smaller = override(run, [error.value.suggestion])
    assert smaller.train.batch_size % (4 * 6) == 0
    least = tiny_run("llama", "train.batch_size=8", "train.micro_batches=8")
    with pytest.raises(UserError, match="a smaller model"):  # and not the batch that it has
        check_memory(Memory(0, 0, 0, 0, 2 * GB), GB, least, ALONE)


def test_the_memory_of_devices(monkeypatch, tmp_path):
    class Device:
        platform = "gpu"

        def memory_stats(self):
            return {"bytes_limit": 5}

    assert chips.memory_bytes(Device()) == 5
    assert chips.peak_bytes(Device()) > 2**27  # it does not say: of the process
    monkeypatch.setattr(Device, "memory_stats", lambda self: {"peak_bytes_in_use": 7})
    assert chips.peak_bytes(Device()) == 7
    limit = tmp_path / "memory.max"
    limit.write_text("max\n")
    monkeypatch.setattr(chips, "CGROUP_LIMITS", (str(limit), str(tmp_path / "none")))
    cpu = jax.devices("cpu")[0]
    whole = chips.memory_bytes(cpu)
    assert whole * jax.local_device_count() > 2**28
    limit.write_text(f"{2**24}\n")
    assert chips.memory_bytes(cpu) == 2**24 // jax.local_device_count()
