"""Checkpoints of older layouts are read under today's names; those of later versions are refused by name."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_like.checkpoint import checkpoints as module
from t5x_like.checkpoint import folder, layout
from t5x_like.checkpoint.checkpoints import Checkpoints
from t5x_like.core.errors import UserError

RENAMES = {
    2: {r"params/(.*)/mlp/(.*)": r"params/\1/feed_forward/\2", "params/embedding": "params/tokens/embedding"},
    3: {r"params/(.*)/feed_forward/w1": r"params/\1/feed_forward/wi"},
}


@pytest.fixture
def later(monkeypatch):
    monkeypatch.setattr(layout, "LAYOUT", 3)
    monkeypatch.setattr(module, "LAYOUT", 3)
    monkeypatch.setattr(layout, "RENAMES", RENAMES)


def test_renames_of_all_later_layouts_apply_in_order(later):
    names = ["params/0/mlp/w1", "params/0/feed_forward/w1", "params/embedding", "step"]
    assert list(layout.renamed(names, 1).values()) == ["params/0/feed_forward/wi", "params/0/feed_forward/wi",
                                                       "params/tokens/embedding", "step"]  # fmt: skip
    assert list(layout.renamed(names, 2).values()) == ["params/0/mlp/w1", "params/0/feed_forward/wi",
                                                       "params/embedding", "step"]  # fmt: skip
    assert list(layout.renamed(names, 3).values()) == names


def test_an_older_checkpoint_is_restored_under_new_names(tmp_path, monkeypatch):
    weights = jnp.arange(12.0).reshape(3, 4)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"params": {"block": {"mlp": {"w1": weights}}, "embedding": weights + 1}}, {})
    monkeypatch.setattr(layout, "LAYOUT", 3)
    monkeypatch.setattr(layout, "RENAMES", RENAMES)
    one = jax.ShapeDtypeStruct((3, 4), jnp.float32)
    template = {"params": {"block": {"feed_forward": {"wi": one}}, "tokens": {"embedding": one}}}
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        found, _ = checkpoints.restore(template)
        assert checkpoints.arrays().keys() == {"params/block/feed_forward/wi", "params/tokens/embedding"}
        assert checkpoints.verify(1) == ""
    np.testing.assert_array_equal(found["params"]["block"]["feed_forward"]["wi"], weights)
    np.testing.assert_array_equal(found["params"]["tokens"]["embedding"], weights + 1)


def test_a_later_layout_is_refused_and_none_is_the_first(tmp_path, monkeypatch):
    one = {"x": jnp.arange(3)}
    template = {"x": jax.ShapeDtypeStruct((3,), jnp.int32)}
    with Checkpoints(tmp_path) as checkpoints, monkeypatch.context() as patch:
        patch.setattr(module, "LAYOUT", 9)
        checkpoints.save(1, one, {})
        checkpoints.wait()
        with pytest.raises(UserError, match="has layout 9, written by a later version"):
            checkpoints.restore(template)
    path = tmp_path / "1" / folder.METADATA
    metadata = json.loads(path.read_text())
    block = metadata["custom_metadata"][folder.BLOCK]
    del block["layout"], block["crc"]  # as versions before this one wrote it
    block["crc"] = folder._crc(block)
    path.write_text(json.dumps(metadata))
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.restore(template)[1] == {"step": 1}
