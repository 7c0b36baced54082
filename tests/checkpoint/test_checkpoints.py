"""Saving and reading back: bits, meshes, keep-rules, other models, folders that cannot be written."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

from t5x_like.arrays.trees import flatten, map_named
from t5x_like.checkpoint import digests
from t5x_like.checkpoint.checkpoints import Checkpoints
from t5x_like.checkpoint.config import CheckpointConfig
from t5x_like.checkpoint.folder import metadata_of
from t5x_like.core.errors import UserError

DTYPES = {"float": "float32", "half": "bfloat16", "count": "int32", "mask": "bool", "bytes": "uint8"}


def mesh(*sizes: int) -> Mesh:
    count = int(np.prod(sizes))
    if len(jax.devices()) < count:
        pytest.skip(f"needs {count} devices")
    return Mesh(np.array(jax.devices()[:count]).reshape(sizes), ("data", "tensor")[: len(sizes)])


def make_state(seed: int = 0) -> dict:
    numbers = np.random.default_rng(seed)
    arrays = {name: jnp.asarray(numbers.normal(size=(16, 8)) * 50).astype(dtype) for name, dtype in DTYPES.items()}
    return {"params": {"block": arrays}, "optimizer": {"mu": {"block": {"float": arrays["float"] * 2}}},
            "step": jnp.int32(seed), "odd": jnp.asarray([np.nan, np.inf, -0.0, 1e-45], jnp.float32)}


def split(state: dict, over: Mesh) -> dict:
    axes = PartitionSpec(*over.axis_names)
    return jax.tree.map(
        lambda x: jax.device_put(x, NamedSharding(over, axes if x.ndim == 2 else PartitionSpec())), state
    )


def template(state: dict) -> dict:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def assert_same_bits(left: dict, right: dict) -> None:
    flat_left, flat_right = flatten(left), flatten(right)
    assert flat_left.keys() == flat_right.keys()
    for path, array in flat_left.items():
        assert array.dtype == flat_right[path].dtype and array.shape == flat_right[path].shape, path
        assert np.asarray(array).tobytes() == np.asarray(flat_right[path]).tobytes(), path


def test_round_trip_bit_for_bit(tmp_path):
    state = make_state(3)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() is None
        assert checkpoints.save(7, state, {"position": 1234567890123, "seed": 0, "nested": {"a": [1, None, "x"]}})
        checkpoints.wait()
        assert checkpoints.steps() == [7]
        restored, metadata = checkpoints.restore(template(state))
    assert_same_bits(restored, state)
    assert metadata == {"position": 1234567890123, "seed": 0, "nested": {"a": [1, None, "x"]}, "step": 7}


@pytest.mark.parametrize("before, after", [((8,), (2, 2)), ((4, 2), (1,)), ((1,), (2, 4))])
def test_restored_on_another_mesh(tmp_path, before, after):
    state = split(make_state(), mesh(*before))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        wanted = template(split(state, mesh(*after)))
        restored, _ = checkpoints.restore(wanted)
    assert_same_bits(restored, state)
    for path, array in flatten(restored).items():
        assert array.sharding == flatten(wanted)[path].sharding, path


def test_arrays_may_be_donated_while_they_are_written(tmp_path):
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x * 2 + 1, tree), donate_argnums=0)
    state = {"weights": jnp.arange(1_000_000, dtype=jnp.float32).reshape(1000, 1000)}
    shapes, before = template(state), np.asarray(state["weights"]).copy()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        for _ in range(10):
            state = step(state)
        restored, _ = checkpoints.restore(shapes)
    np.testing.assert_array_equal(np.asarray(restored["weights"]), before)


def test_only_params_and_another_dtype(tmp_path):
    state = make_state()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {"seed": 5})
    wanted = {"params": {"block": {"float": jax.ShapeDtypeStruct((16, 8), jnp.bfloat16)}}}
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        restored, metadata = checkpoints.restore(wanted, partial=True)
        with pytest.raises(UserError, match="only in the checkpoint"):
            checkpoints.restore(wanted)
        assert checkpoints.metadata() == {"seed": 5, "step": 1}
        assert checkpoints.arrays()["params/block/count"] == jax.ShapeDtypeStruct((16, 8), jnp.int32)
        with pytest.raises(ValueError, match="read_only"):
            checkpoints.save(2, state, {})
    assert metadata["seed"] == 5
    assert_same_bits(restored, {"params": {"block": {"float": state["params"]["block"]["float"].astype(jnp.bfloat16)}}})


def test_keep_rules(tmp_path):
    config = CheckpointConfig(keep_last=2, keep_every=40)
    with Checkpoints(tmp_path, config) as checkpoints:
        for step in range(10, 100, 10):
            checkpoints.save(step, {"x": jnp.int32(step)}, {})
        checkpoints.wait()
        assert checkpoints.steps() == [40, 80, 90]
    with Checkpoints(tmp_path, config) as again:
        assert again.steps() == [40, 80, 90] and again.latest() == 90


def test_the_same_step_is_saved_once(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.save(5, {"x": jnp.int32(5)}, {})
        assert not checkpoints.save(5, {"x": jnp.int32(5)}, {})
    with Checkpoints(tmp_path) as again:
        again.restore({"x": jax.ShapeDtypeStruct((), jnp.int32)})
        assert not again.save(5, {"x": jnp.int32(5)}, {})


def test_going_back_sets_the_abandoned_future_aside(tmp_path):
    said: list[str] = []
    config = CheckpointConfig(keep_last=1, keep_every=10)
    with Checkpoints(tmp_path, config) as checkpoints:
        for step in (10, 20, 30):
            checkpoints.save(step, {"x": jnp.int32(step)}, {})
    with Checkpoints(tmp_path, config, say=said.append) as back:
        back.restore({"x": jax.ShapeDtypeStruct((), jnp.int32)}, step=10)
        back.save(20, {"x": jnp.int32(21)}, {})
        back.wait()
        assert back.steps() == [10, 20]
        assert int(back.restore({"x": jax.ShapeDtypeStruct((), jnp.int32)})[0]["x"]) == 21
    assert (tmp_path / "30.aside-1").is_dir() and "30.aside-1" in "".join(said)


def test_a_checkpoint_of_another_model_names_every_difference(tmp_path):
    state = make_state()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        wanted = map_named(lambda path, x: x, template(state))
        wanted["params"]["block"]["floats"] = wanted["params"]["block"].pop("float")
        wanted["params"]["block"]["half"] = jax.ShapeDtypeStruct((16, 9), jnp.bfloat16)
        wanted["extra"] = jax.ShapeDtypeStruct((), jnp.int32)
        with pytest.raises(UserError) as error:
            checkpoints.restore(wanted)
    text = str(error.value)
    assert "did you mean 'params/block/float'?" in text and "extra" in text
    assert "params/block/half: (16, 8) in the checkpoint, (16, 9) wanted" in text


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        Checkpoints(tmp_path / "none", read_only=True)
    assert not (tmp_path / "none").exists()
    with Checkpoints(tmp_path / "new") as checkpoints:
        with pytest.raises(UserError, match="there is none"):
            checkpoints.restore({"x": jax.ShapeDtypeStruct((), jnp.int32)})
        checkpoints.save(3, {"x": jnp.int32(1)}, {})
        checkpoints.wait()
        with pytest.raises(UserError, match="none of step 4.*\n.*step 3"):
            checkpoints.restore({"x": jax.ShapeDtypeStruct((), jnp.int32)}, step=4)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        Checkpoints(tmp_path / "file" / "checkpoints")


def test_config_refuses_negative_numbers():
    with pytest.raises(UserError, match=r"checkpoint\.keep_last"):
        CheckpointConfig(keep_last=-1)


def test_a_checkpoint_of_another_program_is_told_apart(tmp_path):
    with ocp.training.Checkpointer(str(tmp_path)) as other:
        other.save(1, {"x": jnp.int32(1)})
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        with pytest.raises(UserError, match="not written by t5x_like"):
            checkpoints.restore({"x": jax.ShapeDtypeStruct((), jnp.int32)})


@pytest.mark.parametrize("compress", [False, True])
def test_orbax_reads_what_is_saved(tmp_path, compress):
    state = split(make_state(), mesh(4, 2))
    with Checkpoints(tmp_path, CheckpointConfig(compress=compress)) as checkpoints:
        checkpoints.save(3, state, {"position": 7})
    assert_same_bits(ocp.load(tmp_path / "3", template(state)), state)
    found = ocp.metadata(tmp_path / "3")
    assert found.custom_metadata["t5x_like"]["user"] == {"position": 7, "step": 3}
    assert {path: (leaf.shape, leaf.dtype) for path, leaf in flatten(found.metadata).items()} == {
        path: (leaf.shape, leaf.dtype) for path, leaf in flatten(state).items()
    }


@pytest.mark.parametrize("compress", [False, True])
def test_what_orbax_has_saved_is_read(tmp_path, compress):
    """The first checkpoints were written by Orbax itself, with our block."""
    state, options = split(make_state(), mesh(4, 2)), ocp.Context()
    arrays = {path: {"shape": list(x.shape), "dtype": str(x.dtype), "digest": digests.of({path: x})[path]}
              for path, x in flatten(state).items()}  # fmt: skip
    options.array.saving.use_compression = compress
    with options:
        block = metadata_of({"position": 7, "step": 3}, arrays, 1)["custom_metadata"]
        ocp.save(tmp_path / "3", state, custom_metadata=block)
    with Checkpoints(tmp_path) as checkpoints:
        found, metadata = checkpoints.restore(template(split(state, mesh(8))))
    assert metadata == {"position": 7, "step": 3}
    assert_same_bits(found, state)


def test_a_misspelt_part_gets_the_nearest_name(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"params": {"kernel": jnp.ones(3)}, "step": jnp.int32(1)}, {})
        with pytest.raises(UserError, match="did you mean 'params/kernel'"):
            checkpoints.restore({"params": {"kernl": jax.ShapeDtypeStruct((3,), jnp.float32)}}, partial=True)
