"""Trees keep their names, keys depend on names alone, and a parameter's declaration is checked."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from t5x_like.arrays.keys import maybe_named, named
from t5x_like.arrays.spec import Initializer, ParamSpec
from t5x_like.arrays.trees import flatten, map_named, unflatten

TREE = {"encoder": {"layers": {"kernel": 1, "bias": 2}, "norm": 3}, "table": 4}


def test_flatten_and_back():
    leaves = flatten(TREE)
    assert leaves == {"encoder/layers/kernel": 1, "encoder/layers/bias": 2, "encoder/norm": 3, "table": 4}
    assert unflatten(leaves) == TREE


def test_map_named_goes_by_name_over_several_trees():
    other = {"table": 40, "encoder": {"norm": 30, "layers": {"bias": 20, "kernel": 10}}}  # another order
    got = map_named(lambda path, one, two: (path, one + two), TREE, other)
    assert got["encoder"]["layers"]["bias"] == ("encoder/layers/bias", 22)
    assert got["table"] == ("table", 44)
    with pytest.raises(KeyError):
        map_named(lambda path, one, two: None, TREE, {"table": 1})


def test_keys_by_name():
    key = jax.random.key(0)
    data = {name: tuple(np.asarray(jax.random.key_data(named(key, name)))) for name in ("a", "b", "dropout", "a/b")}
    assert len(set(data.values())) == 4
    assert tuple(np.asarray(jax.random.key_data(named(key, "a")))) == data["a"]
    other = tuple(np.asarray(jax.random.key_data(named(jax.random.key(1), "a"))))
    assert other != data["a"]
    assert maybe_named(None, "a") is None
    assert tuple(np.asarray(jax.random.key_data(maybe_named(key, "a")))) == data["a"]


def test_spec():
    spec = ParamSpec((3, 4), ("embed", "mlp"), Initializer("normal", 0.1), fan=1)
    assert spec.size == 12 and not spec.stacked
    stacked = spec.stack(5)
    assert stacked.shape == (5, 3, 4) and stacked.axes == ("layers", "embed", "mlp") and stacked.stacked
    assert (stacked.init, stacked.fan, stacked.dtype, stacked.size) == (spec.init, 1, "float32", 60)
    with pytest.raises(ValueError, match=r"shape \(3, 4\) needs 2 axis names"):
        ParamSpec((3, 4), ("embed",), Initializer("normal", 0.1))
