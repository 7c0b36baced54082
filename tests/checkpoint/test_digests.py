"""Digests: the same on every mesh, changed by any bit, any exchange and any dtype's bits, and lean."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from t5x_like.checkpoint.digests import digest, of


def reference(array: np.ndarray) -> tuple[int, int]:
    """The digest in Python integers, from its description alone."""
    words = array.reshape(-1).view({1: np.uint8, 2: np.uint16, 4: np.uint32}[array.dtype.itemsize])
    total = exclusive = 0
    for index, word in enumerate(words):
        x = (int(word) + (index + 1) * 0x9E3779B9) % 2**32
        x = (x ^ (x >> 16)) * 0x85EBCA6B % 2**32
        x = (x ^ (x >> 13)) * 0xC2B2AE35 % 2**32
        total += x ^ (x >> 16)
        exclusive ^= x ^ (x >> 16)
    return total % 2**32, exclusive


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (2, 3, 4), (0, 3)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool"])
def test_against_python_integers(shape, dtype):
    array = jnp.asarray(np.random.default_rng(0).normal(size=shape) * 9).astype(dtype)
    assert tuple(np.asarray(digest(array)).tolist()) == reference(np.asarray(array))


@pytest.mark.parametrize("axes", [("x", None), (None, "x"), ("x", "y"), (("x", "y"), None), (None, None)])
def test_the_same_however_split(axes):
    if len(jax.devices()) < 8:
        pytest.skip("needs 8 devices")
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(4, 2), ("x", "y"))
    array = jax.random.normal(jax.random.key(0), (32, 16))
    parts = jax.device_put(array, NamedSharding(mesh, PartitionSpec(*axes)))
    assert of({"whole": parts, "flag": parts > 0}) == of({"whole": array, "flag": array > 0})


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 599), st.integers(0, 31), st.integers(0, 599))
def test_any_flip_and_any_exchange_changes_it(at, bit, other):
    array = np.random.default_rng(1).normal(size=600).astype(np.float32)
    before = np.asarray(digest(array))
    flipped = array.copy()
    flipped.view(np.uint32)[at] ^= np.uint32(1 << bit)
    assert (np.asarray(digest(flipped)) != before).all()
    if at != other:
        exchanged = array.copy()
        exchanged[[at, other]] = exchanged[[other, at]]
        assert (np.asarray(digest(exchanged)) != before).any()


def test_needs_no_memory_of_the_size_of_the_array():
    shape = jax.ShapeDtypeStruct((1024, 2048), jnp.float32)
    memory = jax.jit(digest).lower(shape).compile().memory_analysis()
    if memory is None:
        pytest.skip("this backend does not tell")
    assert memory.temp_size_in_bytes < 1024 * 2048 * 4 / 100


def test_many_at_once():
    arrays = {"a": jnp.ones((3,)), "b": jnp.zeros((2, 2), jnp.int32)}
    assert of(arrays) == {
        name: "".join(f"{word:08x}" for word in reference(np.asarray(x))) for name, x in arrays.items()
    }
