"""The memory plan, made from declarations alone, is what the devices then hold."""

from __future__ import annotations

import jax
import pytest
from tiny_models import built, tiny

from t5x_like.arrays.trees import flatten
from t5x_like.core.errors import UserError
from t5x_like.plan.chips import PEAK_TFLOPS, peak_flops
from t5x_like.plan.memory import bytes_per_device
from t5x_like.sharding.config import MeshConfig
from t5x_like.sharding.mesh import make_placement


@pytest.mark.skipif(len(jax.devices()) < 8, reason="needs 8 devices")
@pytest.mark.parametrize("family", ["t5_1_0", "gpt2", "bert"])
@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (2, 1, 4), (2, 2, 2)])
def test_bytes_per_device_are_those_of_the_shards(family, sizes):
    data, fsdp, tensor = sizes
    placement = make_placement(MeshConfig(data=data, fsdp=fsdp, tensor=tensor))
    _, specs, params = built(tiny(family))
    held = dict.fromkeys(jax.devices(), 0)
    for array in flatten(jax.device_put(params, placement.of(specs))).values():
        for shard in array.addressable_shards:
            held[shard.device] += shard.data.nbytes
    assert set(held.values()) == {bytes_per_device(specs, dict(placement.mesh.shape))}
    whole = sum(array.nbytes for array in flatten(params).values())
    assert bytes_per_device(specs, {"data": 1, "fsdp": 1, "tensor": 1}) == whole
    if fsdp * tensor > 1:
        assert max(held.values()) < whole


def test_a_size_that_does_not_divide_is_named():
    with pytest.raises(UserError, match=r"key/kernel: axis 'kv_heads' has size 32, which mesh axes \('tensor',\)"):
        bytes_per_device(built(tiny("t5_1_0"))[1], {"data": 1, "fsdp": 1, "tensor": 3})


class Device:
    def __init__(self, kind: str, platform: str = "tpu"):
        self.device_kind, self.platform = kind, platform


def test_peaks_of_known_unknown_and_this_device():
    assert peak_flops(Device("TPU v5 lite")) == 197e12 and peak_flops(Device("TPU v5p")) == 459e12
    assert peak_flops(Device("NVIDIA H100 80GB HBM3", "gpu")) == 989e12
    assert peak_flops(Device("NVIDIA T1000", "gpu")) is None
    names = [kind for kind, _ in PEAK_TFLOPS]  # the first that fits is taken: no name may hide a longer one
    assert not [(a, b) for i, a in enumerate(names) for b in names[i + 1 :] if b.startswith(a)]
    if jax.devices()[0].platform == "cpu":
        assert 1e9 < peak_flops(jax.devices()[0]) * jax.local_device_count() < 1e14
