"""Mesh sizes, rules, the parameter table and the environment of processes: what fits, and how the rest is refused."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from tiny_models import built, tiny

from t5x_like.arrays.spec import Initializer, ParamSpec
from t5x_like.arrays.trees import flatten
from t5x_like.core.errors import UserError
from t5x_like.models.counts import parameter_count
from t5x_like.sharding.config import MeshConfig, Rule
from t5x_like.sharding.mesh import constrain, make_placement, use
from t5x_like.sharding.rules import RULES, partition
from t5x_like.sharding.table import parameter_table
from t5x_like.train.feed import to_devices

MESH = {"data": 2, "fsdp": 2, "tensor": 2}


def refused(function, *args, **fields) -> str:
    with pytest.raises(UserError) as error:
        function(*args, **fields)
    return str(error.value)


@pytest.mark.parametrize(
    "fields, devices, sizes",
    [
        ({}, 8, (8, 1, 1)),
        ({}, 1, (1, 1, 1)),
        (dict(tensor=4), 8, (2, 1, 4)),
        (dict(data=1, fsdp=-1), 8, (1, 8, 1)),
        (dict(data=2, fsdp=2, tensor=2), 8, (2, 2, 2)),
        (dict(data=3, fsdp=-1, tensor=2), 12, (3, 2, 2)),
    ],
)
def test_mesh_sizes(fields, devices, sizes):
    assert tuple(MeshConfig(**fields).sizes(devices).values()) == sizes


@pytest.mark.parametrize("fields, devices", [(dict(tensor=3), 8), (dict(data=2), 8), (dict(tensor=16), 8)])
def test_mesh_that_does_not_divide(fields, devices):
    text = refused(MeshConfig(**fields).sizes, devices)
    assert text.startswith("mesh: ") and "does not divide 8 devices" in text and "1, 2, 4, 8" in text


def test_mesh_fields_are_checked():
    assert "mesh.fsdp: got 0" in refused(MeshConfig, fsdp=0)
    assert "mesh.data: got -2" in refused(MeshConfig, data=-2)
    assert "-1 for one axis at most" in refused(MeshConfig, fsdp=-1)


@pytest.mark.parametrize(
    "axes, shape, mesh, wanted",
    [
        (("embed", "heads"), (4, 6), MESH, ("fsdp", "tensor")),
        (("layers", "embed", "mlp"), (3, 4, 6), MESH, (None, "fsdp", "tensor")),
        (("batch", None, "vocab"), (8, 5, 10), MESH, (("data", "fsdp"), None, "tensor")),
        (("batch", None), (8, 5), {"data": 8, "fsdp": 1, "tensor": 1}, ("data",)),
        (("norm",), (7,), MESH, ()),
        (("embed", "heads"), (5, 7), {"data": 8, "fsdp": 1, "tensor": 1}, ()),
        ((None, "heads"), (5, 6), {"tensor": 2}, (None, "tensor")),
    ],
)
def test_partition(axes, shape, mesh, wanted):
    assert partition(axes, shape, mesh) == PartitionSpec(*wanted)


def test_partition_refuses():
    text = refused(partition, ("embed", "head"), (4, 4), MESH, name="encoder/kernel")
    assert text.startswith("encoder/kernel: logical axis 'head' has no rule") and "did you mean 'heads'?" in text
    text = refused(partition, ("heads", "mlp"), (4, 4), MESH, name="x")
    assert "axes 'heads' and 'mlp' both lie on mesh axis 'tensor'" in text
    text = refused(partition, ("embed", "mlp"), (4, 6), {"tensor": 4}, name="x")
    assert "x: axis 'mlp' has size 6" in text and "of size 4 do not divide" in text and "mesh.tensor=2" in text
    assert partition(("heads", "mlp"), (4, 4), {"fsdp": 8, "tensor": 1}) == PartitionSpec()  # on one
    with pytest.raises(ValueError):
        partition(("heads",), (4, 4), MESH)


@pytest.mark.parametrize("family", ["t5_1_1", "umt5", "gpt2", "bert", "transformer_2017"])
def test_every_axis_of_every_parameter_has_a_rule_and_no_kernel_stays_whole(family):
    for path, spec in flatten(built(tiny(family))[1]).items():
        placed = partition(spec.axes, spec.shape, MESH, RULES, path)
        if path.endswith("kernel") or path.endswith("embedding/table"):
            assert any(placed), path


def test_large_weights_that_nothing_splits_are_refused():
    wide = ParamSpec((1024, 512), ("norm", "head_dim"), Initializer("normal", 1.0))  # 2 MB
    split = dataclasses.replace(wide, axes=("embed", "head_dim"))
    for mesh in (dict(tensor=2), dict(fsdp=2)):
        placement = make_placement(MeshConfig(**mesh, replicated_limit_mb=1))
        text = refused(placement.of, {"layer": {"weight": wide}})
        assert text.startswith("layer/weight: 2 MB would be copied") and "mesh.replicated_limit_mb = 1" in text
        make_placement(MeshConfig(**mesh, replicated_limit_mb=2)).of({"layer": {"weight": wide}})
    assert make_placement(MeshConfig(fsdp=2, replicated_limit_mb=1)).of({"w": split})["w"].spec[0] == "fsdp"
    make_placement(MeshConfig(replicated_limit_mb=1)).of({"w": wide})  # a mesh that copies on purpose


def test_parameter_table_adds_up():
    specs = built(tiny("t5_1_1"))[1]
    lines = parameter_table(specs, MESH).splitlines()
    assert lines[0].split() == ["parameter", "shape", "axes", "placement", "bytes", "a", "device"]
    rows = {line.split()[0]: line for line in lines[1:]}
    assert rows.keys() == flatten(specs).keys() | {"total"}
    query = rows["encoder/layers/attention/inner/query/kernel"].split("  ")
    query = [cell.strip() for cell in query if cell.strip()]
    # 2 layers x 16 x 32, four bytes each; a quarter on each device
    assert query[1:] == ["2x16x32", "layers embed heads", "- x fsdp x tensor", "4,096", "1,024"]
    assert "whole" in rows["encoder/final_norm/scale"]
    total, local = (int(cell.replace(",", "")) for cell in rows["total"].split()[1:])
    assert total == 4 * parameter_count(specs)
    placement = make_placement(MeshConfig(**MESH))
    shards = [
        np.prod(sharding.shard_shape(spec.shape))
        for spec, sharding in zip(flatten(specs).values(), flatten(placement.of(specs)).values(), strict=True)
    ]
    assert local == 4 * sum(shards)


def test_constrain_names_an_activation_and_leaves_what_does_not_divide():
    placement = make_placement(MeshConfig(data=2, fsdp=2, tensor=2))

    def placed(shape):
        with use(placement):
            return jax.jit(lambda x: constrain(x, "batch", None, "mlp"))(np.zeros(shape, np.float32)).sharding.spec

    assert placed((8, 3, 6)) == PartitionSpec(("data", "fsdp"), None, "tensor")
    assert placed((1, 3, 6)) == PartitionSpec(None, None, "tensor")
    assert placement.batch_ways == 4
    x = np.zeros((8, 3, 6), np.float32)
    assert constrain(x, "batch", None, "mlp") is x  # outside a mesh
    with use(make_placement(MeshConfig(), jax.devices()[:1])):
        assert constrain(x, "batch", None, "mlp") is x


def test_a_run_may_place_axes_elsewhere():
    """Rules of a run replace those of the table: for parameters, activations, and sizes to be divided."""
    specs = built(tiny("llama"))[1]
    usual = make_placement(MeshConfig(data=2, fsdp=2, tensor=2))
    own = make_placement(MeshConfig(data=2, fsdp=2, tensor=2, rules=(Rule("mlp", ()), Rule("length", ("tensor",)))))
    name = "decoder/layers/feed_forward/inner/up/kernel"
    assert flatten(usual.of(specs))[name].spec == PartitionSpec(None, "fsdp", "tensor")
    assert flatten(own.of(specs))[name].spec == PartitionSpec(None, "fsdp")
    assert own.axis_ways | {"mlp": 2, "length": 1} == usual.axis_ways
    with use(own):
        x = jax.jit(lambda x: constrain(x, "batch", "length", "activation"))(jnp.zeros((8, 4, 16)))
    assert x.sharding.is_equivalent_to(NamedSharding(own.mesh, PartitionSpec(("data", "fsdp"), "tensor")), 3)


def test_a_rule_for_an_axis_of_ones_own_and_a_mesh_axis_that_is_none():
    placement = make_placement(MeshConfig(data=4, tensor=2, rules=(Rule("states", ("tensor",)),)))
    assert placement.sharding(("states",), (6,)).spec == PartitionSpec("tensor")
    with pytest.raises(UserError, match="no mesh axis 'tensors'"):
        Rule("states", ("tensors",))


def test_batches_are_split_by_their_declared_axes():
    """Rows everywhere, places of a row too where a rule says so; an array that nobody declared by its rows."""
    placement = make_placement(MeshConfig(data=4, tensor=2, rules=(Rule("length", ("tensor",)),)))
    rows = {"decoder_tokens": np.arange(64).reshape(8, 8), "decoder_extra": np.arange(16).reshape(8, 2)}
    placed = to_devices(placement, rows, (0, 1))
    assert {name: array.sharding.shard_shape(array.shape) for name, array in placed.items()} == {
        "decoder_tokens": (2, 4), "decoder_extra": (2, 2),
    }  # fmt: skip
    for name, array in placed.items():
        assert np.array_equal(np.asarray(array), rows[name])
