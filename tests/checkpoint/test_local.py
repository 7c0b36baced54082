"""Frequent saves to a local disk: what a kill loses, with them and without, and what is not taken."""

from __future__ import annotations

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from t5x_like.checkpoint.checkpoints import Checkpoints
from t5x_like.checkpoint.config import CheckpointConfig, LocalConfig
from t5x_like.core.errors import UserError
from t5x_like.core.every import Every


def state(step: int, devices: int = 4) -> dict:
    mesh = Mesh(np.array(jax.devices()[:devices]).reshape(-1, 2), ("data", "tensor"))
    params = {"w": jax.random.normal(jax.random.key(step), (16, 8)), "b": jnp.full((8,), step, jnp.bfloat16)}
    spread = {"params": params, "step": jnp.int32(step)}
    axes = {2: PartitionSpec("data", "tensor"), 1: PartitionSpec("tensor"), 0: PartitionSpec()}
    return jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, axes[x.ndim])), spread)


def template(like: dict) -> dict:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)


@pytest.fixture
def made(tmp_path):
    """A run saved for good at step 10 and locally at 12, 14 and 16, then killed: (config, folder, local folder)."""
    config = CheckpointConfig(local=LocalConfig(str(tmp_path / "local"), Every(steps=2)))
    checkpoints = Checkpoints(tmp_path / "checkpoints", config)
    checkpoints.save(10, state(10), {"position": 10})
    for step in (12, 14, 16):
        checkpoints.save_locally(step, state(step), {"position": step})
    checkpoints.close()
    return config, tmp_path / "checkpoints", next((tmp_path / "local").glob("*/process-0"))


def resumed(made, devices: int = 4, **options) -> tuple[int, str]:
    said: list[str] = []
    with Checkpoints(made[1], made[0], say=said.append) as checkpoints:
        found, metadata = checkpoints.restore(template(state(0, devices)), **options)
    step = metadata["step"]
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(state(step, devices)), strict=True):
        assert one.dtype == other.dtype and np.asarray(one).tobytes() == np.asarray(other).tobytes()
        assert one.sharding == other.sharding
    assert metadata["position"] == step
    return step, "".join(said)


def test_the_latest_local_save_is_resumed(made):
    assert resumed(made) == (16, "")
    assert sorted(path.name for path in made[2].iterdir()) == ["14.npz", "16.npz"]
    assert resumed(made) == (16, "")


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "token"])
def test_where_local_saves_are_damaged_or_gone(made, damage, monkeypatch):
    monkeypatch.setattr("t5x_like.checkpoint.folder.WAITS", (0.0, 0.0))
    path = made[2] / "16.npz"
    whole = path.read_bytes()
    if damage == "flip":
        at = whole.index(np.asarray(state(16)["params"]["w"].addressable_shards[0].data).tobytes()) + 5
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
    elif damage == "truncate":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "remove":
        shutil.rmtree(made[2].parents[1])
    else:  # the run's folder was begun anew
        (made[1] / ".local").unlink()
    step, said = resumed(made)
    assert step == 10 and ("the local save of step 16 cannot be read" in said) == (damage in ("flip", "truncate"))
    assert ("there is no local save that every process has" in said) == (damage == "remove")


def test_another_mesh_takes_the_permanent_one(made):
    step, said = resumed(made, devices=8)
    assert step == 10 and "of another mesh" in said


def test_a_step_that_is_asked_for_and_local_saves_after_it(made):
    assert resumed(made, step=10) == (10, "")
    assert not list(made[2].iterdir()), "they are not of the past of the run that goes on from step 10"


def test_a_full_local_disk_costs_no_run(made, monkeypatch, capsys):
    monkeypatch.setattr("t5x_like.checkpoint.local.free_bytes", lambda path: 10)
    with Checkpoints(made[1], made[0]) as checkpoints:
        checkpoints.save_locally(18, state(18), {"position": 18})
    assert "step 18 was not saved locally" in capsys.readouterr().err
    assert resumed(made)[0] == 16


def test_a_relative_folder_is_refused():
    with pytest.raises(UserError, match=r"checkpoint\.local\.directory: 'saves' is relative"):
        LocalConfig("saves")
